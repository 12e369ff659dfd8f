"""Zero-shot accuracy of the small CLIPs' image sides, and what each step of their making brings.

    python -m benchmarks.small_clips ../shared/data/pretrain --work DIR [--data ../shared/data]

``--work`` holds the views' features of ``scripts.make_small_clips``. Classes are scored by the cosine with their
display names in a template. Steps and templates are chosen by the mean over the training images of caltech101 (all 101
classes, and the 70 whose names are not ImageNet's among themselves) and cifar10; the test figures decide nothing.
fashion-mnist: 100 images of each class, beside the choice. Writes benchmarks/results/small_clips.json.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import Backbone, FeatureStore, tune_allocator
from perdure.backbone.default import read_weights
from perdure.backbone.lite0 import load_whole_lite0
from perdure.backbone.small_clip import SMALL_CLIP, load_clip_default, load_clip_lite0
from perdure.data import LabelledImages, load_dataset
from perdure.data.display import display_name
from perdure.run.summary import machine, now, versions
from scripts.make_small_clips import Settings, anchors, fit, imagenet_names, unit_texts
from scripts.small_clip_views import Views, features_of

RESULTS = Path(__file__).parent / "results" / "small_clips.json"
TEMPLATES = ("{}", "a photo of a {}.", "a {}", "a picture of a {}.", "an image of a {}.")
DECIDING, PER_CLASS = ("caltech101", "caltech101, new names", "cifar10"), 100
TOWERS = {"clip_lite0": "efficientnet_lite0", "clip_default": "default"}
SIDES = {"clip_lite0": load_clip_lite0, "clip_default": load_clip_default}
Embed = Callable[[Tensor], Tensor]


@dc.dataclass(frozen=True)
class Part:
    """Images of one data set: features by image tower, columns of the names, the names."""

    features: dict[str, Tensor]
    columns: Tensor
    names: list[str]

    def of_names(self, wanted: Callable[[str], bool]) -> Part:
        """The images of some classes, scored among these."""
        kept = [i for i, name in enumerate(self.names) if wanted(name)]
        at = torch.full((len(self.names),), -1)
        at[kept] = torch.arange(len(kept))
        rows = at[self.columns] >= 0
        features = {k: v[rows] for k, v in self.features.items()}
        return Part(features, at[self.columns[rows]], [self.names[i] for i in kept])


def first_of(images: LabelledImages) -> LabelledImages:
    """At most ``PER_CLASS`` images of each class."""
    rows = np.concatenate([np.flatnonzero(images.labels == c)[:PER_CLASS] for c in images.classes])
    return LabelledImages(images.source, images.labels[rows], images.rows[rows])


def parts(folder: Path) -> dict[str, dict[str, Part]]:
    """By ``train`` and ``test``, then by data set; features come from the store where they are there."""
    store, found = FeatureStore(), {"train": {}, "test": {}}
    backbones = {clip: Backbone.load(name, device="cpu") for clip, name in TOWERS.items()}
    known = {name.lower() for names in imagenet_names() for name in names}
    for name in ("caltech101", "cifar10", "fashion-mnist"):
        data = load_dataset(folder / name if (folder / name).is_dir() else name)
        names = [display_name(data.class_names[i]) for i in range(len(data.class_names))]
        for which, here in found.items():
            images = getattr(data, which) if name != "fashion-mnist" else first_of(getattr(data, which))
            features = {clip: store.features(backbone, images)[:] for clip, backbone in backbones.items()}
            here[name] = Part(features, torch.from_numpy(images.labels), names)
            if name == "caltech101":
                here["caltech101, new names"] = here[name].of_names(lambda n: n.lower() not in known)
    return found


def judged(clip: str, embed: Embed, data: dict[str, dict[str, Part]], texts: dict[str, Tensor]) -> dict:
    """Accuracies of every template on the training and test images, and the template that the former choose."""
    found: dict[str, dict[str, dict[str, float]]] = {"train": {}, "test": {}}
    for which, sets in data.items():
        for name, part in sets.items():
            unit = F.normalize(embed(part.features[clip]))
            for template in TEMPLATES:
                named = torch.stack([texts[template.format(n)] for n in part.names])
                right = (unit @ named.T).argmax(1) == part.columns
                found[which].setdefault(template, {})[name] = round(float(right.float().mean()), 4)
    means = {t: round(float(np.mean([found["train"][t][name] for name in DECIDING])), 4) for t in TEMPLATES}
    best = max(means, key=lambda t: means[t])
    return {"template": best, "mean_of_train": means[best], **{k: found[k][best] for k in found}, "all": found}


def likeliest(logits: Tensor, k: int) -> Tensor:
    """Probabilities of the ``k`` likeliest classes, which sum to one."""
    top, at = logits.topk(k, 1)
    return torch.zeros_like(logits).scatter(1, at, top.softmax(1))


def lite0_steps() -> dict[str, Embed]:
    """From the published form to the shipped one, and what did not help."""
    classify, names = load_whole_lite0().get_classifier(), imagenet_names()
    all_names = unit_texts([", ".join(each) for each in names])
    apart = unit_texts([name for each in names for name in each]).split([len(each) for each in names])
    lemmas = F.normalize(torch.stack([each.mean(0) for each in apart]))
    both, freed = anchors(None), anchors(Settings.ridge)
    main = torch.linalg.svd(both, full_matrices=False).Vh[:3]
    return {
        "ten likeliest classes, their names": lambda x: likeliest(classify(x), 10) @ all_names,
        "centred": lambda x: likeliest(classify(x), 10) @ (all_names - all_names.mean(0)),
        "with definitions": lambda x: likeliest(classify(x), 10) @ both,
        "all classes": lambda x: classify(x).softmax(1) @ both,
        "decorrelated": lambda x: classify(x).softmax(1) @ freed,
        "temperature 2 (clip_lite0)": lambda x: (classify(x) / 2).softmax(1) @ freed,
        "tried: each name alone, averaged": lambda x: classify(x).softmax(1) @ (lemmas - lemmas.mean(0)),
        "tried: clip_lite0 with the ten likeliest": lambda x: likeliest(classify(x) / 2, 10) @ freed,
        "tried: temperature 2, not decorrelated": lambda x: (classify(x) / 2).softmax(1) @ both,
        "tried: three likeliest": lambda x: likeliest(classify(x), 3) @ both,
        "tried: anchors of unit length": lambda x: classify(x).softmax(1) @ F.normalize(both),
        "tried: without the three main directions": lambda x: classify(x).softmax(1) @ (both - both @ main.T @ main),
    }


def ridge(x: Tensor, y: Tensor, penalty: float) -> Embed:
    """Least squares on standardised features."""
    mean, std, centre = x.mean(0), x.std(0) + 1e-4, y.mean(0)
    z = (x - mean) / std
    gram = (z.T @ z / len(z)).double() + penalty * torch.eye(z.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, (z.T @ (y - centre) / len(z)).double()).float()
    return lambda new: (new - mean) / std @ solved + centre


def default_steps(features: dict[str, Tensor], small: Tensor) -> dict[str, Embed]:
    """Ways from 192 features to texts, all on the same views."""
    s = Settings()
    both, freed = anchors(None), anchors(s.ridge)
    with torch.no_grad():
        logits = load_whole_lite0().get_classifier()(features["lite0"])
        x, wanted = features["default"], logits.softmax(1)
        direct = ridge(x, F.normalize(wanted @ both), 0.1)
        to_logits = ridge(x, logits - logits.mean(1, keepdim=True), 0.01)
    alone, beside = dc.replace(s, neighbours=1, logit_weight=0.0), dc.replace(s, neighbours=1)
    entropy, with_logits, neighbours = (fit(x, logits, small, each) for each in (alone, beside, s))
    return {
        "ridge to the teacher's embedding": direct,
        "ridge to the teacher's logits": lambda x: to_logits(x).softmax(1) @ both,
        "cross-entropy with the teacher's probabilities": lambda x: entropy(x).softmax(1) @ both,
        "and its logits": lambda x: with_logits(x).softmax(1) @ both,
        "and ten neighbours' probabilities": lambda x: neighbours(x).softmax(1) @ both,
        "decorrelated": lambda x: neighbours(x).softmax(1) @ freed,
        "temperature 1.5 (clip_default)": lambda x: (neighbours(x) / 1.5).softmax(1) @ freed,
        "tried: sum of the two ridges' embeddings": lambda x: (
            F.normalize(direct(x)) + F.normalize(to_logits(x).softmax(1) @ both)
        ),
        "tried: ridge to the logits, temperature 0.5": lambda x: (2 * to_logits(x)).softmax(1) @ both,
        "tried: clip_default without neighbours": lambda x: (with_logits(x) / 1.5).softmax(1) @ freed,
        "tried: clip_default at temperature 0.7": lambda x: (neighbours(x) / 0.7).softmax(1) @ freed,
    }


@torch.no_grad()
def shipped(data: dict[str, dict[str, Part]], texts: dict[str, Tensor], chosen: dict[str, str]) -> dict:
    """What the package's file gives, and whether its probabilities mean something."""
    found = {}
    for clip, load in SIDES.items():
        _, _, projection, scale = load()
        row = judged(clip, projection, data, texts)
        told: dict[str, dict[str, float]] = {}
        for which, sets in data.items():
            for name, part in sets.items():
                named = torch.stack([texts[chosen[clip].format(n)] for n in part.names])
                likely = (scale * F.normalize(projection(part.features[clip])) @ named.T).softmax(1).amax(1)
                told.setdefault(which, {})[name] = round(float(likely.mean()), 4)
        found[clip] = {"logit_scale": round(scale, 2), **row, "mean_probability_of_the_answer": told}
    return found


