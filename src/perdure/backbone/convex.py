"""From an image tower's features into a text encoder's space, with no pair of image and text to learn from.

Source: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014: an image lies
    where the texts of the classes that a classifier sees in it lie, each weighted by its probability.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ConvexCombination(nn.Module):
    """Pooled features to raw embeddings: the anchors' mean, weighted by the classifier's probabilities.

    Unlike the paper's, it takes all classes, not the ten likeliest: it is smooth, and no near tie changes an embedding.

    Args:
        classifier: (b, width) -> (b, classes) logits.
        anchors: (classes, dim): where in the space of texts each of its classes lies.
        temperature: what the logits are divided by; above 1, less likely classes count more.
    """

    anchors: Tensor

    def __init__(self, classifier: nn.Module, anchors: Float[Tensor, "classes dim"], temperature: float = 1.0) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature
        self.register_buffer("anchors", anchors)

    def forward(self, features: Float[Tensor, "b width"]) -> Float[Tensor, "b dim"]:
        embeddings: Tensor = (self.classifier(features) / self.temperature).softmax(1) @ self.anchors
        return embeddings
