"""What single settings of the distillation bring, at a fixed small budget: short trainings on the same views.

    python -m benchmarks.distillation ../shared/data/pretrain --work DIR [--data ../shared/data]

Every row trains for 82 000 views (40 960 twice) and is judged by class means and cosine (NCM) on the transformer's
features: on one half of the training images of caltech101 and cifar10, with means from the other half, by which the
settings were chosen, and on the test images. Writes benchmarks/results/distillation.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import Backbone, tune_allocator
from perdure.backbone.lite0 import PREPROCESS
from perdure.data import LabelledImages, load_dataset
from perdure.run.summary import machine, now, versions
from scripts.distill_default_backbone import SAMPLE, Settings, Student, train
from scripts.distill_views import Shards, Teacher, Views, render

RESULTS = Path(__file__).parent / "results" / "distillation.json"
VIEWS, EPOCHS = 40_960, 2
TRIALS: dict[str, dict] = {
    "pooled features and contrast, batch 256, lr 1e-3": {
        "map_weight": 0.0,
        "relation_weight": 0.0,
        "batch_size": 256,
        "lr": 1e-3,
    },
    "with map (1) and relation, batch 256, lr 1e-3": {"map_weight": 1.0, "batch_size": 256, "lr": 1e-3},
    "pooled features and contrast, batch 128, lr 1e-3": {"map_weight": 0.0, "relation_weight": 0.0, "lr": 1e-3},
    "with map (0.3) and relation, batch 128, lr 2e-3": {},
}
DATA = ("caltech101", "cifar10")


@torch.inference_mode()
def stem_outputs(images: LabelledImages, teacher: Teacher) -> Tensor:
    """(n, 112, 14, 14) float16."""
    parts = [teacher(x.float() / 255)["stem"].half() for _, x in images.batches(PREPROCESS, 64)]
    return torch.cat(parts).permute(0, 3, 1, 2)


@torch.inference_mode()
def features(student: Student, stem: Tensor) -> Tensor:
    """(n, 192) class tokens, unit length."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [student.vit.forward_features(x.float())[:, 0].float() for x in stem.split(128)]
    return F.normalize(torch.cat(parts))


def ncm(fit: Tensor, labels: np.ndarray, test: Tensor, truth: np.ndarray) -> float:
    """Accuracy of class means and cosine."""
    ids = np.unique(labels)
    means = torch.stack([fit[torch.from_numpy(labels == c)].mean(0) for c in ids])
    return round(float((ids[(test @ F.normalize(means).T).argmax(1).numpy()] == truth).mean()), 4)


def judge(student: Student, stems: dict[str, dict[str, tuple[Tensor, np.ndarray]]]) -> dict[str, float]:
    """NCM within the training images and on the test images of each data set."""
    found = {}
    for name, splits in stems.items():
        (fit, labels), (test, truth) = ((features(student, x), y) for x, y in splits.values())
        found[f"{name}, halves of train"] = ncm(fit[::2], labels[::2], fit[1::2], labels[1::2])
        found[f"{name}, test"] = ncm(fit, labels, test, truth)
    return found


def main() -> None:
    """Runs every trial and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tune_allocator()
    base = Settings(views=VIEWS, epochs=EPOCHS)
    render(Views(args.folders, base.seed, base.photo_share), args.work / "views", VIEWS)
    shards, teacher, stems = Shards(args.work / "views", VIEWS), Teacher(), {}
    for name in DATA:
        whole = load_dataset(args.data / name)
        stems[name] = {s: (stem_outputs(x, teacher), x.labels) for s, x in (("fit", whole.train), ("test", whole.test))}
    sample = shards[np.sort(np.random.default_rng(0).choice(VIEWS, SAMPLE, replace=False))]
    rows = {}
    for i, (name, changes) in enumerate(TRIALS.items()):
        settings, start = Settings(**{"views": VIEWS, "epochs": EPOCHS, **changes}), time.perf_counter()
        torch.manual_seed(0)
        student, folder = Student(sample), args.work / f"trial{i}"
        folder.mkdir(exist_ok=True)
        train(student, shards, settings, folder)
        rows[name] = {"changes": changes, "seconds": round(time.perf_counter() - start), **judge(student, stems)}
        print(name, rows[name], flush=True)
    report = {
        "command": "python -m benchmarks.distillation ../shared/data/pretrain --work DIR",
        "date": now(),
        "rows": rows,
    }
    report |= {"machine": machine(Backbone.load("efficientnet_lite0")), "versions": versions()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
