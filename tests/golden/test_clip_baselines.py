"""The numbered golden tests of the CLIP baselines' specification, section 12, and the refusals of section 9."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stubs import StubBackbone, StubStore, clusters, known, predicted, scores
from torch import Tensor, nn

from perdure import FeatureStore, load_stream, merge
from perdure.backbone import TwoTowers, normalised
from perdure.backbone.clip import tiny_clip
from perdure.data import Task
from perdure.data.stream import Candidate
from perdure.errors import BackboneError, ConfigError, RecipeError, StreamError
from perdure.methods.clip_cache import ClipCache
from perdure.methods.clip_linear import ClipLinear
from perdure.methods.clip_prototypes import ClipPrototypes
from perdure.methods.clip_zeroshot import ClipZeroShot
from perdure.methods.coop import CoOp
from perdure.methods.simplecil import SimpleCIL
from tiny_clip import clip

Vectors = Mapping[str, Sequence[float]]


class StubTowers(TwoTowers):
    """A CLIP that knows some texts, and no image."""

    identity = shelf = fingerprint = "stub"

    def __init__(self, texts: Vectors, dim: int) -> None:
        nn.Module.__init__(self)
        self.known, self.dim, self.logit_scale, self.name = texts, dim, 100.0, "stub"
        self.device, self.preprocess = StubBackbone.device, StubBackbone.preprocess

    @property
    def text(self) -> Any:
        return self

    def tokens(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[*map(ord, text.lower().ljust(40))] for text in texts])


class Store(StubStore):
    def texts(self, backbone: StubTowers, texts: Sequence[str]) -> Tensor:
        return torch.tensor([list(backbone.known[text]) for text in texts], dtype=torch.float32).view(-1, backbone.dim)


def made(kind: Any, texts: Vectors, dim: int = 2, **settings: Any) -> Any:
    return kind(StubTowers(texts, dim), store=Store(), **{"templates": "bare", **settings})


def taught(method: Any, *tasks: tuple[Any, Sequence[str]]) -> Any:
    """Features and the name of each one's class, task by task."""
    for features, names in tasks:
        order = {**{n: c for c, n in enumerate(method.names_)}}
        for name in names:
            order.setdefault(name, len(order))
        mine = {order[name]: name for name in names}
        data = known(features, [order[name] for name in names])
        method.fit_task(Task(method.tasks_seen_, data, tuple(mine), class_names=mine, display_names=mine))
    return method


E1, E2, E3 = [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]
NEAR = [0.30, 0.28, 0.25, math.sqrt(1 - 0.30**2 - 0.28**2 - 0.25**2)]


def test_01_raw_and_unit_means_point_elsewhere() -> None:
    rows, names = [[3, 0], [0, 1]], ["cat", "cat"]
    raw, unit = (
        taught(made(ClipPrototypes, {"cat": [1, 0]}, text=0.0, mean=mean), (rows, names)) for mean in ("raw", "unit")
    )
    assert raw.prototypes[0].tolist() == pytest.approx([0.948683, 0.316228], abs=1e-6)
    assert unit.prototypes[0].tolist() == pytest.approx([0.707107, 0.707107], abs=1e-6)
    texts = {"a cat": [3, 0], "the cat": [0, 1]}  # an ensemble of templates is of length 1 each
    ensemble = taught(made(ClipZeroShot, texts, templates=["a {}", "the {}"]), ([[1, 0]], ["cat"]))
    assert ensemble.texts_[0].tolist() == pytest.approx([0.707107, 0.707107], abs=1e-6)


def test_02_an_unseen_name_enters_no_softmax() -> None:
    texts = {"cat": E1, "dog": E2, "owl": E3}
    method = taught(made(ClipZeroShot, texts, 4), ([E1, E2], ["cat", "dog"]))
    assert scores(method, [NEAR]).softmax(1)[0].tolist() == pytest.approx([0.880797, 0.119203], abs=1e-6)
    taught(method, ([E3], ["owl"]))
    assert scores(method, [NEAR]).softmax(1)[0].tolist() == pytest.approx([0.875601, 0.118499, 0.005900], abs=1e-6)
    assert predicted(method, [NEAR]) == [0]


