"""Stock pretrained models behind one small interface."""

from perdure.backbone.backbone import BUILT_IN, Backbone, Passes
from perdure.backbone.names import BareNameWarning
from perdure.backbone.vit import Prompt, TokenOutput

__all__ = ["BUILT_IN", "Backbone", "BareNameWarning", "Passes", "Prompt", "TokenOutput"]
