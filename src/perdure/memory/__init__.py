"""What is kept between tasks: frozen features on disk."""

from perdure.memory.features import FeatureStore
from perdure.memory.shelf import Features

__all__ = ["FeatureStore", "Features"]
