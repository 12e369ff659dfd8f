"""What every method promises, shown on the four methods that rest on nothing but the base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream, Task, methods
from perdure.config import MethodConfig, load
from perdure.data import LabelledImages
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import (
    CheckpointError,
    NotFittedError,
    RecipeError,
    ShapeError,
    StreamError,
)
from perdure.methods import Method
from perdure.methods.finetune import Finetune, FinetuneConfig
from perdure.methods.joint import Joint, JointConfig
from perdure.methods.ranpac import RanPAC, RanPACConfig
from perdure.methods.simplecil import SimpleCIL
from perdure.types import Event

IDS = [70, -3, 12, 5]
SMALL = [
    (SimpleCIL, None),
    (RanPAC, RanPACConfig(projection_dim=24)),
    (Joint, JointConfig(train={"epochs": 3})),
    (Finetune, FinetuneConfig(train={"epochs": 1, "batch_size": 4})),
]
each_method = pytest.mark.parametrize(("method", "config"), SMALL, ids=[m.__name__ for m, _ in SMALL])


class Constant(Method[MethodConfig]):
    """Learns nothing and finds all classes equally likely."""

    Config = MethodConfig

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self.draw_ = torch.rand(3, generator=rng)

    def _scores(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), len(self.classes_))


@pytest.fixture
def stream() -> Stream:
    """Two tasks of two classes, four small images each; ids are neither sorted nor consecutive nor positive."""
    return class_incremental(synthetic_dataset(IDS, train_per_class=4, test_per_class=3), [2, 2], IDS)


@pytest.fixture
def images(backbone: Backbone, stream: Stream) -> Tensor:
    return next(stream.test(0).batches(backbone.preprocess, 6))[1]


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    return one == other


def snapshot(method: Method[Any]) -> dict[str, Any]:
    return {k: dict((n, t.clone()) for n, t in v.items()) if isinstance(v, dict) else v for k, v in state(method)}


def state(method: Method[Any]) -> Any:
    return method.state_dict().items()


def test_tasks_come_in_order(backbone: Backbone, stream: Stream) -> None:
    method = Constant(backbone)
    with pytest.raises(StreamError, match=r"Constant\.fit_task: task\.index must be 0 .* but got 1\. Fit the tasks"):
        method.fit_task(stream[1])
    assert method.fit_task(stream[0]) is method
    with pytest.raises(StreamError, match=r"must be 1 .* but got 0"):
        method.fit_task(stream[0])
    assert method.tasks_seen_ == 1


def test_classes_keep_their_order_of_arrival(backbone: Backbone, stream: Stream) -> None:
    method = Constant(backbone).fit_task(stream[0]).fit_task(stream[1])
    assert method.classes_ == IDS
    again = synthetic_dataset([5, 99, -3], train_per_class=1).train
    method.fit_task(Task(2, again, (5, 99, -3)))
    assert method.classes_ == [*IDS, 99]


def test_columns_of_arbitrary_ids(backbone: Backbone) -> None:
    method = Constant(backbone)
    method.classes_ = [70, -3, 12, 5]
    assert method.columns(np.array([5, 70, 70, -3, 12])).tolist() == [3, 0, 0, 1, 2]


def test_equal_scores_go_to_the_class_seen_first(backbone: Backbone, stream: Stream, images: Tensor) -> None:
    method = Constant(backbone).fit_task(stream[0]).fit_task(stream[1])
    assert method.predict(images).tolist() == [70] * 6
    assert method.predict(stream.test(1)).tolist() == [70] * 6


@each_method
def test_predictions_are_class_ids_alone_and_in_any_batch(
    method: type[Method[Any]], config: Any, backbone: Backbone, stream: Stream, images: Tensor
) -> None:
    fitted = method(backbone, config).fit_task(stream[0]).fit_task(stream[1])
    scores = fitted.scores(images)
    assert scores.shape == (6, 4)
    assert scores.dtype == torch.float32
    assert fitted.predict(images).tolist() == [IDS[c] for c in scores.argmax(1)]
    assert torch.equal(torch.cat([fitted.scores(image[None]) for image in images]), scores)
    assert torch.equal(torch.cat(list(fitted.scores_of(stream.test(0)))), scores)
    assert fitted.predict(stream.test(0)).tolist() == fitted.predict(images).tolist()
    nothing = stream.test(0).subset(np.arange(0))
    assert fitted.predict(nothing).tolist() == []


@each_method
def test_nothing_is_predicted_before_the_first_task(
    method: type[Method[Any]], config: Any, backbone: Backbone, stream: Stream, images: Tensor
) -> None:
    fresh = method(backbone, config)
    name = method.__name__
    with pytest.raises(NotFittedError, match=rf"{name}\.scores: tasks seen must be at least 1, but got 0\. Call"):
        fresh.scores(images)
    with pytest.raises(NotFittedError, match=rf"{name}\.members_of: .* got 0"):
        fresh.members_of(stream[0].train)
    with pytest.raises(NotFittedError, match=rf"{name}\.scores_of: .* got 0"):
        next(fresh.scores_of(stream.test(0)))
    with pytest.raises(NotFittedError, match="got 0"):
        fresh.predict(images)


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 160, 160), (2, 160, 160, 3)])
def test_a_batch_must_be_of_the_eval_view(backbone: Backbone, stream: Stream, shape: tuple[int, ...]) -> None:
    method = SimpleCIL(backbone).fit_task(stream[0])
    with pytest.raises(ShapeError) as error:
        method.scores(torch.zeros(shape, dtype=torch.uint8))
    assert str(error.value).startswith("SimpleCIL.scores: images must be of shape (batch, 3, 160, 160), the eval view")
    assert str(shape) in str(error.value)


@each_method
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_task_that_fails_changes_nothing(
    method: type[Method[Any]],
    config: Any,
    failure: type[BaseException],
    backbone: Backbone,
    stream: Stream,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = method(backbone, config).fit_task(stream[0])
    before, scores = snapshot(fitted), fitted.scores(images)
    learn = method._learn

    def learn_and_fail(self: Any, task: Task, rng: torch.Generator) -> None:
        learn(self, task, rng)
        self.extra_ = 1
        raise failure("planned")

    with monkeypatch.context() as patch:
        patch.setattr(method, "_learn", learn_and_fail)
        with pytest.raises(failure, match="planned"):
            fitted.fit_task(stream[1])
    assert same(dict(state(fitted)), before)
    assert fitted.classes_ == IDS[:2]
    assert torch.equal(fitted.scores(images), scores)

    fitted.fit_task(stream[1])
    straight = method(backbone, config).fit_task(stream[0]).fit_task(stream[1])
    assert same(dict(state(fitted)), dict(state(straight)))
    assert not same(dict(state(fitted)), before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt("planned"), CheckpointError("a", "b", "c", "d", "e")])
def test_what_stops_the_loading_of_a_state_comes_through_as_it_is(
    stop: BaseException, backbone: Backbone, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, state: Any) -> None:
        raise stop

    state = SimpleCIL(backbone).fit_task(stream[0]).state_dict()
    monkeypatch.setattr(SimpleCIL, "sizes_in", refuse)
    with pytest.raises(type(stop)) as error:
        SimpleCIL(backbone).load_state_dict(state)
    assert error.value is stop


def test_training_that_fails_half_way_restores_the_weights(
    backbone: Backbone, stream: Stream, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Finetune(backbone, FinetuneConfig(train={"epochs": 2, "batch_size": 4, "lr": 0.1})).fit_task(stream[0])
    before, scores, steps = snapshot(method), method.scores(images), []

    def third_step_fails(event: Event) -> None:
        steps.append(event.done)
        if len(steps) == 3:
            assert not same(snapshot(method), before)  # two steps are done
            raise MemoryError("planned")

    monkeypatch.setattr(method.store, "progress", third_step_fails)
    with pytest.raises(MemoryError, match="planned"):
        method.fit_task(stream[1])
    assert same(snapshot(method), before)
    assert torch.equal(method.scores(images), scores)


@each_method
def test_a_state_round_trip(
    method: type[Method[Any]], config: Any, backbone: Backbone, stream: Stream, images: Tensor
) -> None:
    fitted = method(backbone, config, seed=5).fit_task(stream[0])
    loaded = method(backbone, config, seed=5).load_state_dict(fitted.state_dict())
    assert torch.equal(loaded.scores(images), fitted.scores(images))
    assert loaded.fit_task(stream[1]).classes_ == IDS
    assert fitted.classes_ == IDS[:2]
    straight = fitted.fit_task(stream[1])
    assert torch.equal(loaded.scores(images), straight.scores(images))


def test_the_state_of_another_method_is_refused(backbone: Backbone, stream: Stream) -> None:
    state = SimpleCIL(backbone).fit_task(stream[0]).state_dict()
    with pytest.raises(CheckpointError, match=r"(?s)gram_.*but got.*sums_.*another method than RanPAC"):
        RanPAC(backbone, RanPACConfig(projection_dim=8)).load_state_dict(state)


def test_the_state_of_another_backbone_is_refused(backbone: Backbone, stream: Stream) -> None:
    other = Backbone.load("test_efficientnet", pretrained=False, device="cpu")
    method = Finetune(backbone)
    before = snapshot(method)
    with pytest.raises(CheckpointError, match="origin_"):
        method.load_state_dict(Finetune(other).state_dict())
    assert same(snapshot(method), before)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("sums_", "text", "float64 of shape (classes, d) = (2, 64), but got 'text'"),
        ("sums_", None, "float64 of shape (classes, d) = (2, 64), but got None"),
        ("sums_", torch.ones(1, 64, dtype=torch.float64), "= (2, 64), but got 'float64 of shape (1, 64)'"),
        ("sums_", torch.ones(2, 64), "float64 of shape (classes, d) = (2, 64), but got 'float32 of shape (2, 64)'"),
        ("sums_", torch.full((2, 64), torch.nan).double(), "finite, but got nan"),
        ("counts_", [1, 2], "int64 of shape (classes) = (2), but got 'a list of 2 (int)'"),
        ("counts_", torch.tensor([4, -1]), "at least 0, but got -1"),
        ("classes_", torch.zeros(2), "a list of ints, (classes) = (any), but got 'float32 of shape (2,)'"),
        ("classes_", {"0": 1}, "a list of ints, (classes) = (any), but got 'a mapping with 0'"),
        ("classes_", [70, 70], "distinct, but got [70, 70]"),
        ("tasks_seen_", "1", "one int, but got '1'"),
        ("tasks_seen_", True, "one int, but got True"),
    ],
)
def test_an_entry_that_is_not_as_declared_is_refused(
    key: str, value: object, told: str, backbone: Backbone, stream: Stream
) -> None:
    fitted, untaught = SimpleCIL(backbone).fit_task(stream[0]), SimpleCIL(backbone)
    with pytest.raises(CheckpointError) as error:
        untaught.load_state_dict({**fitted.state_dict(), key: value})
    assert str(error.value).startswith(f"load_state_dict: {key} must be ")
    assert f"{told}. Load what state_dict gave" in str(error.value)
    assert untaught.classes_ == []
    assert untaught.sums_.shape == (0, 64)


def test_columns_too_many_or_too_few_are_refused(backbone: Backbone, stream: Stream) -> None:
    state = SimpleCIL(backbone).fit_task(stream[0]).state_dict()
    for classes in (IDS[:1], IDS[:3]):
        names = {key: [str(c) for c in classes] for key in ("names_", "displays_")}
        with pytest.raises(CheckpointError, match=rf"counts_ must be int64 of shape \(classes\) = \({len(classes)}\)"):
            SimpleCIL(backbone).load_state_dict({**state, **names, "classes_": classes})


@pytest.mark.parametrize(("value", "told"), [(torch.zeros(2), "Tensor"), ([1], "list")])
def test_an_attribute_that_is_not_declared_keeps_its_kind(
    value: object, told: str, backbone: Backbone, stream: Stream
) -> None:
    class Undeclared(Constant):
        def setup(self) -> None:
            self.draw_ = torch.zeros(3)
            self.note_: Any = None
            self.rate_ = 0.5

    state = Undeclared(backbone).fit_task(stream[0]).state_dict()
    loaded = Undeclared(backbone).load_state_dict({**state, "note_": value, "rate_": 1})
    assert loaded.note_ is value
    assert torch.equal(loaded.draw_, state["draw_"])
    with pytest.raises(CheckpointError, match=f"rate_ must be of the kind float, but got '{told}'. Load what"):
        Undeclared(backbone).load_state_dict({**state, "rate_": value})


def test_randomness_has_its_own_source(backbone: Backbone) -> None:
    def draw(seed: int, task: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=Constant(backbone, seed=seed)._generator(task)).tolist())

    torch.manual_seed(1)
    first = draw(0, 0)
    torch.manual_seed(2)
    assert draw(0, 0) == first
    assert len({draw(seed, task) for seed in range(4) for task in range(4)}) == 16


@each_method
def test_the_global_generators_are_neither_read_nor_moved(
    method: type[Method[Any]], config: Any, backbone: Backbone, stream: Stream, images: Tensor
) -> None:
    fitted = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        fitted.append(method(backbone, config).fit_task(stream[0]))
        fitted[-1].predict(images)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
    assert same(dict(state(fitted[0])), dict(state(fitted[1])))


def test_the_seed_matters(backbone: Backbone, stream: Stream) -> None:
    one, other = (Constant(backbone, seed=seed).fit_task(stream[0]) for seed in (0, 1))
    assert not torch.equal(one.draw_, other.draw_)
    later = one.fit_task(stream[1]).draw_
    assert not torch.equal(later, Constant(backbone, seed=0).fit_task(stream[0]).draw_)


@each_method
def test_learned_parameters(method: type[Method[Any]], config: Any, backbone: Backbone, stream: Stream) -> None:
    fitted = method(backbone, config).fit_task(stream[0]).fit_task(stream[1])
    weights = sum(p.numel() for p in backbone.parameters())
    expected = {SimpleCIL: 4 * 64, RanPAC: 4 * 24, Joint: 4 * 65, Finetune: 4 * 65 + weights}
    assert fitted.learned_parameters() == expected[method]


def test_feature_methods_pass_every_image_once(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    for method in (SimpleCIL, Joint):
        fitted = method(backbone, store=store)
        for task in stream:
            fitted.fit_task(task)
            fitted.predict(stream.test(0))
    assert backbone.passes.images == 16 + 6


def test_testing_reports_progress(backbone: Backbone, tmp_path: Any, stream: Stream) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(tmp_path / "heard", progress=lambda e: heard.append((e.stage, e.done, e.total)))
    big = synthetic_dataset(IDS, test_per_class=5).test
    Constant(backbone, store=store).fit_task(stream[0]).predict(big)
    assert heard == [("testing", 8, 20), ("testing", 16, 20), ("testing", 20, 20)]


def test_the_registry_knows_the_methods() -> None:
    assert {"simplecil", "ranpac", "joint", "finetune"} <= set(methods.names())
    assert methods.get("ranpac") is RanPAC


def test_config_defaults_and_presets() -> None:
    assert load(RanPACConfig, {}) == RanPACConfig() == load(RanPACConfig, {"preset": "default"})
    assert load(RanPACConfig, {"preset": "pilot"}).head == "cosine"
    assert load(RanPACConfig, {"preset": "pilot", "head": "linear", "projection_dim": "16"}) == RanPACConfig(
        preset="pilot", head="linear", projection_dim=16
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"projection_dim": -7}, ["projection_dim must be", "-7"]),
        ({"ridge": "sometimes"}, ["ridge.name must be", "'per_task', 'fixed', 'cumulative'", "'sometimes'"]),
        ({"ridge": {"name": "fixed", "value": 0}}, ["ridge.value must be", "greater than 0", "got 0"]),
        ({"ridge": {"validation_fraction": 1.5}}, ["ridge.validation_fraction must be", "less than 1", "1.5"]),
        ({"ridge": {"value": 1.0}}, ["'ridge.value'", "Another kind of ridge has it"]),
        ({"ridge_value": 1.0}, ["'ridge_value'", "Write it as ridge.value."]),
        ({"validation_fraction": 0.1}, ["'validation_fraction'", "Write it as ridge.validation_fraction."]),
        ({"preset": "papr"}, ["preset must be the name of a preset", "'papr'", "Did you mean 'paper'", "paper_ssf"]),
        (
            {"projection_dims": 3},
            ["key must be one of its fields", "'projection_dims'", "Did you mean 'projection_dim'"],
        ),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        load(RanPACConfig, values)
    assert str(error.value).startswith("RanPACConfig: ")
    assert all(text in str(error.value) for text in told), str(error.value)


def test_a_test_set_needs_no_known_labels(backbone: Backbone, stream: Stream) -> None:
    method = SimpleCIL(backbone).fit_task(stream[0])
    unlabelled = LabelledImages(stream.test(0).source, np.full(6, 10**6), stream.test(0).rows)
    assert method.predict(unlabelled).tolist() == method.predict(stream.test(0)).tolist()
