"""The numbered golden tests of RAIL's specification, section 12."""

from __future__ import annotations

import dataclasses as dc
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from stubs import clusters, known, predicted, scores
from test_clip_baselines import Store, StubTowers, made, taught
from torch import Tensor

from perdure import FeatureStore, load_stream, merge
from perdure.backbone.clip import tiny_clip
from perdure.checks import CHECKS
from perdure.checks.subject import Subject
from perdure.data import Task
from perdure.data.stream import Candidate
from perdure.errors import ConfigError
from perdure.methods.clip_zeroshot import ClipZeroShot
from perdure.methods.rail import RAIL
from perdure.modules import room
from perdure.modules.ridge_forms import Dual
from rows import generator
from tiny_clip import clip

NAMES = ["cat", "dog", "owl", "fox"]
DUAL = {"form": {"name": "dual"}}
PLAIN = {"form": {"name": "primal", "projection_dim": 0}}
FORMS = pytest.mark.parametrize("form", [{"form": {"name": "primal", "projection_dim": 40}}, PLAIN, DUAL])


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def problem(dim: int = 5) -> tuple[Tensor, list[str], dict[str, list[float]]]:
    features, labels = clusters(4, 6, dim)
    rng = torch.Generator().manual_seed(7)
    texts = {name: torch.randn(dim, generator=rng).tolist() for name in NAMES}
    return features, [NAMES[c] for c in labels], texts


def rail(texts: dict[str, list[float]], **settings: Any) -> RAIL:
    method: RAIL = made(RAIL, texts, len(next(iter(texts.values()))), **settings)
    return method


def among(method: RAIL, features: Tensor, names: Sequence[str]) -> Tensor:
    return torch.cat(list(method.scores_among(known(features), [Candidate(name, name) for name in names])))


class Answers:
    """Stands for a ridge regression whose answer is known."""

    def __init__(self, *answer: float) -> None:
        self.answer = torch.tensor([answer], dtype=torch.float64)

    def __call__(self, g: Tensor) -> Tensor:
        return self.answer


def known_case(p: Sequence[float], names: Sequence[str], answer: Sequence[float], beta: float = 0.8) -> list[float]:
    """Scores of three candidates that zero-shot CLIP gives the probabilities ``p``, of which ``names`` were taught."""
    cosines = torch.tensor(p, dtype=torch.float64).log() / 100
    rows = [[float(c), float((1 - c**2).sqrt())] for c in cosines]
    texts = dict(zip(["a", "b", "c"], rows, strict=True))
    method = taught(rail(texts, beta=beta, **PLAIN), (torch.eye(2)[: len(names)], names))
    method.__dict__["ridge_"] = Answers(*answer)
    found: list[float] = among(method, torch.tensor([[1.0, 0.0]]), ["a", "b", "c"])[0].tolist()
    return found


def test_01_the_gate_leaves_an_untaught_winner_alone() -> None:
    assert known_case([0.2, 0.5, 0.3], ["a"], [0.9]) == pytest.approx([0.2, 0.5, 0.3], abs=1e-6)
    assert known_case([0.2, 0.5, 0.3], ["b"], [0.9]) == pytest.approx([0.04, 0.82, 0.06], abs=1e-6)


def test_02_the_ridge_corrects_a_taught_winner() -> None:
    assert known_case([0.4, 0.35, 0.25], ["a", "b"], [0.1, 0.9]) == pytest.approx([0.16, 0.79, 0.05], abs=1e-6)


@FORMS
def test_03_beta_0_is_zero_shot_and_beta_1_the_ridge(form: dict[str, Any]) -> None:
    features, names, texts = problem()
    zero_shot = taught(made(ClipZeroShot, texts, 5), (features, names))
    none = taught(rail(texts, beta=0, **form), (features, names))
    torch.testing.assert_close(scores(none, features), scores(zero_shot, features).softmax(1), atol=1e-5, rtol=0)
    whole = taught(rail(texts, beta=1, **form), (features, names))
    s = whole.ridge_(unit(features.float())).float()
    torch.testing.assert_close(scores(whole, features), s, atol=1e-7, rtol=0)


@FORMS
def test_04_any_order_and_cut_gives_the_same(form: dict[str, Any]) -> None:
    features, names, texts = problem()
    found = []
    for order, cut in (([0, 1, 2, 3], 24), ([3, 1, 0, 2], 9), ([2, 3, 1, 0], 4)):
        at = [i for c in order for i, name in enumerate(names) if name == NAMES[c]]
        parts = [at[i : i + cut] for i in range(0, len(at), cut)]
        method = taught(rail(texts, **form), *((features[part], [names[i] for i in part]) for part in parts))
        assert method.promises.keeps_data == (form is DUAL)
        found.append(among(method, features, NAMES))
        columns = [method.names_.index(name) for name in NAMES]
        found.append(method.ridge_(unit(features.float()))[:, columns])
    for pair in itertools.pairwise(found[::2]):
        torch.testing.assert_close(*pair, atol=1e-7, rtol=0)
    for pair in itertools.pairwise(found[1::2]):
        torch.testing.assert_close(*pair, atol=1e-9, rtol=0)


