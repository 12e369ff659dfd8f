"""Two methods as one: statistics are those of all images, weights are merged, and all that does not fit is told."""

from __future__ import annotations

import dataclasses as dc
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import perdure
from perdure import Backbone, FeatureStore, methods
from perdure.backbone.tiny import TINY, small_vit
from perdure.checks.subject import equal, frozen_state, reference_for, small_stream
from perdure.data import Stream, Task
from perdure.errors import CheckpointError, ConfigError, DataError, NotFittedError, StorageError
from perdure.learned import learned
from perdure.methods import Method
from perdure.methods.aper import APER
from perdure.methods.ease import EASE
from perdure.methods.esn import ESN
from perdure.methods.fecam import FeCAM
from perdure.methods.finetune import Finetune
from perdure.methods.gem import GEM
from perdure.methods.joint_finetune import JointFinetune
from perdure.methods.lae import LAE
from perdure.methods.mos import MOS
from perdure.methods.ranpac import RanPAC
from perdure.methods.simplecil import SimpleCIL
from perdure.methods.slca import SLCA
from perdure.modules.merging import merged
from perdure.run import merger
from perdure.run.merger import TaughtTwiceWarning, merge, merge_saved
from small_folders import fill_named

STREAM = small_stream()
SMALL = {"train": {"epochs": 1, "batch_size": 8}}


def part(task: Task, which: int | None) -> Task:
    """Every second image of a task; all of them for None."""
    rows = np.flatnonzero(np.arange(len(task.train)) % 2 == which) if which is not None else np.arange(len(task.train))
    return dc.replace(task, train=task.train.subset(rows))


@pytest.fixture
def taught(store: FeatureStore) -> Any:
    """Makes a method that learned a part of the first tasks' images."""

    def made(
        kind: Any, which: int | None, *, backbone: Backbone | None = None, stream: Stream = STREAM, tasks: int = 2,
        seed: int = 0, **settings: Any,
    ) -> Method[Any]:  # fmt: skip
        fitting = small_vit() if kind.tags.backbone == "any" else TINY[kind.tags.backbone]()
        config = {**kind.tags.small, **settings}
        method = kind(backbone or fitting, config, seed=seed, store=store, **reference_for(kind))
        for task in stream[:tasks]:
            method.fit_task(part(task, which))
        return method

    return made


def scores(method: Method[Any]) -> Tensor:
    """Of the first two tasks' test images."""
    return torch.cat([method.scores(STREAM.test(t)) for t in range(2)])


MERGED = {
    "agem", "coda_prompt", "cofima", "coma", "dap", "dualprompt", "er", "fecam", "finetune", "gem", "joint_finetune",
    "l2p", "lae", "ranpac", "simplecil", "slca", "vpt",
}  # fmt: skip
REASONS = {
    "aper": ["tuned_ differ, and sums_ "],
    "ease": ["adapters_ differ, and sums_ "],
    "joint": ["features_ (of every image seen) differ", "mean_ (mean", "scale_ (their"],
    "mos": ["adapters_ differ, and sums_ ", "adapters_ differ, and gaussians_ "],
    "mos_release": ["prefix_ (S_t", "working_ (W"],
    "proof": ["network_ (learned in every task) differ", "contexts_ (C_k"],
    "zscl": ["texts_ (w_c"],
}


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_merged_or_refused_with_a_reason(name: str, taught: Any) -> None:
    kind = methods.get(name)
    first, second = (taught(kind, which, tasks=1) for which in (0, 1))
    before = [frozen_state(method) for method in (first, second)]
    if name in REASONS or (name not in MERGED and list(merger._differences(first, second))):
        told = refusal(first, second)
        assert all(reason in told for reason in REASONS.get(name, ["differ"]))
    else:
        both = merge(first, second, weight=0.25)
        assert torch.isfinite(both.scores(STREAM.test(0))).all()
        assert {*both.taught_keys} == {*first.taught_keys, *second.taught_keys}
        assert both.n_taught_ == first.n_taught_ + second.n_taught_
        both.fit_task(STREAM[1])
    assert [equal(copy, m.state_dict()) for copy, m in zip(before, (first, second), strict=True)] == [True, True]


