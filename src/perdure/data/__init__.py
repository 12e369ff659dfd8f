"""Streams of tasks from any image folder or named data set."""

from perdure.data.datasets import Dataset, load_dataset
from perdure.data.images import ArraySource, FileSource, LabelledImages
from perdure.data.preprocess import Preprocess
from perdure.data.stream import Stream, Task, load_stream

__all__ = [
    "ArraySource",
    "Dataset",
    "FileSource",
    "LabelledImages",
    "Preprocess",
    "Stream",
    "Task",
    "load_dataset",
    "load_stream",
]
