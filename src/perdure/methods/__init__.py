"""One file per method; the registry finds them."""

from perdure.methods.base import FeatureMethod, Method, Tags, methods

__all__ = ["FeatureMethod", "Method", "Tags", "methods"]