def positive_vit() -> Backbone:
    """Tukey's powers are for features without signs."""
    backbone = small_vit()
    backbone.model.norm.bias.data += 5.0  # type: ignore[union-attr, operator]
    return backbone


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SimpleCIL, {}),
        (FeCAM, {}),
        (FeCAM, {"features": "tukey", "metric": {"normalise": True}}),
        (FeCAM, {"covariance": "common"}),
        (RanPAC, {"ridge": {"name": "fixed", "value": 10.0}}),
        (RanPAC, {"ridge": {"name": "fixed", "value": 10.0}, "projection_dim": 30, "head": "cosine"}),
        (RanPAC, {"ridge": {"name": "fixed", "value": 10.0}, "projection_dim": 0}),
    ],
)
def test_statistics_are_those_of_all_images(kind: Any, settings: dict[str, Any], taught: Any) -> None:
    made = positive_vit if settings.get("features") == "tukey" else small_vit
    first, second, whole = (taught(kind, which, backbone=made(), **settings) for which in (0, 1, None))
    apart = scores(first)
    for weight in (0.0, 0.5):
        both = merge(first, second, weight=weight)
        torch.testing.assert_close(scores(both), scores(whole), rtol=1e-5, atol=1e-6)
    assert torch.equal(scores(first), apart), "what was derived from the first is not shared"
    assert not torch.allclose(apart, scores(whole), rtol=1e-5, atol=1e-6)
    for method in (both, whole):
        method.fit_task(STREAM[2])
    torch.testing.assert_close(both.scores(STREAM.test(2)), whole.scores(STREAM.test(2)), rtol=1e-4, atol=1e-5)


def test_weights_are_merged_and_what_follows_from_them_is_anew(taught: Any) -> None:
    first, second = (taught(SLCA, which) for which in (0, 1))
    both = merge(first, second, weight=0.25)
    for name in ("backbone_", "head_", "raw_head_"):
        ends = [getattr(m, name).state_dict() for m in (first, second)]
        assert equal(getattr(both, name).state_dict(), merged(*ends, how="linear", weight=0.25))
    g, g1, g2 = (m.gaussians_ for m in (both, first, second))
    assert g.counts.tolist() == (g1.counts + g2.counts).tolist()
    torch.testing.assert_close(g.means, (g1.means + g2.means) / 2)
    assert both.seed == first.seed
    assert both.slot_columns_ == first.slot_columns_


def test_the_ends_are_the_methods_themselves(taught: Any) -> None:
    first, second = (taught(Finetune, which) for which in (0, 1))
    for weight, end in ((0.0, first), (1.0, second)):
        assert torch.equal(scores(merge(first, second, weight=weight)), scores(end))


def test_statistics_under_equal_parts_are_added_and_class_means_are_right(taught: Any) -> None:
    first, second = (taught(APER, which) for which in (0, 1))
    second.tuned_.load_state_dict(first.tuned_.state_dict())
    both = merge(first, second)
    assert torch.equal(both.sums_, first.sums_ + second.sums_)
    assert both.counts_.tolist() == [6] * 4
    for kind in (EASE, MOS):
        one = taught(kind, 0)
        with pytest.warns(TaughtTwiceWarning, match="the same 12 of 12 images"):
            twice = merge(one, one)
        assert all(map(torch.equal, twice.sums_, [2 * s for s in one.sums_]))
        assert twice.n_taught_ == one.n_taught_, "an image is remembered once, though it counts twice"


def test_both_experts_are_merged_each_with_its_like(taught: Any) -> None:
    first, second = (taught(LAE, which, turnover=0.4) for which in (0, 1))
    both = merge(first, second, weight=0.25)
    for name in ("online_", "offline_", "head_"):
        ends = [getattr(m, name).state_dict() for m in (first, second)]
        assert equal(getattr(both, name).state_dict(), merged(*ends, how="linear", weight=0.25))
    assert not equal(both.online_.state_dict(), both.offline_.state_dict())


def test_kept_images_are_of_the_task_that_taught_them(taught: Any) -> None:
    """The same classes come in both tasks, and so only an image tells its own."""
    quarters = [STREAM[0].train.subset(np.arange(i, len(STREAM[0].train), 4)) for i in range(4)]
    tasks = [dc.replace(STREAM[0], index=i % 2, train=images) for i, images in enumerate(quarters)]
    first, second = (taught(GEM, None, stream=pair, memory={"n_per_class": 5}) for pair in (tasks[:2], tasks[2:]))
    assert [len(m.exemplar_tasks_) for m in (first, second)] == [6, 6]
    both, of = merge(first, second), {key: t.index for t in tasks for key in t.train.keys.tolist()}
    assert both.exemplar_tasks_ == [of[key] for key in both.exemplars_.images().keys.tolist()]
    assert len(both.exemplar_tasks_) == 2 * 5, "no more than one may keep"
    both.fit_task(dc.replace(STREAM[1], index=2))


def test_after_joint_fine_tuning_the_next_task_starts_from_the_images_of_both(taught: Any) -> None:
    first, second, whole = (taught(JointFinetune, which, tasks=1) for which in (0, 1, None))
    both = merge(first, second)
    assert {*both.exemplars_.images().keys} == {*whole.exemplars_.images().keys} == {*both.taught_keys}


