"""The weighted mean of texts: closed form, gradient, and each image on its own."""

from __future__ import annotations

import torch
from torch import nn

from perdure.backbone.convex import ConvexCombination


def test_an_image_lies_where_its_classes_texts_lie_by_their_probabilities() -> None:
    classifier = nn.Linear(2, 2)
    classifier.weight.data, classifier.bias.data = torch.eye(2), torch.tensor([0.0, 1.0])
    anchors = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 2.0]])
    projection = ConvexCombination(classifier, anchors)
    log3 = torch.log(torch.tensor(3.0))
    features = torch.stack([torch.tensor([1.0, 0.0]), torch.stack([1 + log3, torch.tensor(0.0)])])
    expected = torch.tensor([[0.5, 2.0, 2.0], [0.75, 1.0, 2.0]])
    torch.testing.assert_close(projection(features), expected)
    milder = ConvexCombination(classifier, anchors, temperature=2.0)
    torch.testing.assert_close(milder(2 * features + torch.tensor([0.0, 1.0])), expected)


def test_the_anchors_stay_and_the_rest_learns() -> None:
    torch.manual_seed(0)
    projection = ConvexCombination(nn.Linear(4, 3), torch.randn(3, 5))
    assert {name for name, _ in projection.named_buffers()} == {"anchors"}
    features = torch.randn(7, 4, requires_grad=True)
    target = torch.randn(7, 5)
    nn.functional.mse_loss(projection(features), target).backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(1) > 0).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in projection.parameters())


def test_its_gradient_is_that_of_the_closed_form() -> None:
    torch.manual_seed(0)
    projection = ConvexCombination(nn.Linear(3, 5), torch.randn(5, 2)).double()
    assert torch.autograd.gradcheck(projection, torch.randn(2, 3, dtype=torch.float64, requires_grad=True))


def test_an_image_does_not_see_the_others() -> None:
    torch.manual_seed(0)
    projection = ConvexCombination(nn.Linear(4, 3), torch.randn(3, 5))
    features = torch.randn(8, 4)
    together = projection(features)
    assert torch.equal(projection(features.flip(0)).flip(0), together)
    changed = torch.cat([features[:1], 100 * torch.randn(7, 4)])
    assert torch.equal(projection(changed)[0], together[0])
