"""A hub that has every model that documents name: tiny ones, made when they are asked for."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from loopback_hub import LoopbackHub, Repository
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tiny_models import TINY_MODELS
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from qk_taxonomy.catalog import find_family
from qk_taxonomy.studies.circuits.series import read_word_series, series_words

#: The model types of families, and of models that documents make up.
FAMILIES = {"llama-3": "llama", "opt": "opt", "pythia": "gpt_neox", "smollm2": "llama"}
MADE_UP = {"org/name": "llama", "org/decoder": "llama", "org/encoder": "bert"}

#: What documents say of them wants this much: `--layer 3 --head 5`, `--context 4096`.
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 4096,
}
PROJECTED = {"opt": {"word_embed_proj_dim": 48}}

Tensors = dict[str, NDArray[Any]]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and each word of the graded series as a token."""
    made = ByteLevelBPETokenizer()
    words = [f" {word}" for word in series_words(read_word_series())]
    made.train_from_iterator(words, vocab_size=2000, min_frequency=1, special_tokens=["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, bos_token="<s>")


@cache
def template(model_type: str) -> tuple[dict[str, bytes], Tensors]:
    """The files beside the weights of a tiny model of a type, and its tensors."""
    made = tokenizer()
    tiny = TINY_MODELS[model_type].but(
        **SIZES, **PROJECTED.get(model_type, {}), vocab_size=len(made)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.build(folder)
        made.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    del files["model.safetensors"]
    return files, tensors


def drawn(tensors: Tensors, seed: str) -> Tensors:
    """Tensors of the same shapes, matrices with random entries as a seed has them."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])
    rng = np.random.default_rng(number)
    return {
        name: (rng.standard_normal(array.shape) * array.shape[-1] ** -0.5).astype(array.dtype)
        if array.ndim > 1
        else array
        for name, array in tensors.items()
    }


@dataclass
class _TinyRepository(Repository):
    """Commits are made where a revision is asked for."""

    hub: DocumentHub | None = None
    name: str = ""
    model_type: str = ""
    promised: frozenset[str] = frozenset()

    def resolve(self, revision: str) -> str | None:
        assert self.hub is not None
        with self.hub.making:
            if revision in self.promised and revision not in self.revisions:
                files, tensors = template(self.model_type)
                weights = save(drawn(tensors, f"{self.name} {revision}"), {"format": "pt"})
                self.hub.add(self.name, {**files, "model.safetensors": weights}, revision=revision)
        return super().resolve(revision)


class DocumentHub(LoopbackHub):
    """Has all models of ``FAMILIES`` with their training checkpoints, and those of ``MADE_UP``."""

    def __init__(self) -> None:
        super().__init__()
        self.making = threading.Lock()
        for family, model_type in FAMILIES.items():
            for model in find_family(family).models:
                self._promise(model.id, model_type, gated=model.gated)
                if model.checkpoints is not None:
                    place = model.checkpoints.repository or model.id
                    self._promise(place, model_type, *model.checkpoints.revisions)
        for model_id, model_type in MADE_UP.items():
            self._promise(model_id, model_type)

    def _promise(self, name: str, model_type: str, *revisions: str, gated: bool = False) -> None:
        promised = frozenset({"main", *revisions})
        known = self.repositories.get(name)
        if isinstance(known, _TinyRepository):
            promised |= known.promised
            gated |= known.gated
        self.repositories[name] = _TinyRepository(
            gated=gated, hub=self, name=name, model_type=model_type, promised=promised
        )
