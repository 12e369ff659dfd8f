"""Common checks for every method, public so that methods of other packages can be held to the same promises.

>>> from perdure.checks import check_method
>>> from perdure.methods import methods
>>> all(r.ok for r in check_method(methods.get("simplecil"), only=["check_constructor_learns_nothing"]))
True
"""

from perdure.checks.result import CheckResult, own_frames
from perdure.checks.runner import CHECKS, check_method
from perdure.checks.subject import CheckFailedError, Subject, tiny_backbone

__all__ = ["CHECKS", "CheckFailedError", "CheckResult", "Subject", "check_method", "own_frames", "tiny_backbone"]
