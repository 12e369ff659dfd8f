"""What a training step of ZSCL costs, counted in floating-point operations, in units of one frozen image pass F.

    python -m benchmarks.clip_costs

On ViT-B/16's shapes with random weights (only the shapes matter). Operations are those of matrix products, convolutions
and attention (``torch.utils.flop_counter``), of the method itself: tasks are taught with one step and with two, once
from an empty store and then again. What the second step adds is a step; what the empty store adds is the teacher. Two
numbers of classes tell a step's images and its class names apart. A step's images are few here: costs are per image,
and names are shared out to 64 images, as in the paper. The rest of a step, in which every weight is touched once or a
few times (AdamW, mean, pull), has no such operations.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.records import ResultFile
from perdure import Backbone, FeatureStore
from perdure.backbone import TwoTowers
from perdure.backbone.passes import CPU_BATCH
from perdure.data import Reference, Task
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.zscl import ZSCL
from perdure.run.summary import machine, now, versions

FILE = ResultFile(Path(__file__).parent / "results" / "clip_costs.json", Path("runs/clip_costs/.lock"))
BACKBONE = "open_clip/ViT-B-16"
IMAGES, CLASSES, SHARED = 2, (2, 4), 64  # per step, of the task and beside them; of two tasks; who shares the names
SENTENCES = ("a drawing of stripes", "some dots", "rings on water")
MOST = {"images": 7.0, "names": 0.008}  # specification, section 10: at most 7 F + 0.008 F C per training image


def flops(act: Callable[[], object]) -> int:
    """Floating-point operations of one call.

    Args:
        act: any work.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused attention is not counted
        act()
    return counter.get_total_flops()


def task_of(n_classes: int) -> Task:
    """Made-up images, two of each class.

    Args:
        n_classes: how many.
    """
    ids = list(range(n_classes))
    return class_incremental(synthetic_dataset(ids, train_per_class=2), [n_classes], ids)[0]


def taught(backbone: TwoTowers, store: FeatureStore, steps: int, n_classes: int, seed: int) -> dict[str, int]:
    """Operations and passes of a fresh method's first task; two steps draw all reference images there are.

    Args:
        backbone: the first CLIP.
        store: of the teacher's embeddings.
        steps: of the training.
        n_classes: of the task.
        seed: with another one, the student learns other weights, by which no text was read before.
    """
    reference = Reference(synthetic_dataset(range(2), train_per_class=IMAGES, seed=1).train, SENTENCES)
    config = {"train": {"iterations": steps, "batch_size": IMAGES}, "distill": {"batch_size": IMAGES}}
    method, task = ZSCL(backbone, config, seed=seed, store=store, reference=reference), task_of(n_classes)
    images, texts = backbone.passes.images, backbone.passes.texts
    counted = flops(lambda: method.fit_task(task))
    return {"flops": counted, "images": backbone.passes.images - images, "texts": backbone.passes.texts - texts}


def step_of(backbone: TwoTowers, store: FeatureStore, n_classes: int) -> dict[str, int]:
    """What the second step adds where the store has all that the teacher says.

    Args:
        backbone: the first CLIP.
        store: full.
        n_classes: of the task.
    """
    one, two = (taught(backbone, store, steps, n_classes, seed=10 * n_classes + steps) for steps in (1, 2))
    return {key: two[key] - one[key] for key in one}


def costs(backbone: TwoTowers) -> dict[str, Any]:
    """All costs, in F.

    Args:
        backbone: the first CLIP.
    """
    side = backbone.preprocess.image_size
    image = torch.zeros(IMAGES, 3, side, side, dtype=torch.uint8)
    unit = flops(lambda: backbone.features(image)) / IMAGES
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder)
        cold, warm = (taught(backbone, store, 2, CLASSES[0], seed) for seed in (0, 1))
        steps = [step_of(backbone, store, n) for n in CLASSES]
    name = (steps[1]["flops"] - steps[0]["flops"]) / (CLASSES[1] - CLASSES[0])
    student = (steps[0]["flops"] - CLASSES[0] * name) / IMAGES / unit
    sentence = flops(lambda: backbone.text.embeddings(SENTENCES[:1])) / CPU_BATCH / unit
    teacher = (cold["flops"] - warm["flops"]) / unit - CPU_BATCH * sentence  # the sentences pass as one batch
    drawn = cold["images"] - warm["images"]
    return {
        "F_gflop": unit / 1e9,
        "student_per_task_image": student,
        "teacher_per_reference_image_once_ever": teacher / drawn,
        "images_in_all": student + teacher / drawn,
        "names_per_class_and_task_image": name / unit / SHARED,
        "sentence_once_ever": sentence,
        "passes_of_a_step": {
            "task images": IMAGES, "reference images": IMAGES, "student images": steps[0]["images"],
            "classes": CLASSES[0], "student texts": steps[0]["texts"],
        },
        "passes_of_the_teacher": {"images drawn": drawn, "sentences": cold["texts"] - warm["texts"]},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Counts, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    torch.set_num_threads(1)
    backbone = Backbone.load(BACKBONE, pretrained=False, device="cpu")
    row = {"at_most": MOST, "counted": costs(backbone)}  # type: ignore[arg-type]
    print(row, flush=True)
    with FILE.changing() as held:
        held |= {"command": "python -m benchmarks.clip_costs", "backbone": backbone.name, "date": now()}
        held |= {"machine": machine(backbone), "versions": versions()}
        held.setdefault("rows", {})["zscl"] = row


if __name__ == "__main__":
    main()
