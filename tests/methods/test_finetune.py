from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.errors import TrainingError
from perdure.methods.finetune import Finetune, FinetuneConfig


@pytest.fixture
def stream() -> Stream:
    return load_stream("synthetic", tasks=3)


def accuracy(method: Finetune, stream: Stream, task: int) -> float:
    return float(np.mean(method.predict(stream.test(task)).numpy() == stream.test(task).labels))


def test_learns_the_present_task_and_forgets_the_first(backbone: Backbone, stream: Stream) -> None:
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    fingerprint = backbone.fingerprint
    method = Finetune(backbone, FinetuneConfig(train={"epochs": 8, "lr": 0.03, "batch_size": 4}))
    present = []
    for task in stream:
        method.fit_task(task)
        present.append(accuracy(method, stream, task.index))
    assert min(present) >= 0.75
    assert accuracy(method, stream, 0) <= present[0] - 0.5

    after = backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.fingerprint == fingerprint
    tuned = method.backbone_.state_dict()
    assert not any(torch.equal(before[k], tuned[k]) for k in before if k.endswith("qkv.weight"))


def test_every_epoch_passes_every_image(backbone: Backbone, stream: Stream) -> None:
    method = Finetune(backbone, FinetuneConfig(train={"epochs": 3, "batch_size": 5})).fit_task(stream[0])
    assert backbone.passes.images == 3 * 16
    method.predict(stream.test(0))
    method.predict(stream.test(0))  # nothing is cached: features change with every task
    assert backbone.passes.images == 3 * 16 + 2 * 8


def test_reports_progress(backbone: Backbone, tmp_path: Path, stream: Stream) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(tmp_path / "heard", progress=lambda e: heard.append((e.stage, e.done, e.total)))
    Finetune(backbone, FinetuneConfig(train={"epochs": 2, "batch_size": 10}), store=store).fit_task(stream[0])
    assert heard == [("fine-tuning", step, 4) for step in (1, 2, 3, 4)]


def test_a_diverging_loss_names_the_learning_rate(backbone: Backbone, stream: Stream) -> None:
    method = Finetune(backbone, FinetuneConfig(train={"epochs": 4, "lr": 1e20, "batch_size": 4}))
    with pytest.raises(TrainingError, match=r"loss must be finite, but got (nan|inf)\. Lower lr, now 1e\+20"):
        method.fit_task(stream[0])
    assert method.classes_ == []
    assert torch.equal(method.backbone_.features(_pixels(stream)), backbone.features(_pixels(stream)))


def test_seeds_differ_and_repeat(backbone: Backbone, stream: Stream) -> None:
    config = FinetuneConfig(train={"epochs": 1, "batch_size": 8})
    heads = [Finetune(backbone, config, seed=s).fit_task(stream[0]).head_.weight for s in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_crop_scale_matters(backbone: Backbone, stream: Stream) -> None:
    heads = [
        Finetune(backbone, FinetuneConfig(train={"epochs": 1, "augment": {"min_scale": s}}))
        .fit_task(stream[0])
        .head_.weight
        for s in (0.1, 1.0)
    ]
    assert not torch.equal(*heads)


def _pixels(stream: Stream) -> torch.Tensor:
    image = torch.from_numpy(np.array(stream.test(0).source.read(0).resize((160, 160))))
    return image.permute(2, 0, 1)[None]


def test_images_are_cropped_and_flipped_or_only_flipped(backbone: Backbone, stream: Stream) -> None:
    task = stream[0]
    (plain,) = [x for _, x in task.train.batches(backbone.preprocess, len(task.train))]
    for min_scale in (0.3, 1.0):
        seen: list[torch.Tensor] = []
        train = {"augment": {"min_scale": min_scale}, "batch_size": len(task.train), "epochs": 1}
        method = Finetune(backbone, FinetuneConfig(train=train))
        embed = method.backbone_.embed
        method.backbone_.embed = lambda images, seen=seen, embed=embed: (seen.append(images), embed(images))[1]  # type: ignore[method-assign]
        rng = method._generator(0)
        torch.randn(len(task.classes), backbone.dim, generator=rng)  # the head's new columns are drawn first
        order = torch.randperm(len(task.train), generator=rng)
        method.fit_task(task)
        same = (seen[0] == plain[order]).flatten(1).all(1)
        mirrored = (seen[0] == plain[order].flip(-1)).flatten(1).all(1)
        assert (same | mirrored).all() if min_scale == 1 else not (same | mirrored).any()
        assert 2 < mirrored.sum() < 14 or min_scale < 1
