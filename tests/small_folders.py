"""Folders of small images, no two alike: a colour for each class, and noise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def fill(root: Path, **classes: int) -> Path:
    """A folder with so many images of each class; those that are there already stay as they are.

    Args:
        root: made if need be.
        classes: images by class name.
    """
    return fill_named(root, classes)


def fill_named(root: Path, classes: dict[str, int], salt: str = "") -> Path:
    """:func:`fill` with names that are no words.

    Args:
        root: made if need be.
        classes: images by class name.
        salt: makes others of the same classes.
    """
    for name, n in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        colour = np.frombuffer(hashlib.sha256(name.encode()).digest()[:3], dtype=np.uint8).astype(int)
        for i in range(n):
            file = root / name / f"{salt}{i:03}.png"
            seed = np.frombuffer(hashlib.sha256(f"{salt}{name}{i}".encode()).digest()[:8], dtype=np.uint32)
            noise = np.random.default_rng(seed).integers(-60, 60, (12, 12, 3))
            if not file.exists():
                Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(file)
    return root
