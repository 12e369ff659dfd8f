"""Proves that a change of the code moves no bits: hashes what every method learns and scores, before and after.

    python -m scripts.equal_bits                   writes benchmarks/results/equal_bits.json
    python -m scripts.equal_bits --check           compares with that file; exit 1 and the names if anything differs
    python -m scripts.equal_bits --only slca mos   these methods alone

Every registered method runs in its small settings, and again in settings that lead through its other branches, over
two synthetic tasks with one thread on a Vision Transformer and on a convolutional network (or a second Vision
Transformer, for methods that need one). Hashed are the scores, bit for bit, and everything that the state holds, but
for the names of classes and the hashes of images. The names of the state's entries and their order are left out, so
that a change may rename them. The hashes are those of one kind of CPU: the file says which.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.backbone import Backbone
from perdure.checks.subject import reference_for, small_stream
from perdure.config import laid_over, load
from perdure.errors import BackboneError, DataError
from perdure.memory import FeatureStore
from perdure.methods import methods

# what a method was taught, and on what: no result of training
ABOUT = {"names_", "displays_", "value_range_", "n_taught_", "taught_", "origin_"}
FILE = Path("benchmarks/results/equal_bits.json")
STILL: dict[str, Any] = {"augment": {"min_scale": 1.0, "flip": False}}
OTHER: dict[str, Any] = {
    "optimizer": "adam", "schedule": {"name": "milestone", "milestone": 1}, "epochs": 2, "clip_norm": 0.5
}  # fmt: skip
DECAY = {"name": "adam", "weight_decay": 5e-4}  # as the default optimiser has it, where a kind starts anew
ADAPTED = {"adam, milestone": {"train": {**OTHER, "optimizer": DECAY}}, "still views": {"train": STILL}}
TRAINED = {"adam, milestone": {"train": OTHER}, "still views": {"train": STILL}}
DEEP = {"variant": "vpt_deep", "train": {"epochs": 1, "batch_size": 8}}
PHASE = {"rank": 4, "train": {"epochs": 1}}


def inside(section: str, branches: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same branches, their settings in a section."""
    return {name: {section: settings} for name, settings in branches.items()}


BRANCHES: dict[str, dict[str, dict[str, Any]]] = {
    "aper": inside("adapt", {
        **{v: {"variant": v, "train": DEEP["train"]} for v in ("finetune", "vpt_shallow", "vpt_deep", "ssf")},
        "zero prompts": {**DEEP, "prompt_init": "zeros", "train": {**DEEP["train"], **STILL}},
        "resize": {"train": {"augment": {"resize": 256}}}, **ADAPTED,
    }),
    "ranpac": {
        "adapter": {"adapt": {"variant": "adapter", **PHASE}}, "cumulative": {"ridge": "cumulative"},
        "fixed": {"ridge": {"name": "fixed", "value": 10.0}}, "no projection": {"projection_dim": 0},
        "ssf, cosine": {"adapt": {"variant": "ssf", "train": {"epochs": 1, **STILL}}, "head": "cosine"},
    },
    "fecam": {
        "adapter": {"adapt": {"variant": "adapter", "rank": 4, **ADAPTED["adam, milestone"]}},
        "tukey": {"features": "tukey", "metric": {"shrink_diagonal": 3.0, "shrink_off_diagonal": 3.0}},
        "released": {"covariance": "common_released"},
        "pilot": {"preset": "pilot", "adapt": {"train": {"epochs": 1}}},
        "common": {
            "covariance": "common", "features": "raw", "metric": {"normalise": False, "log_determinant": True},
        },
    },
    "slca": {
        "paper": {"reset_final_norm": True, "train": {"augment": {"resize": 256}, "clip_norm": 1.0}},
        "no alignment": {"align": "none"},
        "plain logits": {
            "align": {"tau": 0.0},
            "train": {"optimizer": {"name": "adamw", "weight_decay": 5e-4}, "schedule": "cosine", **STILL},
        },
    },
    "ease": {
        "paper": {"reweight": "paper", "beta": 0.5, "sim_temperature": 0.5}, **inside("adapter", ADAPTED),
    },
    "mos": {
        "centroids": {"gaussian": "centroids"}, "variance": {"gaussian": "variance", "merge_every": "epoch"},
        "at the end": {"merge_every": "task_end", "ensemble": False, "align": "none"}, **inside("adapter", ADAPTED),
    },
    "mos_release": {"variance": {"gaussian": "variance"}},
    "finetune": {"longer": {"train": {"epochs": 2, "clip_norm": 0.5, "augment": {"min_scale": 0.2}}}},
    "joint": {"longer": {"train": {"epochs": 5, "lr": 0.01}}},
    "vpt": {
        "first task": {"mode": "first_task"}, "shallow": {"variant": "shallow", "pool": "prompt"},
        "cosine": {"head": "cosine", "pool": "patch+prompt"},
        "pilot": {"preset": "pilot_deep", "train": {"epochs": 1}},
        "class token": {"pool": "cls", "init": "zeros"}, **TRAINED,
    },
    "l2p": {
        "votes": {"train_prompts": {"vote": 4}, "vote": {"batch_size": 4}},
        "slots": {
            "train_prompts": {"name": "task_slot", "copy_prev": True}, "head_input": "cls+prompt", "prompt_pos": "cls",
        },
        "by class": {"vote": {"order": "class_sorted"}, "train": {"drop_last": "always"}},
        "clean queries": {"query_view": "clean", "logits": "seen", "head_input": "cls"}, **TRAINED,
    },
    "dualprompt": {
        "mean keys": {"keys": "mean", "copy_prev": False},
        "scrambled": {"kv_layout": "scrambled"},
        "votes": {"vote": {"batch_size": 4, "order": "shuffled"}, "top_k": 2}, **TRAINED,
    },
    "coda_prompt": {
        "pool": {"components": {"name": "pool", "pool": 6, "tasks": 3, "ortho": "whole"}, "mu": 0.1},
        "released": {
            "train": {"schedule": {"name": "quarter_cosine", "released": True}, "epochs": 3, "drop_last": "always"}
        }, **TRAINED,
    },
    "dap": {
        "released": {"keys": {"pull_over": "sum"}, "head_init": "kaiming_fan_out", "mask_by_task": True},
        "mean keys": {"keys": "mean", "mixer_init": "normal_1e-2", "last_block_prompts": False},
        "votes": {"vote": {"batch_size": 4}},
        "sgd": {"train": {"optimizer": "sgd", "lr": 0.1, "augment": {"flip": True}}},
    },
}  # fmt: skip