class Folding(nn.Linear):
    def merge(self) -> None:
        """Another thing of that name."""
        raise AssertionError


def test_a_method_from_elsewhere_is_merged_by_its_kinds_of_attributes(taught: Any) -> None:
    class Odd(SimpleCIL):
        steps_: int = learned("", int, "steps", merges="added")
        rate_: float = learned("", float, "rate", merges="weights")
        mean_: Tensor = learned("2", torch.float32, "a mean", merges="weights")
        word_: str = learned("", str, "a word", merges="first")
        tags: ClassVar = SimpleCIL.tags

        def setup(self) -> None:
            self.extra_, self.plain_ = Folding(2, 2), {"a": 1}

    first, second = (taught(Odd, which) for which in (0, 1))
    for k, m in enumerate((first, second)):
        m.steps_, m.rate_, m.mean_, m.word_ = 3 + k, 1.0 + k, torch.full((2,), 1.0 + k), "ab"[k]
    both = merge(first, second, weight=0.25)
    assert (both.steps_, both.rate_, both.mean_.tolist(), both.word_) == (7, 1.25, [1.25, 1.25], "a")
    ends = [m.extra_.weight for m in (first, second)]
    assert torch.equal(both.extra_.weight, torch.lerp(*ends, 0.25))
    second.plain_ = {"a": 2}
    with pytest.raises(ConfigError, match=r"plain_ \(not declared\) differ"):
        merge(first, second)