def test_03_a_mix_of_name_and_images() -> None:
    features, labels = clusters(3, 4, 3)
    names = ["cat", "dog", "owl"]
    of = [names[c] for c in labels]
    texts = {"cat": [1, 0.2, 0], "dog": [0, 1, 0.1], "owl": [0.3, 0, 1]}
    half = taught(made(ClipPrototypes, {"cat": [1, 0]}), ([[0, 1]], ["cat"]))
    assert half.prototypes[0].tolist() == pytest.approx([0.7071, 0.7071], abs=1e-4)
    name_alone = taught(made(ClipPrototypes, texts, 3, text=1.0), (features, of))
    zero_shot = taught(made(ClipZeroShot, texts, 3), (features, of))
    torch.testing.assert_close(scores(name_alone, features), scores(zero_shot, features), atol=1e-4, rtol=0)
    assert predicted(name_alone, features) == predicted(zero_shot, features)
    images_alone = taught(made(ClipPrototypes, texts, 3, text=0.0), (features, of))
    assert (images_alone.promises.class_names, images_alone.promises.open_vocabulary) == (False, False)
    assert (name_alone.promises.class_names, name_alone.promises.open_vocabulary) == (True, True)
    plain = SimpleCIL(StubBackbone(3), store=StubStore())  # type: ignore[arg-type]
    taught(plain, (features, of))
    torch.testing.assert_close(scores(images_alone, features) / 100, scores(plain, features), atol=1e-6, rtol=0)


def beside(cosine: float) -> list[float]:
    """A key at that cosine from (1, 0)."""
    return [cosine, math.sqrt(1 - cosine**2)]


def cache(texts: Vectors | None = None, **settings: Any) -> Any:
    rows, names = [beside(0.9), beside(0.7), beside(0.5)], ["cat", "cat", "dog"]
    return taught(made(ClipCache, texts or {"cat": beside(0.28), "dog": beside(0.30)}, **settings), (rows, names))


def test_04_votes_of_stored_features() -> None:
    votes = cache().votes(torch.tensor([[1.0, 0.0]]))
    assert votes[0].tolist() == pytest.approx([0.769000, 0.063928], abs=1e-6)
    mean = cache(vote="mean").votes(torch.tensor([[1.0, 0.0]]))
    assert mean[0].tolist() == pytest.approx([0.769000 / 2, 0.063928], abs=1e-6)


def test_05_votes_beside_zero_shot_scores() -> None:
    assert scores(cache(), [[1, 0]])[0].tolist() == pytest.approx([28.7690, 30.0639], abs=1e-4)
    assert predicted(cache(alpha=2.836), [[1, 0]]) == [1]
    assert predicted(cache(alpha=2.837), [[1, 0]]) == [0]


def test_06_limits_of_beta_and_alpha() -> None:
    rows, names = [beside(0.9), beside(0.7), beside(0.5)], ["cat"] * 3
    flat = taught(made(ClipCache, {"cat": [1, 0]}, beta=1e-4), (rows, names))
    assert float(flat.votes(torch.tensor([[1.0, 0.0]]))) == pytest.approx(2.999910, abs=1e-6)
    texts = {"cat": beside(0.28), "dog": beside(0.30)}
    zero_shot = taught(made(ClipZeroShot, texts), ([[1, 0], [0, 1]], ["cat", "dog"]))
    assert torch.equal(scores(cache(alpha=0.0), [[1, 0]]), scores(zero_shot, [[1, 0]]))


def test_06b_the_cache_has_a_bound() -> None:
    features, labels = clusters(2, 9, 2)
    names = [("cat", "dog")[c] for c in labels]
    method = taught(made(ClipCache, {"cat": [1, 0], "dog": [0, 1]}, per_class=3), (features, names))
    assert torch.bincount(method.key_columns_).tolist() == [3, 3]
    taught(method, (features, names))
    assert torch.bincount(method.key_columns_).tolist() == [3, 3], "a class that comes again keeps its bound"
    unit = normalised(features.float())
    assert all(bool((unit - key).abs().sum(1).min() < 1e-6) for key in method.keys_)


def linear(dim: int, **settings: Any) -> Any:
    return ClipLinear(StubBackbone(dim), store=StubStore(), **settings)  # type: ignore[arg-type]


def test_07_ridge_by_hand_and_by_tasks() -> None:
    method = linear(2)
    taught(method, ([[5, 0]], ["cat"]), ([[0, 2]], ["dog"]))  # one class a task: nothing to choose by, lambda stays 1
    assert method.strengths_ == [1.0, 1.0]
    torch.testing.assert_close(method.weight, 0.5 * torch.eye(2, dtype=torch.float64))
    features, labels = clusters(4, 12, 6, noise=1.0)
    names = [f"class {c}" for c in labels]
    whole, parts = taught(linear(6), (features, names)), linear(6)
    for c in (2, 0, 3, 1):
        taught(parts, (features[labels == c], [f"class {c}"] * 12))
    parts.strengths_ = whole.strengths_
    order = [parts.names_.index(name) for name in whole.names_]
    torch.testing.assert_close(parts.weight[:, order], whole.weight, atol=1e-5, rtol=0)
    assert whole.strengths_[0] in [10.0**k for k in range(-8, 9)]


