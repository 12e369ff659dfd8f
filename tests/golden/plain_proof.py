"""PROOF as its specification writes it: every image's whole sequence attends to itself, images pass in every step."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import Task
from perdure.backbone import normalised
from perdure.data import LabelledImages
from perdure.methods.proof import Proof
from perdure.modules.cross_modal import Projections

SHARES = [(1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]


class PlainProof(nn.Module):
    """Starts with a method's fusion; ``released`` is how the published code runs, with PyTorch 1."""

    def __init__(self, method: Proof, *, released: bool) -> None:
        super().__init__()
        self.method, self.released, fusion = method, released, method.network_.fusion
        self.images, self.texts, self.prompts = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        self.q, self.k, self.v, self.fc = (
            nn.Parameter(layer.weight.clone()) for layer in (fusion.query, fusion.key, fusion.value, fusion.fc)
        )
        self.bias, self.norm = nn.Parameter(fusion.fc.bias.clone()), nn.LayerNorm(method.backbone.dim)
        self.scale = nn.Parameter(method.log_scale_.clone())
        self.prototypes, self.sentences = torch.zeros(0, method.backbone.dim), torch.zeros(0, 2, method.backbone.dim)

    def attend(self, sequence: Tensor) -> Tensor:
        """(b, n, d): one head over all."""
        q, k, v = (F.linear(sequence, w) for w in (self.q, self.k, self.v))
        weights = (q @ k.mT / math.sqrt(sequence.shape[-1])).softmax(-1)
        return self.norm(F.linear(weights @ v, self.fc, self.bias) + sequence)

    def project(self, parts: nn.ModuleList, x: Tensor) -> Tensor:
        return sum((part(x) for part in parts), torch.zeros(()))

    def class_texts(self, templates: int) -> Tensor:
        each = normalised(self.project(self.texts, self.sentences[:, :templates]))
        return normalised(each.mean(1))

    def fused(self, x: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Both similarities of projected images."""
        c, rows = len(texts), [texts, normalised(self.project(self.images, self.prototypes)), *self.prompts]
        common = torch.cat(rows).expand(len(x), -1, -1)
        out = self.attend(torch.cat([x[:, None], common], 1))
        z, by_text, by_prototype = out[:, 0], out[:, 1 : 1 + c], out[:, 1 + c : 1 + 2 * c]
        if self.released:
            by_text, by_prototype = (rows.mean(0, keepdim=True) for rows in (by_text, by_prototype))
        return (z[:, None] * by_text).sum(-1), (z[:, None] * by_prototype).sum(-1)

    def loss(self, features: Tensor, y: Tensor) -> Tensor:
        x, texts = normalised(self.project(self.images, features)), self.class_texts(1 if self.released else 2)
        logits, diagonal = self.scale.exp() * x @ texts[y].T, torch.arange(len(y))
        pairs = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        return sum((F.cross_entropy(s, y) for s in self.fused(x, texts)), pairs)

    def scores(self, features: Tensor) -> Tensor:
        x = self.project(self.images, features)
        x, texts = x if self.released else normalised(x), self.class_texts(2)
        return x @ texts.T + sum(self.fused(x, texts))

    def learn(self, task: Task, lr: float, batch_size: int) -> None:
        """A task's five epochs, by a method that has learned all tasks before it."""
        method, rng, dim = self.method, self.method._generator(task.index), self.method.backbone.dim
        old = [*self.images.parameters(), *self.prompts, *([] if self.released else self.texts.parameters())]
        for parts in (self.images, self.texts):
            stack = Projections(dim)
            stack.add(rng)
            parts.append(stack.parts[0].requires_grad_(True))
        self.prompts.append(nn.Parameter(torch.randn(3, dim, generator=rng)))
        for parameter in old:
            parameter.requires_grad_(False)
        seen = [*method.classes_, *task.classes]
        means = [normalised(self.embedded(task.train.of_classes([c]))).mean(0) for c in task.classes]
        self.prototypes = torch.cat([self.prototypes, torch.stack(means)])
        sentences = [f"{word} {task.display_names[c]}." for c in task.classes for word in ("a", "the")]
        texts = method.backbone.text_embeddings(sentences).view(-1, 2, dim)
        self.sentences = torch.cat([self.sentences, texts])
        data = task.train.joined(method.exemplars_.images())
        y = torch.tensor([seen.index(label) for label in data.labels.tolist()])
        optimizer = torch.optim.SGD(self._groups(), lr=lr, momentum=0.9)
        for share in SHARES:
            for group in optimizer.param_groups:
                group["lr"] = lr * share
            for at in torch.randperm(len(y), generator=rng).split(batch_size):
                self.loss(self.embedded(data.subset(at.numpy())), y[at]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=not self.released)
                if not self.released:
                    self.scale.data.clamp_(max=math.log(100))

    def _groups(self) -> list[dict[str, Any]]:
        """Released: all parameters. Those that stand still have gradients of zero, if they ever had any, and decay."""
        if self.released:
            return [{"params": list(self.parameters()), "weight_decay": 0.05}]
        rest = [p for p in self.parameters() if p.requires_grad and p is not self.scale]
        return [{"params": rest, "weight_decay": 0.05}, {"params": [self.scale], "weight_decay": 0.0}]

    def embedded(self, images: LabelledImages) -> Tensor:
        """Passed anew, whenever they are asked for."""
        backbone = self.method.backbone
        return torch.cat([backbone.features(batch) for _, batch in images.batches(backbone.preprocess, 4)])