@FORMS
def test_05_what_zero_shot_takes_for_untaught_stays_as_it_was(form: dict[str, Any]) -> None:
    features, names, texts = problem()
    images = torch.randn(200, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = [[i for i, name in enumerate(names) if name in pair] for pair in (["cat"], ["dog", "owl"])]
    method, before, answers = rail(texts, **form), torch.tensor([]), []
    for part in at:
        taught(method, (features[part], [names[i] for i in part]))
        answers.append(among(method, images, NAMES))
        if not len(before):
            before = taught(made(ClipZeroShot, texts, 5), (features, names)).scores_of(known(images))
            before = torch.cat(list(before)).argmax(1)
    untaught = before == NAMES.index("fox")
    assert 5 < int(untaught.sum()) < 195
    assert torch.equal(answers[0][untaught], answers[1][untaught])
    assert not torch.equal(answers[0][~untaught], answers[1][~untaught])


def test_06_without_random_features_it_is_sklearns_ridge() -> None:
    features, names, texts = problem()
    method = taught(rail(texts, **PLAIN), (features, names))
    x, y = unit(features.float()).double().numpy(), np.eye(4)[[NAMES.index(name) for name in names]]
    expected = Ridge(alpha=0.1, fit_intercept=False).fit(x, y).predict(x)
    np.testing.assert_allclose(method.ridge_(unit(features.float())).numpy(), expected, atol=1e-9)


def test_07_the_dual_is_sklearns_kernel_ridge() -> None:
    features, names, texts = problem()
    method = taught(rail(texts, **DUAL), (features, names))
    x, y = unit(features.float()).double().numpy(), np.eye(4)[[NAMES.index(name) for name in names]]
    expected = KernelRidge(alpha=0.001, kernel="rbf", gamma=0.1).fit(x, y).predict(x)
    np.testing.assert_allclose(method.ridge_(unit(features.float())).numpy(), expected, atol=1e-8)


@FORMS
def test_08_names_alone_change_nothing_that_was_learned(form: dict[str, Any]) -> None:
    features, names, texts = problem()
    first = [i for i, name in enumerate(names) if name in ("cat", "dog")]
    method = taught(rail(texts, **form), (features[first], [names[i] for i in first]))
    weight, closed = method.ridge_.weight, among(method, features, ["cat", "dog"])
    opened = among(method, features, NAMES)
    assert method.ridge_.weight is weight
    assert torch.equal(closed, scores(method, features))
    winners = opened[:, 2:].max(1).values < opened[:, :2].max(1).values
    assert 0 < int(winners.sum()) < len(features)
    assert not torch.equal(opened[:, :2], closed)


def test_no_candidates_have_no_scores() -> None:
    features, names, texts = problem()
    assert among(taught(rail(texts, **PLAIN), (features, names)), features, []).shape == (24, 0)


def test_10_an_image_passes_once_whatever_beta(store: FeatureStore) -> None:
    stream, backbone = load_stream("synthetic", tasks=3), tiny_clip()
    for beta in (0.0, 0.5, 1.0):
        method = RAIL(backbone, store=store, beta=beta, form={"name": "primal", "projection_dim": 32})
        for task in stream:
            method.fit_task(task)
            for test in stream[: task.index + 1]:
                list(method.scores_of(stream.test(test.index)))
    n = sum(len(task.train) + len(stream.test(task.index)) for task in stream)
    assert (backbone.passes.images, backbone.passes.texts) == (n, len(stream.class_names))


def test_11_equal_names_of_two_sets_are_two_columns() -> None:
    features, _, texts = problem()
    method = rail(texts)
    for index, of in enumerate(("one", "two")):
        data = known(features[6 * index : 6 * index + 6], [index] * 6)
        named = {index: f"{of}/cat"}
        method.fit_task(Task(index, data, (index,), class_names=named, display_names={index: "cat"}, dataset=of))
    assert method.names_ == ["one/cat", "two/cat"]
    assert torch.equal(method.texts_[0], method.texts_[1])
    assert predicted(method, features[:12]) == [0] * 6 + [1] * 6


@FORMS
def test_12_a_state_goes_on_where_it_was(form: dict[str, Any]) -> None:
    features, names, texts = problem()
    parts = [[i for i, name in enumerate(names) if name in pair] for pair in (["cat", "dog"], ["owl"], ["fox", "cat"])]
    tasks = [(features[part], [names[i] for i in part]) for part in parts]
    straight = taught(rail(texts, **form), *tasks)
    half = taught(rail(texts, **form), *tasks[:2])
    resumed = rail(texts, **form)
    resumed.load_state_dict(half.state_dict())
    taught(resumed, tasks[2])
    assert torch.equal(among(resumed, features, NAMES), among(straight, features, NAMES))


@pytest.mark.filterwarnings("ignore::perdure.run.merger.TaughtTwiceWarning")  # a stub's images have no content
@FORMS
def test_12b_two_halves_merge_to_the_whole(form: dict[str, Any]) -> None:
    features, names, texts = problem()
    parts = [range(0, 24, 2), range(1, 24, 2)]
    halves = [taught(rail(texts, **form), (features[part], [names[i] for i in part])) for part in parts]
    whole = taught(rail(texts, **form), (features, names))
    both = merge(*halves)
    torch.testing.assert_close(scores(both, features), scores(whole, features), atol=1e-6, rtol=0)
    assert not torch.allclose(scores(halves[0], features), scores(whole, features), atol=1e-3)


def test_12c_other_random_features_are_not_merged() -> None:
    features, names, texts = problem()
    form = {"name": "primal", "projection_dim": 8}
    one, other = (taught(rail(texts, form=form, seed=seed), (features, names)) for seed in (0, 1))
    with pytest.raises(ConfigError, match=r"W_R must be the same in both, but got 'up to 0\.\d+ apart'"):
        merge(one, other)


def test_13_what_memory_cannot_hold_is_refused_with_its_bytes(monkeypatch: Any) -> None:
    features, names, texts = problem()
    with pytest.raises(ConfigError, match="smaller: it takes 1,200,000,000,000,000 bytes"):
        rail(texts, form={"name": "primal", "projection_dim": 10_000_000})
    monkeypatch.setattr(room, "machine_memory", lambda: 5000)
    with pytest.raises(ConfigError, match="images taught must be smaller: it takes 9,216 bytes"):
        taught(rail(texts, **DUAL), (features, names))
    monkeypatch.setattr(room, "machine_memory", lambda: None)
    taught(rail(texts, **DUAL), (features, names))


def test_a_ridge_that_is_numerically_zero_is_refused() -> None:
    ridge = Dual(ridge=1e-20).made(2, generator(), torch.device("cpu"))
    ridge.add(unit(torch.ones(3, 2)), torch.tensor([0, 1, 1]), 2)
    with pytest.raises(ConfigError, match="ridge must be large enough for a positive definite kernel, but got 1e-20"):
        ridge(torch.ones(1, 2))


def test_presets_are_the_released_ones() -> None:
    store, towers = Store(), StubTowers({}, 5)
    primal, dual = (RAIL(towers, {"preset": name}, store=store).config for name in ("xtail_primal", "xtail_dual"))
    assert (primal.form.projection_dim, primal.form.ridge, primal.beta, primal.scale) == (15_000, 0.1, 0.8, 100)
    assert (dual.form.gamma, dual.form.ridge, dual.scale) == (0.1, 0.001, 100)


def test_random_features_begin_as_a_linear_layer() -> None:
    drawn = RAIL(StubTowers({}, 16), store=Store(), form={"name": "primal", "projection_dim": 200}).ridge_.projection
    assert drawn.shape == (16, 200)
    assert 0.24 < float(drawn.max()) <= 0.25
    assert -0.25 <= float(drawn.min()) < -0.24


def test_the_sums_become_a_matrix_where_images_are_many() -> None:
    features, names, texts = problem()
    wide, narrow = ({"form": {"name": "primal", "projection_dim": m}} for m in (60, 30))
    for form, whole in ((wide, 0), (narrow, 1)):
        method = taught(rail(texts, **form), (features[::2], names[::2]), (features[1::2], names[1::2]))
        assert int(method.ridge_.whole) == whole
        h = method.ridge_.lift(unit(features.float()))
        y = torch.eye(4, dtype=torch.float64)[[NAMES.index(name) for name in names]]
        expected = torch.linalg.solve(h.T @ h + 0.1 * torch.eye(h.shape[1], dtype=h.dtype), h.T @ y)
        torch.testing.assert_close(method.ridge_.weight, expected, atol=1e-9, rtol=0)


class KeepsRows(RAIL):
    """RAIL in the dual."""

    tags: ClassVar = dc.replace(RAIL.tags, keeps_data=True, small=DUAL)


@pytest.mark.parametrize(
    "name",
    [
        "check_state_is_declared", "check_refused_state_changes_nothing", "check_resumed_equals_straight",
        "check_odd_tasks_work", "check_classes_may_come_again", "check_batch_does_not_matter",
        "check_data_are_kept_if_the_tag_says_so", "check_failed_task_changes_nothing",
    ],
)  # fmt: skip
def test_the_dual_keeps_its_promises(name: str, tmp_path: Path) -> None:
    CHECKS[name](Subject(KeepsRows, tmp_path, clip))
