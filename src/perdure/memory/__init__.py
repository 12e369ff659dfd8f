"""What is kept between tasks: frozen features on disk, and images."""

from perdure.memory.exemplars import Exemplars
from perdure.memory.features import FeatureStore
from perdure.memory.shelf import Features

__all__ = ["Exemplars", "FeatureStore", "Features"]