# --- refused


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        merge(*args, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_all_differences_are_told_at_once(taught: Any) -> None:
    first = taught(Finetune, 0)
    second = taught(Finetune, 1, train={"epochs": 1, "batch_size": 8, "lr": 0.5}, backbone=small_vit("test_vit2"))
    told = refusal(first, second)
    assert "settings differ: train.lr 0.03 and 0.5\n" in told
    assert f"backbones differ: test_vit ({first.backbone.identity}) and test_vit2 ({second.backbone.identity})" in told
    assert "methods differ: Finetune and SimpleCIL" in refusal(first, taught(SimpleCIL, 1))
    one_section = taught(RanPAC, 0, ridge={"name": "fixed", "value": 2.0})
    assert "settings differ: ridge.value 2.0 and None" in refusal(one_section, taught(RanPAC, 1))


def test_other_classes_or_tasks_are_refused(taught: Any) -> None:
    first = taught(SimpleCIL, 0)
    other = small_stream(ids=[7, 8, 9, 10, 11, 12])
    assert "classes differ: ['pattern" in refusal(first, taught(SimpleCIL, 1, stream=other))
    assert "they came in another order, or under other ids" in refusal(
        first, taught(SimpleCIL, 1, stream=small_stream(ids=list(STREAM_IDS[2:4] + STREAM_IDS[:2] + STREAM_IDS[4:])))
    )
    one_task = small_stream((4, 2))
    assert "tasks_seen_ (tasks learned) differ: 2 and 1" in refusal(
        first, taught(SimpleCIL, 1, stream=one_task, tasks=1)
    )
    assert "projection_seed_ (draws W_R) differ: 0 and 1" in refusal(taught(RanPAC, 0), taught(RanPAC, 1, seed=1))


STREAM_IDS = tuple(c for task in STREAM for c in task.classes)


def test_wrong_arguments_are_refused_before_anything_is_computed(
    taught: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(merger, "fisher_of_images", None)
    first, second = (taught(SimpleCIL, which) for which in (0, 1))
    assert "'cubic'" in refusal(first, second, how="cubic")
    assert "1.5" in refusal(first, second, weight=1.5)
    assert "left out for how='linear', but got 'digits'" in refusal(first, second, data="digits")
    assert "'linear' for SimpleCIL, which has no fine-tuned network" in (
        told := refusal(first, second, how="fisher", data="digits")
    )
    assert "(--mode linear)" in told, "as the command line names it, too"
    assert "'linear' for L2P" in refusal(*(taught(methods.get("l2p"), which) for which in (0, 1)), how="fisher")
    tuned = [taught(Finetune, which) for which in (0, 1)]
    assert "data must be given for how='fisher', since Finetune holds no Fisher information, but got None" in refusal(
        *tuned, how="fisher"
    )
    with pytest.raises(DataError, match=r"(?s)known to the methods.*zebra"):
        merge(*tuned, how="fisher", data=fill_named(tmp_path / "data", {"zebra": 5, "pattern 0": 5}))
    with pytest.raises(NotFittedError, match="merge"):
        merge(SimpleCIL(small_vit()), SimpleCIL(small_vit()))


def test_temperatures_that_were_chosen_apart_are_refused(taught: Any) -> None:
    first, second = (taught(ESN, which, tasks=1) for which in (0, 1))
    assert torch.isfinite(merge(first, second).scores(STREAM.test(0))).all()
    second.temperatures_ = [2.0]
    assert "temperatures_ (T) differ, and have no rule by which they are merged" in refusal(first, second)


# --- Fisher information


@pytest.mark.parametrize(
    ("kind", "network", "prefix"), [(Finetune, "backbone_", "model."), (JointFinetune, "part_", "")]
)
def test_fisher_information_is_computed_on_the_named_images(
    kind: Any, network: str, prefix: str, taught: Any, tmp_path: Path
) -> None:
    first, second = (taught(kind, which) for which in (0, 1))
    data = fill_named(tmp_path / "data", dict.fromkeys(first.names_, 5))
    both, again = (merge(first, second, how="fisher", weight=0.25, data=data) for _ in range(2))
    assert equal(both.state_dict(), again.state_dict())
    linear = merge(first, second, weight=0.25)
    assert equal(both.head_.state_dict(), linear.head_.state_dict()), "heads have no Fisher information"
    images, columns = merger._images(first, data)
    assert len(images) == 4 * len(first.names_)
    assert [images.labels.tolist().index(c) for c in range(4)] != columns.tolist()
    key = f"{prefix}blocks.1.mlp.fc1.weight"
    f1, f2 = (merger._fisher_on(m, network, images, columns)[key].double() for m in (first, second))
    a, b, found, plain = (getattr(m, network).state_dict()[key].double() for m in (first, second, both, linear))
    wanted = (0.75 * f1 * a + 0.25 * f2 * b) / (0.75 * f1 + 0.25 * f2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(plain, wanted, rtol=1e-5, atol=1e-7)


def in_a_row(module: nn.Module) -> Tensor:
    return torch.cat([p.reshape(-1) for p in module.parameters()])


class Holds(Finetune):
    """Holds its Fisher information, in a row."""

    fisher_: Tensor = learned("weights", torch.float32, "of the backbone", merges="fisher", under="backbone_")


def test_fisher_information_that_a_state_holds_is_taken(taught: Any) -> None:
    first, second = (taught(Holds, which) for which in (0, 1))
    n = sum(p.numel() for p in first.backbone_.parameters())
    assert "data must be given" in refusal(first, second, how="fisher")
    first.fisher_, second.fisher_ = torch.full((n,), 3.0), torch.full((n,), 1.0)
    second.fisher_[-64:] = 0
    both = merge(first, second, how="fisher")
    first_row, second_row, found = (in_a_row(m.backbone_) for m in (first, second, both))
    share = torch.full((n,), 0.25)
    share[-64:] = 0
    torch.testing.assert_close(found, torch.lerp(first_row, second_row, share))
    assert both.fisher_.unique().tolist() == [1.5, 2.0], "the information of both, by the weight"
    assert "left out, since the methods hold" in refusal(first, second, how="fisher", data="digits")


# --- in folders


@pytest.fixture
def folders(taught: Any, tmp_path: Path) -> tuple[Path, Path]:
    load = functools.partial(Backbone.load, "test_vit", pretrained=False, device="cpu")
    for which in (0, 1):
        perdure.save(taught(SimpleCIL, which, backbone=load()), tmp_path / str(which))
    return tmp_path / "0", tmp_path / "1"


def test_folders_are_merged_into_a_folder(
    folders: tuple[Path, Path], tmp_path: Path, taught: Any, store: FeatureStore
) -> None:
    found = merge_saved(*folders, tmp_path / "both")
    again = perdure.load(tmp_path / "both", store=store)
    assert equal(again.state_dict(), found.state_dict())
    whole = taught(SimpleCIL, None, backbone=again.backbone)
    torch.testing.assert_close(scores(again), scores(whole), rtol=1e-6, atol=1e-6)
    assert again.predict_names(STREAM.test(0)) == whole.predict_names(STREAM.test(0))
    again.fit_task(STREAM[2])
    merge_saved(*folders, tmp_path / "both")
    assert equal(perdure.load(tmp_path / "both").state_dict(), found.state_dict()), "replaced"


def test_images_that_both_learned_are_told(taught: Any) -> None:
    first, second = (taught(SimpleCIL, which) for which in (0, None))
    with pytest.warns(TaughtTwiceWarning, match=rf"the same {first.n_taught_} of {second.n_taught_} images"):
        both = merge(first, second)
    assert both.n_taught_ == second.n_taught_


def test_a_place_that_is_taken_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("...")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        merge_saved(tmp_path / "nothing", tmp_path / "nothing", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_nothing_behind(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perdure.run.saved.save_state", full)
    with pytest.raises(StorageError, match="No space left"):
        merge_saved(*folders, tmp_path / "both")
    assert not (tmp_path / "both").exists()
