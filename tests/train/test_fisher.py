"""The diagonal Fisher information: closed forms, stale gradients, and the pass over images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import Backbone, FeatureStore
from perdure.data.synthetic import synthetic_dataset
from perdure.modules.heads import GrowingLinear
from perdure.train.fisher import FisherPass, by_name, diagonal_fisher, fisher_of_images, in_a_row
from perdure.train.settings import Augment, ImageTraining
from tiny_vit import tiny

Pair = tuple[Tensor, Tensor]
STILL = ImageTraining(lr=0.1, epochs=1, batch_size=3, augment=Augment(min_scale=1.0, flip=False))


def two_classes(weight: nn.Parameter) -> Callable[[Pair], Tensor]:
    def loss(batch: Pair) -> Tensor:
        return F.cross_entropy(batch[0] @ weight.T, batch[1])

    return loss


def test_the_closed_form_of_a_linear_model() -> None:
    """Two classes, W = 0, x = 2: an image's gradient is ±1, those of labels 0 and 1 cancel in a batch."""
    weight = nn.Parameter(torch.zeros(2, 1))
    x, y = torch.full((2, 1), 2.0), torch.tensor([0, 1])
    each = [(x[i : i + 1], y[i : i + 1]) for i in range(2)]
    assert diagonal_fisher({"w": weight}, each, two_classes(weight))["w"].tolist() == [[1.0], [1.0]]
    assert diagonal_fisher({"w": weight}, [(x, y)], two_classes(weight))["w"].tolist() == [[0.0], [0.0]]
    alike = [(x, torch.tensor([0, 0])), *each[1:]]  # a batch of two counts as much as one of one
    assert diagonal_fisher({"w": weight}, alike, two_classes(weight))["w"].tolist() == [[1.0], [1.0]]


def test_large_values_are_clipped_and_no_batch_says_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2, 1))
    one = [(torch.tensor([[2.0]]), torch.tensor([0])), (torch.tensor([[0.01]]), torch.tensor([0]))]
    loss = two_classes(weight)
    assert diagonal_fisher({"w": weight}, one[:1], loss, clip=1e-4)["w"].tolist() == [[pytest.approx(1e-4)]] * 2
    assert float(diagonal_fisher({"w": weight}, one[1:], loss, clip=1e-4)["w"][0]) == pytest.approx(2.5e-5)
    assert diagonal_fisher({"w": weight}, [], loss)["w"].tolist() == [[0.0], [0.0]]


def test_stored_gradients_stay_and_do_not_count() -> None:
    used, unused = (nn.Parameter(torch.zeros(2, 1), requires_grad=False) for _ in range(2))
    stale = [torch.full((2, 1), 7.0) for _ in range(2)]
    for p, gradient in zip((used, unused), stale, strict=True):
        p.grad = gradient.clone()
    one = [(torch.tensor([[2.0]]), torch.tensor([0]))]
    with torch.no_grad():  # whatever the caller's mode is
        found = diagonal_fisher({"used": used, "unused": unused}, one, two_classes(used))
    assert found["used"].tolist() == [[1.0], [1.0]]
    assert found["unused"].tolist() == [[0.0], [0.0]]
    for p, gradient in zip((used, unused), stale, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)
        assert not p.requires_grad
    assert not any(value.requires_grad for value in found.values())


def test_a_failing_batch_leaves_the_parameters_frozen() -> None:
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    with pytest.raises(RuntimeError, match="planted"):
        diagonal_fisher({"w": frozen}, [1], lambda _: (_ for _ in ()).throw(RuntimeError("planted")))
    assert not frozen.requires_grad


def by_hand(
    backbone: Backbone, head: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, clip: float
) -> dict[str, Tensor]:
    copy = backbone.thawed_copy()
    F.cross_entropy(head(copy.embed(x)), y).backward()
    return {n: p.grad.square().clamp(max=clip) for n, p in copy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("logits", ["seen", "task"])
@pytest.mark.parametrize("estimator", ["batch", "per_sample"])
def test_the_pass_over_images(estimator: str, logits: str, store: FeatureStore) -> None:
    backbone, rng = tiny(), torch.Generator().manual_seed(0)
    data = synthetic_dataset([0, 1], train_per_class=2, side=8).train
    head = GrowingLinear(backbone.dim)
    head.grow(4, rng)
    head.weight.data += torch.randn(4, backbone.dim, generator=rng)
    head.weight.grad = torch.ones_like(head.weight)
    columns = torch.from_numpy(data.labels) + 2  # the task's classes are columns 2 and 3
    config, passes = STILL.model_copy(update={"batch_size": 4, "drop_last": "always"}), backbone.passes.images
    how = FisherPass(estimator=estimator, logits=logits, clip=0.5)
    found = fisher_of_images(backbone, head, data, columns, how, config, rng, store)
    assert backbone.passes.images - passes == 4  # once, and counted
    assert list(found) == [name for name, _ in backbone.model.named_parameters()]  # no head in it
    assert torch.equal(head.weight.grad, torch.ones_like(head.weight))
    images = torch.cat([x for _, x in data.batches(backbone.preprocess, 4)])
    part = head if logits == "seen" else lambda z: head(z)[:, 2:]
    y = columns if logits == "seen" else columns - 2
    groups = [slice(0, 4)] if estimator == "batch" else [slice(i, i + 1) for i in range(4)]
    expected = [by_hand(backbone, part, images[g], y[g], 1e9) for g in groups]
    for name, value in found.items():
        mean = torch.stack([one[name] for one in expected]).mean(0).clamp(max=0.5)
        torch.testing.assert_close(value, mean, rtol=1e-3, atol=1e-9)


def test_the_last_smaller_batch_counts_as_the_others(store: FeatureStore) -> None:
    backbone, rng = tiny(), torch.Generator().manual_seed(0)
    data = synthetic_dataset([0, 1], train_per_class=2, side=8).train
    head = nn.Linear(backbone.dim, 2)
    columns, told = torch.from_numpy(data.labels), []
    store.progress = lambda event: told.append((event.stage, event.done, event.total))
    left_out = STILL.model_copy(update={"drop_last": "always"})
    found = fisher_of_images(backbone, head, data, columns, FisherPass(clip=None), left_out, rng, store)
    assert told == [("Fisher information", 1, 2), ("Fisher information", 2, 2)]
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    images = torch.cat([x for _, x in data.batches(backbone.preprocess, 4)])
    parts = [by_hand(backbone, head, images[p], columns[p], 1e9) for p in order.split(3)]
    for name, value in found.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-3, atol=1e-9)


def test_values_in_a_row_are_found_again_by_name() -> None:
    backbone = tiny()
    values = {name: torch.rand_like(p) for name, p in backbone.model.named_parameters()}
    row = in_a_row(values)
    assert row.shape == (sum(p.numel() for p in backbone.model.parameters()),)
    assert list(found := by_name(row, backbone)) == list(values)
    assert all(torch.equal(found[name], value) for name, value in values.items())
