"""What is kept between tasks: frozen features on disk."""

from perdure.memory.features import Features, FeatureStore

__all__ = ["FeatureStore", "Features"]