def main() -> None:
    """Judges every step and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    tune_allocator()
    data = parts(args.data)
    wanted = sorted({t.format(n) for part in data["train"].values() for n in part.names for t in TEMPLATES})
    texts = dict(zip(wanted, unit_texts(wanted), strict=True))
    s = Settings()
    views = Views(args.folders, s.seed, s.of_photos, s.of_icons)
    small = torch.from_numpy(views.small)
    steps = {"clip_lite0": lite0_steps(), "clip_default": default_steps(features_of(views, args.work), small)}
    rows: dict[str, dict[str, dict]] = {}
    for clip, each in steps.items():
        for name, embed in each.items():
            with torch.no_grad():
                row = rows.setdefault(clip, {})[name] = judged(clip, embed, data, texts)
            print(clip, name, row["template"], row["mean_of_train"], row["train"], row["test"], flush=True)
    chosen = {
        clip: next(r["template"] for name, r in each.items() if f"({clip})" in name) for clip, each in rows.items()
    }
    report = {"command": "python -m benchmarks.small_clips ../shared/data/pretrain --work DIR", "date": now()}
    report |= {
        "versions": versions(),
        "machine": machine(Backbone.load("default")),
        "weights": read_weights(SMALL_CLIP)[1],
    }
    report |= {"images": {w: {k: len(p.columns) for k, p in sets.items()} for w, sets in data.items()}}
    report |= {"steps": rows, "shipped": shipped(data, texts, chosen)}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
