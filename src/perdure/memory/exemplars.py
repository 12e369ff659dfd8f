"""Exemplars: training images kept for later tasks, as the bytes of their files.

A kept image decodes to the very pixels that the task's own image gave and carries the same content key: its views are
those of the original, and its frozen features are in the store already. Images of an array are kept as PNG.

Source: herding is that of Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017,
algorithms 4 and 5. A reservoir is the sample of algorithm R in Vitter, "Random sampling with a reservoir", ACM TOMS
1985. There an image takes the slot of another; here each image draws a number once and the lowest stay. Every image of
the stream is as likely to be kept either way, and so the sample can also be cut down, or measured in bytes.
Cost: an image's file and 40 bytes; no backbone pass. Herding multiplies n_c * d numbers per image chosen.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from perdure.data import LabelledImages
from perdure.data.images import KEY_BYTES
from perdure.data.reading import Reading, readable
from perdure.errors import CheckpointError, ConfigError, UnknownNameError, did_you_mean
from perdure.learned import learned
from perdure.memory.shelf import Features

Policy = Literal["herding", "random", "reservoir"]
FeaturesOf = Callable[[LabelledImages], Features | Tensor]
"""The (n, d) features of images, e.g. ``lambda data: store.features(backbone, data)``."""

RECORD_BYTES = KEY_BYTES + 3 * 8
"""Kept beside an image's file: its key, label, end and order of choice."""


