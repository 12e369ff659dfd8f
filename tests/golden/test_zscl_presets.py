"""ZSCL's published settings: what each preset and each of its recipes comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from perdure.data.templates import templates_of
from perdure.methods.zscl import ZSCLConfig
from perdure.run.streams import STREAMS
from perdure.train.settings import AdamW

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["mtil", "mtil_without_pull", "mtil_finetune"])
def test_the_steps_of_mtil(name: str) -> None:
    train = ZSCLConfig(preset=name).train
    assert (train.iterations, train.inclusive_last, train.batch_size, train.lr) == (1000, True, 64, 1e-5)
    assert train.schedule.model_dump() == {"name": "cosine_to_zero", "warmup": 100}
    assert train.optimizer == AdamW(weight_decay=0.0, beta1=0.9, beta2=0.999)
    assert (train.augment.min_scale, train.augment.flip) == (0.9, False)


def test_what_holds_the_weights_in_mtil() -> None:
    whole, mean, plain = (ZSCLConfig(preset=name) for name in ("mtil", "mtil_without_pull", "mtil_finetune"))
    assert [(c.pull, c.ensemble, c.uses_reference) for c in (whole, mean, plain)] == [
        (1.0, 100, True), (0.0, 100, True), (0.0, None, False),
    ]  # fmt: skip
    assert whole.distill == mean.distill is not None
    assert (whole.distill.batch_size, whole.distill.images, whole.distill.texts) == (64, 1.0, 1.0)
    assert (whole.distill.temperature, whole.distill.texts_by, whole.smoothing) == (2.0, "transpose", 0.2)


@pytest.mark.parametrize(
    ("name", "template", "batch", "lr"),
    [
        ("cifar100", "a bad photo of a {}.", 64, 7.1e-6),
        ("tinyimagenet", "a bad photo of a {}.", 64, 7.1e-6),
        ("imagenet100", "a good photo of a {}.", 128, 7e-6),
    ],
)
def test_class_incremental_settings(name: str, template: str, batch: int, lr: float) -> None:
    c = ZSCLConfig(preset=name)
    assert (c.templates, c.train.batch_size, c.train.lr) == ([template], batch, lr)
    assert (c.train.iterations, c.train.epochs, c.train.inclusive_last) == (None, 1, True)
    assert c.train.schedule.model_dump() == {"name": "cosine_to_zero", "warmup": 30}
    assert c.distill is not None
    assert (c.distill.images, c.distill.texts, c.pull, c.ensemble, c.smoothing) == (5.0, 5.0, 0.0, 10, 0.2)


def test_defaults_are_the_papers_but_for_the_step_too_many() -> None:
    mine, published = ZSCLConfig().model_dump(), ZSCLConfig(preset="mtil").model_dump()
    assert {key for key in mine if mine[key] != published[key]} == {"preset", "train"}
    assert {key for key in mine["train"] if mine["train"][key] != published["train"][key]} == {
        "inclusive_last",
        "schedule",
    }


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/mtil").glob("zscl*.yaml")), ids=lambda path: path.stem)
def test_every_set_of_mtil_has_templates(file: Path) -> None:
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = [Path(place).name for place in STREAMS[recipe["stream"]["preset"]]["datasets"]]
    asked = recipe["method"]["templates"]
    assert asked.keys() == {*names}
    first = [templates_of(asked, name)[0] for name in names]
    assert {name: text for name, text in zip(names, first, strict=True) if text != "a photo of a {}."} == {
        "aircraft": "a photo of a {}, a type of aircraft.", "dtd": "a photo of a {} texture.",
        "eurosat": "a centered satellite photo of {}.", "flowers": "a photo of a {}, a type of flower.",
        "food": "a photo of {}, a type of food.", "mnist": 'a photo of the number: "{}".',
        "pets": "a photo of a {}, a type of pet.",
    }  # fmt: skip
