"""What a prompt method does with one training batch, without the training around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from perdure import Task
from perdure.methods.base import PromptMethod
from perdure.train.batches import NO_IMAGES, Batch


def loss_of(method: PromptMethod[Any], task: Task) -> Callable[[Batch], Tensor]:
    """The loss that the method would train on ``task``. The method is as if it had been trained, by no step."""
    with mock.patch.object(method, "_train") as train:
        method.fit_task(task)
    loss: Callable[[Batch], Tensor] = train.call_args.args[3]
    return loss


def batch_of(tokens: Tensor, queries: Tensor | None = None, columns: Tensor | None = None) -> Batch:
    """A training batch of embedded images (b, n, d) and their queries (b, d), all of column 0 if not told."""
    at = torch.arange(len(tokens))
    return Batch(at, torch.zeros_like(at) if columns is None else columns, NO_IMAGES, tokens, queries, len(at))
