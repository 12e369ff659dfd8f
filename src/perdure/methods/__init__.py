"""One file per method; the registry finds them.

>>> import perdure
>>> "slca" in perdure.methods, perdure.methods.get("slca").__name__
(True, 'SLCA')
"""

import sys
import types

from perdure.methods.base import FeatureMethod, Method, Tags, methods

__all__ = ["FeatureMethod", "Method", "Tags", "aliases", "get", "methods", "names", "register"]

aliases, get, names, register = methods.aliases, methods.get, methods.names, methods.register


class _Package(types.ModuleType):
    def __contains__(self, name: object) -> bool:
        return name in methods


sys.modules[__name__].__class__ = _Package