def backbones() -> dict[str, Backbone]:
    """The Vision Transformer, and what else a method is tried on, the first that it takes."""
    second = Backbone.load("test_vit2", pretrained=False, device="cpu")
    for name, scale in second.model.named_parameters():
        if name.endswith("gamma"):
            scale.fill_(1.0)  # at their 1e-5 no prompt can be seen in a score
    names = {"test_vit": "test_vit", "test_efficientnet": "test_efficientnet", "hybrid": "vit_tiny_r_s16_p8_224"}
    return {key: Backbone.load(name, pretrained=False, device="cpu") for key, name in names.items()} | {
        "test_vit2": second
    }


def pieces(value: Any) -> Iterator[bytes]:
    """Every tensor and plain value of a state, as bytes that tell kind, shape and content."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} ".encode() + value.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from pieces(entry)
    elif isinstance(value, list | tuple) and any(isinstance(entry, Tensor | Mapping) for entry in value):
        for entry in value:
            yield from pieces(entry)
    else:
        yield json.dumps(value).encode()


def digest(parts: Iterator[bytes]) -> str:
    """One hash of all parts, whatever their order."""
    each = sorted(hashlib.blake2b(part, digest_size=16).digest() for part in parts)
    return hashlib.blake2b(b"".join(each), digest_size=16).hexdigest()


def fitted(name: str, backbone: Backbone, settings: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of one method's state and scores after two tasks."""
    kind, stream = methods.get(name), small_stream((2, 2))
    with tempfile.TemporaryDirectory() as folder:
        config = load(kind.Config, laid_over(kind.tags.small, settings))
        method = kind(backbone, config, seed=3, store=FeatureStore(Path(folder)), **reference_for(kind))
        for task in stream:
            method.fit_task(task)
        state = method.state_dict()  # before the tests: mos_release's change it
        learned = digest(pieces({name: value for name, value in state.items() if name not in ABOUT}))
        scores = torch.cat([torch.cat(list(method.scores_of(stream.test(i)))) for i in range(2)])
    return {"state": learned, "scores": digest(iter([scores.numpy().tobytes()]))}


def main() -> None:
    """Writes the hashes, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed hashes")
    parser.add_argument("--only", nargs="+", default=methods.names(), choices=methods.names())
    parser.add_argument("--file", type=Path, default=FILE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    models, found = backbones(), {}
    for name in args.only:
        for branch, settings in {"small": {}, **BRANCHES.get(name, {})}.items():
            tried: dict[str, Any] = {}
            for key, backbone in models.items():
                if len(tried) == 2:
                    break
                try:
                    tried[key] = fitted(name, backbone, settings)
                except (BackboneError, DataError):  # tukey takes no features below 0
                    continue
            found[f"{name}: {branch}"] = tried
            print(f"{name}: {branch}", *tried, flush=True)
    if not args.check:
        about = {"command": "python -m scripts.equal_bits", "machine": cpu(), "torch": torch.__version__}
        args.file.write_text(json.dumps({**about, "hashes": found}, indent=1) + "\n", encoding="utf-8")
        return
    recorded = json.loads(args.file.read_text(encoding="utf-8"))["hashes"]
    wanted = {key: value for key, value in recorded.items() if key.split(":")[0] in args.only}
    odd = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    print(f"{len(wanted) - len(odd)} of {len(wanted)} cases are equal to the bit")
    if odd:
        sys.exit("\n".join(["These differ:", *odd]))


def cpu() -> str:
    """This machine's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
