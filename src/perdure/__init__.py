"""perdure: continual learning with pretrained models.

>>> from perdure import Backbone, load_stream, methods
>>> stream = load_stream("synthetic", tasks=3)
>>> method = methods.get("simplecil")(Backbone.load("test_efficientnet", pretrained=False))
>>> for task in stream:
...     method = method.fit_task(task)
>>> len(method.predict(stream.test(0)))
8
"""

from perdure import methods
from perdure.backbone import Backbone
from perdure.data import Stream, Task, load_stream
from perdure.errors import PerdureError
from perdure.memory import FeatureStore
from perdure.methods import FeatureMethod, Method
from perdure.train.runtime import tune_allocator

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
    "load_stream",
    "methods",
    "tune_allocator",
]