class Exemplars(nn.Module):
    """Images kept within a budget, class by class in order of arrival, each class in its order of choice.

    All tensors are replaced when images are added, never changed in place. Loading a state resizes them.

    Args:
        policy: ``herding``: those whose mean follows the mean of the class's normalised features. ``random``: any of
            each class. ``reservoir``: any of all images seen, so that frequent classes keep more.
        n_images: budget, images in all. Classes share it alike, the first seen get what is left over, and a class with
            fewer images leaves its share unused; a reservoir is not shared.
        n_per_class: budget, images of each class.
        total_bytes: budget, :attr:`nbytes`. It is filled with every class's first choice, every class's second and so
            on (a reservoir: in order of choice), until an image does not fit.

    Raises:
        ConfigError: unless exactly one budget is given, at least 1.
        UnknownNameError: for an unknown policy.
    """

    STATE: ClassVar = {
        "files": learned("bytes", torch.uint8),
        "ends": learned("exemplars", torch.long),
        "keys": learned(f"exemplars, {KEY_BYTES}", torch.uint8),
        "labels": learned("exemplars", torch.long, least=None),
        "order": learned("exemplars", torch.long),
    }

    merges_itself: ClassVar = True

    files: Tensor
    ends: Tensor
    keys: Tensor
    labels: Tensor
    order: Tensor

    def __init__(
        self,
        policy: Policy,
        *,
        n_images: int | None = None,
        n_per_class: int | None = None,
        total_bytes: int | None = None,
    ) -> None:
        super().__init__()
        if policy not in get_args(Policy):
            hint = did_you_mean(policy, get_args(Policy))
            raise UnknownNameError("Exemplars", "policy", "a known policy", policy, hint)
        budgets = {"n_images": n_images, "n_per_class": n_per_class, "total_bytes": total_bytes}
        given = {name: budget for name, budget in budgets.items() if budget is not None}
        if len(given) != 1 or min(given.values()) < 1:
            hint = "Give n_images, n_per_class or total_bytes"
            raise ConfigError("Exemplars", "budget", "exactly one number, at least 1", given, hint)
        self.policy, self.n_images, self.n_per_class, self.total_bytes = policy, n_images, n_per_class, total_bytes
        self.register_buffer("files", torch.zeros(0, dtype=torch.uint8))  # the bytes of all files, one after the other
        self.register_buffer("ends", torch.zeros(0, dtype=torch.long))  # (n,) where in ``files`` each file ends
        self.register_buffer("keys", torch.zeros(0, KEY_BYTES, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))  # (n,) class ids
        self.register_buffer("order", torch.zeros(0, dtype=torch.long))  # (n,) the lowest of a class came first

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return self  # files are decoded on the CPU

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the files and of what is kept beside them."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def classes(self) -> tuple[int, ...]:
        """The class ids, in order of arrival."""
        return tuple(dict.fromkeys(self.labels.tolist()))

    def require_room(self, n_classes: int) -> None:
        """To be asked before a training after which images are added.

        Args:
            n_classes: of all images that will have been added.

        Raises:
            ConfigError: if ``n_images`` does not allow one image per class.
        """
        if self.n_images is not None and self.n_images < n_classes:
            raise self._no_room(n_classes)

    def images(self) -> LabelledImages:
        """What is kept, to be decoded, joined to a task's images, or looked up in the feature store."""
        return LabelledImages(_KeptFiles(self.files, self.ends, self.keys), self.labels.cpu().numpy())

    def add(self, data: LabelledImages, rng: torch.Generator, features_of: FeaturesOf | None = None) -> None:
        """Keeps some of ``data`` and, where the budget asks for it, fewer of the others: the last chosen go first.

        A class that comes again is chosen anew from what is kept of it and what is new.

        Args:
            data: images of new or known classes, all of them seen for the first time.
            rng: a CPU generator; herding draws nothing from it.
            features_of: asked by herding, once, for the images among which it chooses.

        Raises:
            ConfigError: if herding is given no features, or the budget does not allow one image per class.
            DataError: naming the image, if a file is gone or changed.
        """
        both = self.images().joined(data)
        if self.policy == "herding":
            order = self._herded(both, data.classes, features_of)
        else:
            order = torch.cat([self.order.cpu(), torch.randint(2**62, (len(data),), generator=rng)])
        self._keep(both, order)

    def merge(self, other: Exemplars) -> None:
        """Keeps what another keeps too, as far as the budget allows: the first chosen of either come first.

        Args:
            other: with class ids of the same meaning.

        Raises:
            ConfigError: if the budget does not allow one image per class.
        """
        theirs = other.images()
        new = np.flatnonzero(~np.isin(theirs.keys, self.images().keys))
        self._keep(self.images().joined(theirs.subset(new)), torch.cat([self.order.cpu(), other.order.cpu()[new]]))

    def _keep(self, both: LabelledImages, order: Int[Tensor, " n"]) -> None:
        """Takes what fits into the budget, with the order of choice."""
        kept = self._within_budget(both, order.numpy())
        rows = np.fromiter(kept, dtype=np.int64, count=len(kept))
        sizes = [len(file) for file in kept.values()]
        self.files = torch.from_numpy(np.array(bytearray(b"".join(kept.values())), dtype=np.uint8))
        self.ends = torch.tensor(sizes, dtype=torch.long).cumsum(0)
        self.keys = torch.from_numpy(both.keys[rows].view(np.uint8).reshape(-1, KEY_BYTES).copy())
        self.labels, self.order = torch.from_numpy(both.labels[rows]), order[rows]

    def _herded(self, both: LabelledImages, classes: tuple[int, ...], features_of: FeaturesOf | None) -> Tensor:
        """The order of choice of all images, anew for ``classes``."""
        if features_of is None:
            hint = "Pass e.g. lambda data: store.features(backbone, data)"
            raise ConfigError("Exemplars.add", "features_of", "given for herding", None, hint)
        at_most = self._quota(len(both.classes)).max(initial=0)
        order = F.pad(self.order.cpu(), (0, len(both) - len(self)))
        positions = np.flatnonzero(np.isin(both.labels, classes))
        features = features_of(both.subset(positions))
        for c in classes:
            of_class = np.flatnonzero(both.labels[positions] == c)
            rows = F.normalize(features[of_class].double().cpu(), dim=1)
            chosen = herding(rows, min(int(at_most), len(rows)))
            rank = torch.full((len(rows),), len(rows))
            rank[chosen] = torch.arange(len(chosen))
            order[positions[of_class]] = rank
        return order

    def _within_budget(self, both: LabelledImages, order: np.ndarray) -> dict[int, bytes]:
        """Position and file of what is kept, class by class in order of choice."""
        columns = {c: column for column, c in enumerate(dict.fromkeys(both.labels.tolist()))}
        column = np.array([columns[c] for c in both.labels.tolist()], dtype=np.int64)
        by_class = np.lexsort((order, column))
        order, column = order[by_class], column[by_class]
        rank = np.arange(len(both)) - np.searchsorted(column, column)  # in its class
        then = (order,) if self.policy == "reservoir" else (column, rank)
        queue = np.lexsort((*then, rank > 0))  # the first choice of every class comes before all others
        queue = queue[(rank < self._quota(len(columns))[column])[queue]][: self.n_images]
        files: dict[int, bytes] = {}
        left = float("inf") if self.total_bytes is None else self.total_bytes
        for place in queue.tolist():
            file = both.bytes_of(int(by_class[place]))
            left -= len(file) + RECORD_BYTES
            if left < 0:
                break
            files[place] = file
        if len(files) < len(columns):
            raise self._no_room(len(columns))
        return {int(by_class[place]): files[place] for place in sorted(files)}

    def _no_room(self, n_classes: int) -> ConfigError:
        name, budget = ("n_images", self.n_images) if self.n_images else ("total_bytes", self.total_bytes)
        must_be = f"enough for one image of each of {n_classes} classes"
        return ConfigError("Exemplars.add", name, must_be, budget, "Raise it")

    def _quota(self, n_classes: int) -> np.ndarray:
        """The most images of each class."""
        if self.n_images is None or self.policy == "reservoir":
            return np.full(n_classes, self.n_per_class or np.iinfo(np.int64).max)
        share, left_over = divmod(self.n_images, max(n_classes, 1))
        return share + (np.arange(n_classes) < left_over)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        new = {name: state[prefix + name] for name, _ in self.named_buffers()}
        lengths = {name: len(new[name]) for name in ("ends", "keys", "labels", "order")}
        last = int(new["ends"][-1]) if len(new["ends"]) else 0
        if len(set(lengths.values())) > 1 or last != len(new["files"]):
            got = {**lengths, "files": f"{len(new['files'])} bytes, ending at {last}"}
            hint = "Load what state_dict gave"
            raise CheckpointError("load_state_dict", "exemplars", "of one length, with whole files", got, hint)
        for name, tensor in new.items():
            setattr(self, name, torch.empty_like(tensor))
        super()._load_from_state_dict(state, prefix, *rest)


