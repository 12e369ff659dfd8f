"""The golden tests of FeCAM's specification, section 12, and its pitfalls."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from stubs import clusters, cut, predicted, scores, teach, untaught
from torch import Tensor

from perdure import Backbone, FeatureStore, load_stream
from perdure.checks import check_method
from perdure.config import load
from perdure.errors import DataError, RecipeError
from perdure.methods.base import Tags
from perdure.methods.fecam import FeCAM, FeCAMConfig
from perdure.modules.gaussians import Gaussians, tukey
from perdure.modules.mahalanobis import Dense, LowRank, PilotCorrelation, Shrunk, shrinkage

PLAIN = {"shrink_diagonal": 0.0, "normalise": False}


def fecam(dim: int, **config: Any) -> FeCAM:
    return untaught(FeCAM, dim, FeCAMConfig(**config))


def root(covariance: Any) -> Tensor:
    """Z with ZᵀZ the covariance."""
    return torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64)).mT


def random_deviation(k: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_01_isotropic_classes_compare_by_distance_of_unit_vectors() -> None:
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    centres = torch.tensor([[20.0, 0], [0, 20], [14, 14]], dtype=torch.float64)
    features, labels = torch.cat([c + square for c in centres]), np.arange(3).repeat(4)
    method = teach(fecam(2, features="raw", metric={"shrink_diagonal": 0.0}), (features, labels))
    queries = torch.tensor([[3.0, 1], [1, 5], [2, 2.5]])
    apart = torch.nn.functional.normalize(queries, dim=1)[:, None] - torch.nn.functional.normalize(centres, dim=1)
    torch.testing.assert_close(scores(method, queries), -apart.square().sum(2).float(), atol=1e-6, rtol=0)


def test_02_the_case_by_hand() -> None:
    metric = Dense(root([[4.0, 2], [2, 9]]), 0.0, 0.0, normalise=True)
    delta = torch.tensor([[1.0, 0], [1, 1]], dtype=torch.float64)
    assert metric.distances(delta).tolist() == pytest.approx([1.125, 1.5], abs=1e-12)


@pytest.mark.parametrize(("g", "expected"), [(1.0, [[5.0, 2], [2, 7]]), (3.0, [[11.0, 4], [4, 13]])])
def test_03_shrinkage(g: float, expected: list[list[float]]) -> None:
    z = root([[2.0, 1], [1, 4]])
    a, b = shrinkage(z, g, g)
    found = z.T @ z + a * torch.eye(2, dtype=torch.float64) + b
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_03_twice_one_is_once_three() -> None:
    z = random_deviation(9, 4)
    a, b = shrinkage(z, 1, 1)
    once = torch.linalg.cholesky(z.T @ z + a * torch.eye(4, dtype=torch.float64) + b).mT
    a2, b2 = shrinkage(once, 1, 1)
    a3, b3 = shrinkage(z, 3, 3)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(once.T @ once + a2 * eye + b2, z.T @ z + a3 * eye + b3)


def test_04_the_scale_of_features_does_not_matter_but_for_pilot() -> None:
    features, labels = clusters(3, 9, 5, noise=1.0)
    queries, _ = clusters(3, 9, 5, noise=1.0, seed=1)
    for preset, alike in (("paper", True), ("pilot", False)):
        config = {"preset": preset, "features": "raw", "adapt": "none"}
        one, seven = (teach(fecam(5, **config), (k * features, labels)) for k in (1, 7))
        assert torch.allclose(scores(one, queries), scores(seven, 7 * queries), rtol=1e-5) == alike


def test_05_pilots_matrix_is_singular_and_ours_is_not() -> None:
    z = random_deviation(30, 6)
    s = z.T @ z + 100 * torch.eye(6, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(torch.corrcoef(s))[0].abs()) < 1e-10
    assert float(torch.linalg.eigvalsh(torch.corrcoef(z.T))[0]) > 1e-3
    pilot = PilotCorrelation().of(z)
    assert fecam(6, preset="pilot", adapt="none").config.metric == PilotCorrelation()
    null = torch.linalg.solve(s, torch.ones(6, 1, dtype=torch.float64)).T * torch.cov(s).diagonal().sqrt()
    assert float(pilot.distances(null / null.norm())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("g", [(1.0, 0.0), (1.0, 1.0)])
def test_06_cholesky_is_the_explicit_inverse(normalise: bool, g: tuple[float, float]) -> None:
    z, rows = random_deviation(20, 6), random_deviation(11, 6, 1)
    a, b = shrinkage(z, *g)
    s = z.T @ z + a * torch.eye(6, dtype=torch.float64) + b
    r = s / s.diagonal().sqrt()[:, None] / s.diagonal().sqrt() if normalise else s
    whole = rows @ torch.linalg.inv(r) @ rows.T
    metric = Dense(z, a, b, normalise=normalise, log_determinant=True)
    expected = whole.diagonal() + torch.linalg.slogdet(r).logabsdet
    torch.testing.assert_close(metric.distances(rows), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("g", [(1.0, 0.0), (1.0, 1.0), (10.0, 10.0)])
def test_07_woodbury_is_the_dense_path(g: tuple[float, float], negative: bool) -> None:
    z = random_deviation(5, 12, 3)
    if negative:
        z = z - 0.9 * z.mean(1, keepdim=True)  # rows of small sums: V2 < 0
    a, b = shrinkage(z, *g)
    assert not negative or g[1] == 0 or b < 0
    rows = random_deviation(7, 12, 1)
    for normalise in (True, False):
        dense, low = (kind(z, a, b, normalise=normalise, log_determinant=True) for kind in (Dense, LowRank))
        torch.testing.assert_close(low.distances(rows), dense.distances(rows), atol=1e-9, rtol=1e-9)


def test_07_few_images_take_that_path() -> None:
    assert isinstance(Shrunk().of(random_deviation(5, 12)), LowRank)
    assert isinstance(Shrunk().of(random_deviation(12, 12)), Dense)
    assert isinstance(Shrunk().of(random_deviation(5, 12), shrink=False), Dense)


def test_08_quadratic_discriminant_analysis() -> None:
    features, labels = clusters(3, 15, 4, noise=1.0)
    queries, _ = clusters(3, 40, 4, noise=1.5, seed=2)
    config = {"features": "raw", "metric": {**PLAIN, "log_determinant": True}}
    method = teach(fecam(4, **config), (features, labels))
    reference = QuadraticDiscriminantAnalysis(priors=[1 / 3] * 3, store_covariance=True).fit(features, labels)
    # versions of scikit-learn divide by n or by n - 1: put it on ours
    ours = [np.cov(features[labels == c].T) for c in range(3)]
    ratios = [np.trace(a) / np.trace(b) for a, b in zip(ours, reference.covariance_, strict=True)]
    reference.scalings_ = [r * s for r, s in zip(ratios, reference.scalings_, strict=True)]
    assert predicted(method, queries) == reference.predict(queries).tolist()


def test_09_linear_discriminant_analysis() -> None:
    features, labels = clusters(3, 15, 4, noise=1.0)
    queries, _ = clusters(3, 40, 4, noise=1.5, seed=2)
    config = {"features": "raw", "metric": PLAIN, "covariance": "common"}
    method = teach(fecam(4, **config), *cut(features, labels, [[2], [0, 1]]))
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(features, labels)
    ids = [method.classes_[c] for c in scores(method, queries).argmax(1)]
    assert ids == reference.predict(queries).tolist() == predicted(method, queries)


def test_09_the_released_common_covariance() -> None:
    features, labels = clusters(3, 15, 4, noise=1.0)
    first, second = cut(features, labels, [[2, 0], [1]])
    method = teach(fecam(4, features="raw", covariance="common_released", metric={"normalise": False}), first)
    means = torch.stack([features[labels == c].mean(0) for c in (2, 0, 1)])
    covariance = torch.cov(first[0].T)  # around the mean of both classes, not shrunk yet
    for n, expected in (
        (2, covariance),
        (3, 2 / 3 * covariance + 1 / 3 * torch.cov(second[0].T)),
    ):
        if n == 3:
            teach(method, second)
            expected = expected + expected.diagonal().mean() * torch.eye(4, dtype=torch.float64)
        apart = features[:, None] - means[:n]
        distances = torch.einsum("nci,ij,ncj->nc", apart, torch.linalg.inv(expected), apart)
        torch.testing.assert_close(scores(method, features).double(), -distances, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("groups", [[[3, 0, 2, 1]], [[1], [3, 0], [2]]])
def test_10_the_cut_into_tasks_does_not_matter(groups: list[list[int]]) -> None:
    features, labels = clusters(4, 7, 9, noise=1.0)
    one, other = teach(fecam(9), (features, labels)), teach(fecam(9), *cut(features, labels, groups))
    for a, b in ((other.classes_.index(c), c) for c in range(4)):
        torch.testing.assert_close(other.gaussians_.covariance(a), one.gaussians_.covariance(b), atol=1e-10, rtol=0)
    assert predicted(one, features) == predicted(other, features)


def test_10_a_class_that_comes_again_has_the_pooled_covariance() -> None:
    features, labels = clusters(2, 20, 6, noise=1.0)
    pieces = [(features[i::3], labels[i::3]) for i in range(3)]
    whole, parts = teach(fecam(6), (features, labels)), teach(fecam(6), *pieces)
    for c in range(2):
        unit = torch.nn.functional.normalize(features[labels == c], dim=1)
        torch.testing.assert_close(parts.gaussians_.covariance(c), torch.cov(unit.T), atol=1e-10, rtol=0)
    torch.testing.assert_close(scores(parts, features), scores(whole, features))


def test_11_tukey() -> None:
    assert tukey(torch.tensor([[4.0, 9]]), 0.5).tolist() == [[2, 3]]
    assert tukey(torch.tensor([[1.0]]), 0).tolist() == [[0]]
    with pytest.raises(DataError, match=r"-1\.0"):
        tukey(torch.tensor([[4.0, -1]]), 0.5)


def test_11_the_mean_is_transformed_not_the_transforms_averaged() -> None:
    features = torch.tensor([[1.0, 4], [9, 16], [4, 1], [16, 4]], dtype=torch.float64)
    method = teach(fecam(2, preset="paper_cnn"), (features, np.array([0, 0, 1, 1])))
    z = method.gaussians_.deviation(0)
    root_of_mean = torch.nn.functional.normalize(features[:2].mean(0).sqrt(), dim=0)
    x = torch.tensor([[4.0, 4]])
    delta = torch.nn.functional.normalize(x.double().sqrt(), dim=1) - root_of_mean
    expected = -Dense(z, *shrinkage(z, 3, 3), normalise=True).distances(delta)
    torch.testing.assert_close(scores(method, x)[:, 0].double(), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(DataError, match="features"):
        teach(fecam(2, features="tukey"), (-features, np.array([0, 0, 1, 1])))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"metric": {"shrink_off_diagonal": 1.0}},
        {"metric": {"normalise": False}},
        {"covariance": "common"},
        {"covariance": "common_released"},
    ],
)
def test_12_classes_of_one_and_two_images_have_distances(config: dict[str, Any]) -> None:
    features, labels = clusters(4, 3, 6, noise=0.1)
    kept = [0, 3, 4, 6, 7, 8, 9, 10, 11]
    features, labels = features[kept], labels[kept]
    method = teach(fecam(6, **config), (features, labels))
    assert bool(torch.isfinite(scores(method, features)).all())
    assert predicted(method, features) == labels.tolist()


def test_13_a_method_read_back_goes_on_alike() -> None:
    features, labels = clusters(4, 7, 9, noise=1.0)
    first, second = cut(features, labels, [[0, 1], [2, 3]])
    straight = teach(fecam(9), first)
    resumed = fecam(9).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        teach(method, second)
    assert torch.equal(scores(straight, features), scores(resumed, features))


@pytest.mark.parametrize("covariance", ["class", "common", "common_released"])
def test_13_a_loaded_state_replaces_what_was_derived(covariance: str) -> None:
    features, labels = clusters(4, 8, 6)
    parts = cut(features, labels, [[0, 1], [2, 3]])
    method, other = (teach(fecam(6, covariance=covariance), part) for part in parts)
    assert not torch.equal(scores(method, features), scores(other, features))
    assert torch.equal(scores(method.load_state_dict(other.state_dict()), features), scores(other, features))


def test_14_old_classes_distances_do_not_move() -> None:
    features, labels = clusters(4, 7, 9, noise=1.0)
    first, second = cut(features, labels, [[0, 1], [2, 3]])
    method = teach(fecam(9), first)
    before = scores(method, features)
    teach(method, second)
    assert torch.equal(scores(method, features)[:, :2], before)


def test_shrinkage_that_may_turn_indefinite_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"metric\.shrink_off_diagonal must be at most .* = 1\.0, .*, but got 2\.0"):
        load(FeCAMConfig, {"metric": {"shrink_off_diagonal": 2.0}})
    wrong = {"shrink_diagonal": -1.0, "shrink_off_diagonal": 2.0}
    with pytest.raises(RecipeError, match=r"metric\.shrink_diagonal must be .*, but got -1\.0"):
        load(FeCAMConfig, {"metric": wrong})


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ({"power": 0.3}, r"'power'\. Write it as features\.power\."),
        ({"features": {"name": "raw", "power": 0.3}}, r"'features\.power'\. Another kind of features has it"),
        ({"metric": {"name": "pilot", "shrink_diagonal": 3}}, r"'metric\.shrink_diagonal'\. Another kind of metric"),
        ({"shrink_diagonal": 3.0}, r"'shrink_diagonal'\. Write it as metric\.shrink_diagonal\."),
        ({"normalise": "none"}, r"'normalise'\. Write it as metric\.normalise\."),
        ({"returning": "half"}, r"'returning'\. Write it as covariance\."),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused_with_its_place(old: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load(FeCAMConfig, old)


def test_the_mixed_covariance_counts_among_what_is_learned() -> None:
    features, labels = clusters(4, 7, 9, noise=1.0)
    parts = cut(features, labels, [[0, 1], [2, 3]])
    by_class, released = (fecam(9, covariance=kind) for kind in ("class", "common_released"))
    for part in parts:
        teach(by_class, part)
        teach(released, part)
    assert released.learned_parameters() - by_class.learned_parameters() == released.mixed_.numel() == 81


def test_it_adapts_if_wanted(backbone: Backbone, store: FeatureStore) -> None:
    train = {"epochs": 1, "batch_size": 16, "augment": {"min_scale": 1.0, "flip": False}}
    config = FeCAMConfig(adapt={"variant": "adapter", "rank": 2, "train": train})
    stream = load_stream("synthetic", tasks=2)
    method = FeCAM(backbone, config, store=store).fit_task(stream[0])
    assert method.first.backbone.fingerprint != backbone.fingerprint
    assert method.learned_parameters() > sum(p.numel() for p in method.tuned_.parameters()) > 0


@pytest.mark.parametrize(
    "small",
    [
        {"covariance": "common"},
        {"covariance": "common_released"},
        {"features": "raw", "metric": {"shrink_off_diagonal": 1.0}},
    ],
)
def test_every_promise_is_kept_with_other_settings(small: dict[str, Any]) -> None:
    class Other(FeCAM):
        __doc__ = FeCAM.__doc__
        tags = Tags(split_invariant=small.get("covariance") != "common_released", small=small)

    Other.__module__ = FeCAM.__module__
    assert [result.note for result in check_method(Other) if not result.ok] == []


# --- the statistics that SLCA and MOS will share


def test_merging_is_pooling_whatever_the_pieces() -> None:
    x = random_deviation(23, 6) @ random_deviation(6, 6, 1) + 100
    whole, left, right = Gaussians(6), Gaussians(6), Gaussians(6)
    for g in (whole, left, right):
        g.grow(2)
    whole.add(1, x)
    for piece in x[:9].split(4):
        left.add(1, piece)
    right.add(1, x[9:])
    left.merge(right)
    torch.testing.assert_close(left.means, whole.means, atol=1e-10, rtol=0)
    torch.testing.assert_close(left.covariance(1), torch.cov(x.T), atol=1e-8, rtol=0)
    assert left.counts.tolist() == [0, 23]
    assert [len(f) for f in left.factors] == [0, 6]


@pytest.mark.parametrize(("n", "d"), [(2, 3), (40, 3), (1, 3)])
def test_samples_have_exactly_the_covariance_their_map_says(n: int, d: int) -> None:
    g = Gaussians(d)
    g.grow(1)
    g.add(0, random_deviation(n, d) + 5)
    z = g.deviation(0)
    expected = z.T @ z + 1e-4 * torch.eye(d, dtype=torch.float64)
    if n > 1:
        torch.testing.assert_close(z.T @ z, torch.cov(random_deviation(n, d).T), atol=1e-12, rtol=0)
    many = g.sample(0, 200_000, torch.Generator().manual_seed(0), ridge=1e-4, scale=0.9)
    torch.testing.assert_close(many.mean(0), 0.9 * g.means[0], atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(many.T), expected, atol=0.03 * float(expected.max()) + 1e-6, rtol=0.03)


def test_learned_statistics_are_replaced_not_changed() -> None:
    g = Gaussians(3)
    g.grow(1)
    g.add(0, random_deviation(4, 3))
    before, copies = (g.counts, g.means, g.factors[0]), [t.clone() for t in (g.counts, g.means, g.factors[0])]
    g.add(0, random_deviation(4, 3, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, copies, strict=True))


def test_a_returning_class_may_take_half_of_each_covariance() -> None:
    x, y = random_deviation(9, 4), 3 + 2 * random_deviation(5, 4, seed=1)
    halved, pooled = (fecam(4, features="raw", covariance=how) for how in ("class_half", "class"))
    for method in (halved, pooled):
        teach(method, (x, np.zeros(9, int)), (y, np.zeros(5, int)))
    g = halved.gaussians_
    torch.testing.assert_close(g.covariance(0), (x.T.cov() + y.T.cov()) / 2)
    torch.testing.assert_close(g.means[0], torch.cat([x, y]).mean(0))  # by count
    torch.testing.assert_close(pooled.gaussians_.covariance(0), torch.cat([x, y]).T.cov())
    assert g.factors[0].shape == (4, 4)
    teach(halved, (y[:1], np.zeros(1, int)))  # has no covariance of its own
    assert halved.gaussians_.counts.tolist() == [15]


def test_classes_that_come_once_have_their_own_covariance_either_way() -> None:
    features, labels = clusters(3, 9, 4, noise=1.0)
    halved, pooled = (teach(fecam(4, covariance=how), (features, labels)) for how in ("class_half", "class"))
    assert torch.equal(scores(halved, features), scores(pooled, features))


def test_what_is_learned_is_laid_out_as_a_file_brings_it_back(backbone: Backbone, store: FeatureStore) -> None:
    """The factors come from a QR decomposition by columns: products would round differently after a reload."""
    config = FeCAMConfig(covariance="common_released")
    stream = load_stream("synthetic", tasks=2)
    method = FeCAM(backbone, config, store=store)
    for task in stream:
        method.fit_task(task)
        assert method.mixed_.is_contiguous()
    saved = {k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in method.state_dict().items()}
    loaded = FeCAM(backbone, config, store=store).load_state_dict(saved)
    test = stream.test(0)
    assert torch.equal(torch.cat([*loaded.scores_of(test)]), torch.cat([*method.scores_of(test)]))
