"""perdure: continual learning with pretrained models.

>>> from perdure import Backbone, load_stream, methods
>>> stream = load_stream("synthetic", tasks=3)
>>> method = methods.get("simplecil")(Backbone.load("test_efficientnet", pretrained=False))
>>> for task in stream:
...     method = method.fit_task(task)
>>> len(method.predict(stream.test(0)))
8
"""

from typing import TYPE_CHECKING

from perdure.lazy import on_demand

if TYPE_CHECKING:  # imported when first asked for: a new name is a line here, and one in __all__
    from perdure import methods
    from perdure.backbone import Backbone
    from perdure.data import Stream, Task, load_stream
    from perdure.errors import PerdureError
    from perdure.eval import evaluate
    from perdure.memory import FeatureStore
    from perdure.methods import FeatureMethod, Method
    from perdure.run import load, load_recipe, merge, run_recipe, save
    from perdure.train.runtime import tune_allocator
else:
    __getattr__, __dir__ = on_demand(__name__)

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "FeatureMethod",
    "FeatureStore",
    "Method",
    "PerdureError",
    "Stream",
    "Task",
    "__version__",
    "evaluate",
    "load",
    "load_recipe",
    "load_stream",
    "merge",
    "methods",
    "run_recipe",
    "save",
    "tune_allocator",
]