def test_07b_logistic_columns_of_other_tasks_stay() -> None:
    features, labels = clusters(4, 12, 6)
    rows = [(features[labels // 2 == t], [f"class {c}" for c in labels[labels // 2 == t]]) for t in (0, 1)]
    method = taught(linear(6, head="logistic"), rows[0])
    before = method.weight_.clone()
    assert predicted(method, rows[0][0]) == labels[labels // 2 == 0].tolist()
    taught(method, rows[1])
    assert torch.equal(method.weight_[:2], before)
    assert method.weight_.shape == (4, 6)
    torch.testing.assert_close(before[0], -before[1])  # two classes are one row and its opposite


NAMES = ("cat", "dog", "hot dog", "owl", "plane", "car", "ship", "truck")


def test_08_coop_with_words_is_zero_shot_to_the_bit(store: FeatureStore) -> None:
    backbone = clip()
    method = CoOp(backbone, store=store, words="a photo of a")
    assert method.start.shape == (4, 32)
    with torch.no_grad():
        found = method.embeddings(NAMES, method.start)
    assert torch.equal(found, normalised(backbone.text_embeddings([f"a photo of a {name}." for name in NAMES])))


def coop(store: FeatureStore, backbone: TwoTowers | None = None, **settings: Any) -> CoOp:
    train = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    return CoOp(backbone or clip(), store=store, **{"length": 16, "train": train, **settings})


def test_08b_one_set_of_contexts_per_task(store: FeatureStore) -> None:
    method = coop(store)
    for task in load_stream("synthetic", tasks=3):
        method.fit_task(task)
    assert method.contexts_.shape == (3, 16, 32)  # at a width of 512: 8 192 numbers per task, whatever its classes


def test_09_old_embeddings_stay_and_only_contexts_learn(store: FeatureStore) -> None:
    backbone = tiny_clip()
    before, method = backbone.fingerprint, coop(store, backbone)
    stream = load_stream("synthetic", tasks=2)
    first = method.fit_task(stream[0]).texts_.clone()
    contexts = method.contexts_.clone()
    method.fit_task(stream[1])
    assert torch.equal(method.texts_[:3], first)
    assert torch.equal(method.contexts_[:1], contexts)
    assert not torch.equal(method.contexts_[1], contexts[0])
    assert backbone.fingerprint == before
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("kind", [ClipZeroShot, ClipPrototypes, ClipCache, CoOp])
def test_10_each_image_and_each_text_passes_once(kind: Any, store: FeatureStore) -> None:
    backbone = tiny_clip()
    method = coop(store, backbone) if kind is CoOp else kind(backbone, store=store, templates=["a {}.", "the {}."])
    stream = load_stream("synthetic", tasks=3)
    for task in stream:
        method.fit_task(task)
        for index in range(task.index + 1):
            list(method.scores_of(stream.test(index)))
    images = sum(len(task.train) + len(stream.test(task.index)) for task in stream)
    assert backbone.passes.images == images
    if kind is not CoOp:
        assert backbone.passes.texts == 6 * 2
        again = kind(tiny_clip(), store=FeatureStore(store.directory), templates=["a {}.", "the {}."])
        again.fit_task(stream[0])
        assert (again.backbone.passes.images, again.backbone.passes.texts) == (0, 0), "not even in another run"


def test_11_a_zero_shot_score_does_not_change(store: FeatureStore) -> None:
    method, stream = ClipZeroShot(clip(), store=store), load_stream("synthetic", tasks=2)
    before = torch.cat(list(method.fit_task(stream[0]).scores_of(stream.test(0))))
    after = torch.cat(list(method.fit_task(stream[1]).scores_of(stream.test(0))))
    torch.testing.assert_close(after[:, :3], before, atol=1e-4, rtol=0)


def named(method: Any, index: int, names: Mapping[int, str], shown: Mapping[int, str] | None = None) -> Any:
    data = known(torch.eye(2)[: len(names)], list(names))
    return method.fit_task(Task(index, data, tuple(names), class_names=names, display_names=shown or names))


def test_12_names_that_say_nothing_are_refused() -> None:
    texts = {"cat": [1, 0], "crane": [0, 1]}
    with pytest.raises(StreamError, match=r"name of class 0 must be given: this method reads names, but got None"):
        made(ClipZeroShot, texts).fit_task(Task(0, known([[1, 0]]), (0,)))
    with pytest.raises(StreamError, match=r"like no other class's, but got 'crane'\. To the text tower it is"):
        named(made(ClipZeroShot, texts), 0, {0: "crane_1", 1: "crane_2"}, {0: "crane", 1: "crane"})
    method = named(made(ClipZeroShot, texts), 0, {0: "crane_1"}, {0: "crane"})
    with pytest.raises(StreamError, match="'crane_2' must be like no other class's"):
        named(method, 1, {1: "crane_2"}, {1: "crane"})
    assert method.names_ == ["crane_1"]
    other_set = named(made(ClipZeroShot, texts), 0, {0: "one/crane"}, {0: "crane"})
    assert named(other_set, 1, {1: "two/crane"}, {1: "crane"}).displays_ == ["crane", "crane"]


def test_12b_a_name_that_is_too_long_is_refused_before_anything_is_learned(store: FeatureStore) -> None:
    backbone, method = clip(), ClipZeroShot(clip(), store=store)
    data = load_stream("synthetic", tasks=1)[0].train.of_classes([0])
    long = {0: "very " * 80 + "long"}
    with pytest.raises(BackboneError, match="of at most 77 tokens, but got 'very very"):
        method.fit_task(Task(0, data, (0,), class_names=long, display_names=long))
    assert (method.classes_, method.tasks_seen_) == ([], 0)
    assert backbone is method.backbone


def test_names_never_taught_are_scored_by_name_alone(store: FeatureStore) -> None:
    stream = load_stream("synthetic", tasks=3)
    strange = [Candidate(stream.class_names[c], stream.display_names[c]) for c in stream[1].classes]
    taught_one = Candidate(stream.class_names[stream[0].classes[0]], "whatever")
    for kind in (ClipZeroShot, ClipPrototypes, ClipCache):
        method = kind(clip(), store=store).fit_task(stream[0])
        mixed = torch.cat(list(method.scores_among(stream.test(0), [strange[1], taught_one, strange[0]])))
        own = torch.cat(list(method.scores_of(stream.test(0))))
        assert torch.equal(mixed[:, 1], own[:, 0])
        zero_shot = ClipZeroShot(clip(), store=store).fit_task(stream[0]).fit_task(stream[1])
        expected = torch.cat(list(zero_shot.scores_of(stream.test(0))))[:, 2:]
        torch.testing.assert_close(mixed[:, [2, 0]], expected, atol=1e-4, rtol=0)
        assert len(method.texts_) == 2, "nothing of it is kept"
    learned = coop(store).fit_task(stream[0])
    by_context = torch.cat(list(learned.scores_among(stream.test(0), strange)))
    with torch.no_grad():
        texts = learned.embeddings([c.text for c in strange], learned.contexts_[-1])
    features = store.features(clip(), stream.test(0))[:]
    torch.testing.assert_close(by_context, clip().logits(features, texts), atol=1e-4, rtol=0)


def test_templates_are_chosen_by_data_set() -> None:
    texts = {"a cat": [1, 0], "the cat": [0, 1]}
    method = made(ClipZeroShot, texts, templates={"one": ["a {}"], "two": ["the {}"]})
    for index, name in enumerate(("one", "two")):
        names = {index: f"{name}/cat"}
        shown = {index: "cat"}
        data = known([[1, 0]], [index])
        method.fit_task(Task(index, data, (index,), class_names=names, display_names=shown, dataset=name))
    assert method.texts_.tolist() == [[1, 0], [0, 1]]


def test_bad_templates_are_refused_with_the_other_settings() -> None:
    with pytest.raises(RecipeError, match="templates must be a known list or a text file, which 'foto' is not"):
        made(ClipZeroShot, {}, templates="foto")


def test_a_template_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a {}\n", encoding="utf-8")
    texts = {"a cat": [1, 0], "a dog": [0, 1]}
    method = made(ClipZeroShot, texts, templates={"": str(file)})
    assert made(ClipZeroShot, texts, templates=str(file)).config.templates == ["a {}"]
    file.unlink()
    assert method.config.templates == {"": ["a {}"]}
    assert ClipZeroShot.Config(**method.config.model_dump()) == method.config
    torch.testing.assert_close(named(method, 0, {0: "cat", 1: "dog"}).texts_, torch.eye(2))


def test_words_of_nothing_but_spaces_are_none() -> None:
    assert len(CoOp(clip(), words="  ", length=4).start) == 4
    assert len(CoOp(clip(), words=" a photo of a ").start) == 4


def test_two_cache_or_coop_methods_are_not_merged(store: FeatureStore) -> None:
    task = load_stream("synthetic", tasks=1)[0]
    half = Task(0, task.train.subset(np.arange(0, len(task.train), 2)), task.classes, class_names=task.class_names)
    for kind, differ in ((ClipCache, "keys_"), (CoOp, r"texts_[^|]+contexts_")):
        one, two = (coop(store) if kind is CoOp else ClipCache(clip(), store=store) for _ in range(2))
        with pytest.raises(ConfigError, match=differ):
            merge(one.fit_task(task), two.fit_task(half))
