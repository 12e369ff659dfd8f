"""Stock pretrained models behind one small interface."""

from perdure.backbone.backbone import Backbone
from perdure.backbone.insertable import Insertable
from perdure.backbone.kinds import require_kind
from perdure.backbone.names import BareNameWarning
from perdure.backbone.passes import Passes
from perdure.backbone.registered import backbones
from perdure.backbone.seats import Insertion, PromptTokens
from perdure.backbone.sites import SEATS, Site
from perdure.backbone.two_towers import TwoTowers, normalised
from perdure.backbone.vit import Prompt, TokenOutput, prefix

__all__ = [
    "SEATS",
    "Backbone",
    "BareNameWarning",
    "Insertable",
    "Insertion",
    "Passes",
    "Prompt",
    "PromptTokens",
    "Site",
    "TokenOutput",
    "TwoTowers",
    "backbones",
    "normalised",
    "prefix",
    "require_kind",
]
