"""Streams of tasks from any image folder or named data set."""

from typing import TYPE_CHECKING

from perdure.lazy import on_demand

if TYPE_CHECKING:
    from perdure.data.datasets import Dataset, load_dataset
    from perdure.data.images import ArraySource, FileSource, LabelledImages
    from perdure.data.loading import load_stream
    from perdure.data.preprocess import Preprocess
    from perdure.data.reference import Reference
    from perdure.data.stream import Candidate, Stream, Task
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "ArraySource",
    "Candidate",
    "Dataset",
    "FileSource",
    "LabelledImages",
    "Preprocess",
    "Reference",
    "Stream",
    "Task",
    "load_dataset",
    "load_stream",
]