def herding(rows: Float[Tensor, "n d"], n_chosen: int) -> Int[Tensor, " {n_chosen}"]:
    """Rows chosen one after the other so that the mean of the chosen stays as near as possible to the mean of all.

    Equally good rows: the first. Source: iCaRL (see the module), algorithm 4.

    Args:
        rows: features of one class, normalised or not.
        n_chosen: how many, at most n.
    """
    x = rows.double().cpu().numpy()
    squares, to_mean, to_chosen = np.square(x).sum(1), x @ x.mean(0), np.zeros(len(x))
    chosen: list[int] = []
    for k in range(1, n_chosen + 1):
        # |k * mean - sum of chosen - row|^2 without what all rows have in common
        distance = squares - 2 * (k * to_mean - to_chosen)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
        to_chosen += x @ x[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.long)


class _KeptFiles:
    """An image source in memory: the bytes of files."""

    def __init__(self, files: Tensor, ends: Tensor, keys: Tensor) -> None:
        self._files, self._ends = files.cpu().numpy(), [0, *ends.tolist()]
        self.keys: np.ndarray = keys.cpu().numpy().view(f"S{KEY_BYTES}")[:, 0]

    def read(self, row: int) -> Image.Image:
        file, hint = io.BytesIO(self.bytes_of(row)), "Load an earlier state, or learn the class again"
        with readable(self.name(row), hint):
            return Reading().opened(file)

    def bytes_of(self, row: int) -> bytes:
        return self._files[self._ends[row] : self._ends[row + 1]].tobytes()

    def name(self, row: int) -> str:
        return f"exemplars[{row}]"
