"""What the tests of RAPF share: quick settings, small streams, and its training without any cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import FeatureStore, Stream
from perdure.backbone import TwoTowers, normalised
from perdure.config import laid_over
from perdure.data import Task
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.rapf import RAPF, RAPFConfig
from perdure.modules.gaussians import Gaussians
from perdure.modules.map_fusion import fused
from perdure.train.rehearsal import add_by_class, visits
from tiny_clip import clip

TEMPLATE = "a good photo of a {}."
IDS = [4, 2, 7, 0, 5, 9]
QUICK: dict[str, Any] = {
    "train": {"epochs": 2, "batch_size": 4, "lr": 0.01, "schedule": "constant"}, "theta": 2.0, "old_samples": 12,
    "beta": 0.1,
}  # fmt: skip


def rapf(store: FeatureStore, backbone: TwoTowers | None = None, **config: Any) -> RAPF:
    return RAPF(backbone or clip(), RAPFConfig(**laid_over(QUICK, config)), store=store)


def stream(sizes: Sequence[int] = (2, 2, 2), train_per_class: int | Sequence[int] = 4) -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=train_per_class, test_per_class=2), sizes, IDS)


def scores(method: Any, data: Any) -> Tensor:
    return torch.cat(list(method.scores_of(data)))


def told(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def uncached(method: RAPF, tasks: Sequence[Task], backbone: TwoTowers) -> tuple[Tensor, list[float]]:
    """The same training with every image and every name embedded anew in every step; the map, and all losses."""
    a, losses, gaussians, of, shown = (
        rapf(method.store, init="random").map_,
        [],
        Gaussians(backbone.dim),
        list[int](),
        list[str](),
    )
    for task in tasks:
        rng, columns, c = method._generator(task.index), method.columns(task.train.labels), method.config
        pixels = torch.cat([x for _, x in task.train.batches(backbone.preprocess, 4)])
        shown += [task.display_names[label] for label in task.classes]
        learned, before = torch.nn.Parameter(a.clone()), a

        sentences, new = [TEMPLATE.format(name) for name in shown], columns.unique()
        w = normalised(backbone.text_embeddings(sentences))
        pairs = [(o, n) for o in range(len(of)) for n in new.tolist() if (w[of[o]] - w[n]).norm() > 1e-4]
        optimizer = torch.optim.SGD([learned], lr=c.train.lr)
        for _ in range(c.train.epochs):
            plans = torch.randperm(len(pixels), generator=rng).split(c.train.batch_size)
            order = visits(len(of), -(-len(of) // len(plans)), len(plans), rng) if of else [[]] * len(plans)
            for plan, slots in zip(plans, order, strict=True):
                each = round(c.old_samples / len(plans) / len(slots)) if of else 0
                x, y = [backbone.image_embeddings(pixels[plan])], [columns[plan]]
                for slot in slots.unique().tolist() if of else []:
                    n = each * int((slots == slot).sum())
                    x.append(gaussians.sample(slot, n, rng, ridge=1e-4).float())
                    y.append(torch.full((n,), of[slot]))
                drawn = torch.zeros(len(pairs), int(20 * c.beta), backbone.dim)
                for slot in dict.fromkeys(o for o, _ in pairs):
                    at = [i for i, (o, _) in enumerate(pairs) if o == slot]
                    found = gaussians.sample(slot, len(at) * drawn.shape[1], rng, ridge=1e-4).float()
                    drawn[at] = found.view(len(at), -1, backbone.dim)
                w = normalised(backbone.text_embeddings(sentences))
                loss = F.cross_entropy(backbone.logit_scale * normalised(torch.cat(x) @ learned.T) @ w.T, torch.cat(y))
                gaps = [
                    F.cosine_similarity(s @ learned.T, w[n][None]) - F.cosine_similarity(s @ learned.T, w[of[o]][None])
                    for s, (o, n) in zip(drawn, pairs, strict=True)
                ]
                loss = loss + (F.relu(torch.stack(gaps) + 0.1).mean() if gaps else 0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        a = learned.detach()
        if task.index:
            a = fused(before, a, c.fusion).map
        of = add_by_class(gaussians, of, backbone.image_embeddings(pixels), columns)
    return a, losses
