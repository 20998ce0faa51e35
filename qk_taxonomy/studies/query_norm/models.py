"""Models that run: a hub id, a local folder or a GGUF file, opened by transformers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.gguf_format import GgufCheckpoint
from qk_taxonomy.checkpoints.local import LocalCheckpoint
from qk_taxonomy.errors import CheckpointError, StudyError
from qk_taxonomy.records import ModelRef
from qk_taxonomy.studies.query_norm.attention import observed
from qk_taxonomy.studies.query_norm.scores import AttentionBlock, ScoreBlock
from qk_taxonomy.studies.query_norm.watch import (
    AttentionLayer,
    attention_implementation,
    without_attention,
)
from qk_taxonomy.survey import resolve_device

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# Tokens of the comparison with the model's own attention.
_COMPARED = 32

# The median over tokens of the relative difference of their last hidden states: rounding stays far
# below, an attention that is not understood far above.
_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_DIFFERENCE_SHORT = 0.1

# RoBERTa and its kin count positions from behind the padding token's id.
_POSITIONS_AFTER_PADDING = {
    *("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "roberta-prelayernorm"),
    *("data2vec-text", "xmod", "longformer"),
}


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model that runs, and is known to attend as the capture has it.

    revision: the commit, packaged version or "local". causal: whether no query sees a later key.
    n_layers: with attention. longest: tokens that it has positions for; None where it has no limit.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    causal: bool
    n_layers: int
    longest: int | None

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self.model.device)


def open_model(
    ref: ModelRef, *, dtype: str = "float32", device: str = "auto", api: HfApi | None = None
) -> OpenModel:
    """Open a hub id, a local folder or a GGUF file, with its tokenizer; heads on top are left out.

    ref: of :func:`~qk_taxonomy.catalog.model_ref`. dtype: one of :data:`DTYPES`, of the weights and
    activations. Raises CheckpointError where the model cannot be found, reached or read, StudyError
    where transformers is missing or its attention cannot be captured.
    """
    transformers = _transformers()
    if dtype not in DTYPES:
        raise StudyError(f"There is no dtype {dtype!r}; there are {', '.join(DTYPES)}.")
    where = resolve_device(device)
    checkpoint = open_checkpoint(ref.ref, ref.revision, package=ref.package, hub=ref.hub, api=api)
    place, arguments = _for_transformers(checkpoint, ref)
    with _quiet(transformers), _explained(ref.ref):
        config = transformers.AutoConfig.from_pretrained(place, **arguments)
        _check_kind(config, ref.ref)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **arguments)
        model, loaded = transformers.AutoModel.from_pretrained(
            place, config=config, dtype=DTYPES[dtype], output_loading_info=True, **arguments
        )
        model = model.to(where)
    _check_loaded(ref.ref, loaded["missing_keys"])
    n_known = config.get_text_config().vocab_size
    if len(tokenizer) < n_known / 2:  # transformers makes an empty one where there are no files
        raise CheckpointError(
            f"{ref.ref} has a tokenizer of {len(tokenizer)} tokens for a model of {n_known}. Are "
            "the tokenizer's files there (tokenizer.json)?"
        )
    return opened(model, tokenizer, name=ref.ref, revision=checkpoint.revision)


def _for_transformers(checkpoint: Checkpoint, ref: ModelRef) -> tuple[str, dict[str, Any]]:
    """Where a checkpoint is, and the arguments that tell transformers so."""
    if isinstance(checkpoint, GgufCheckpoint):
        files = {tensor.file for tensor in checkpoint.tensors.values()}
        if len(files) > 1:
            raise CheckpointError(
                f"{min(files)} is one part of a GGUF model, and transformers runs whole files "
                "only. Join the parts with llama-gguf-split --merge."
            )
        return str(checkpoint.folder), {"gguf_file": files.pop()}
    if Path(ref.ref).expanduser().is_file():
        raise CheckpointError(
            f"{ref.ref} holds weights alone. Give the folder, with config.json and the tokenizer's "
            "files."
        )
    if isinstance(checkpoint, LocalCheckpoint):
        return str(checkpoint.folder), {}
    # At the commit that was looked up.
    return ref.ref, {"revision": checkpoint.revision}


def opened(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    revision: str = "local",
) -> OpenModel:
    """A transformers model that is there already.

    It runs some tokens, once with its own attention and once with the captured: raises StudyError
    where what comes out differs, or its attention cannot be captured.
    """
    _check_kind(model.config, name)
    model = model.eval()
    text = model.config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and text.model_type in _POSITIONS_AFTER_PADDING:
        longest -= text.pad_token_id + 1
    n_tokens = _COMPARED if longest is None else min(_COMPARED, longest)
    ids = np.random.default_rng(0).integers(text.vocab_size, size=n_tokens)
    seen = _Masks()
    result = OpenModel(model, tokenizer, name, revision, True, 0, longest)
    with attention_implementation(model, "eager"):
        own = run(result, ids)
    with observed(model, seen):
        other = run(result, ids)
    if not seen.n_layers:
        raise without_attention(model)
    if not bool(own.isfinite().all()):
        raise StudyError(
            f"The hidden states of {name} are not finite: they overflow in {result.dtype}, or the "
            "weights hold NaN. Try a wider --dtype: float32, or else float64."
        )
    difference = ((own - other).norm(dim=-1) / own.norm(dim=-1)).median().item()
    if not difference <= _DIFFERENCE.get(model.dtype, _DIFFERENCE_SHORT):
        raise StudyError(
            f"The attention of {name} ({type(model).__name__}) does something that is not known "
            f"here: its hidden states with the captured attention differ by {difference:.1%} from "
            "its own. Choose another model, or ask for support of this one."
        )
    return OpenModel(model, tokenizer, name, revision, seen.causal, seen.n_layers, longest)


def untrained(model: OpenModel, *, seed: int = 0) -> OpenModel:
    """A model of the same class, configuration, dtype and tokenizer that has learned nothing: with
    the random weights that transformers begins the training of such a model with.

    What such a model does hangs much on the spread of its weights, ``initializer_range``. A GGUF
    file does not say it, and the architecture's default is taken: with 0.02, 3.7 % of the heads of
    SmolLM2-135M are consistent given position, and with the 1/24 of its training all of them.

    Raises StudyError where its attention cannot be captured, or the memory does not suffice for
    both.
    """
    own = model.model
    name = f"an untrained {model.name}"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            twin = type(own)._from_config(deepcopy(own.config), dtype=own.dtype)
        return opened(twin.to(own.device), model.tokenizer, name=name, revision=model.revision)
    except (MemoryError, RuntimeError) as err:
        if not _is_memory(err):
            raise
        raise StudyError(
            f"The memory does not suffice for {name} beside the model. Take --dtype bfloat16, or "
            "--control none."
        ) from err


def run(model: OpenModel, ids: NDArray[np.int64]) -> torch.Tensor:
    """The last hidden states of a text, (T, d_model), in float32 or better.

    Raises StudyError where the memory does not suffice or the model wants more than text.
    """
    inputs = torch.from_numpy(ids)[None].to(model.model.device)
    try:
        with torch.no_grad():  # inference mode would do without forward-mode derivatives, too
            output = model.model(input_ids=inputs, use_cache=False)
    except StudyError:
        raise
    except (MemoryError, RuntimeError) as err:
        if not _is_memory(err):
            raise _cannot_run(model, err) from err
        raise StudyError(
            f"The memory does not suffice for {len(ids)} tokens of {model.name} in {model.dtype}. "
            "Take a shorter window (--context), or --dtype bfloat16."
        ) from err
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as err:
        raise _cannot_run(model, err) from err
    hidden = output[0][0]
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def _is_memory(err: MemoryError | RuntimeError) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(err, kinds) or "allocate memory" in str(err) or "not enough mem" in str(err)


def _cannot_run(model: OpenModel, err: Exception) -> StudyError:
    reason = " ".join(str(err).split())[:300] or type(err).__name__
    return StudyError(
        f"{model.name} ({type(model.model).__name__}) does not run on a text's tokens alone: "
        f"{reason}. Wanted is a model of text."
    )


class _Masks:
    """An observer of what may attend to what."""

    causal = True
    n_layers = 0

    def begin(self, layer: AttentionLayer) -> None:
        self.n_layers += 1

    def see(self, layer: AttentionLayer, scores: ScoreBlock, attention: AttentionBlock) -> None:
        later = scores.keys > scores.queries[:, None]
        self.causal &= not bool((later & scores.allowed).any())


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as err:
        raise StudyError(
            "Running a model takes transformers, which is not installed: "
            'pip install "qk-taxonomy[activations]".'
        ) from err
    return transformers


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """transformers tells nothing but errors that it raises: its warnings are of heads that are left
    out, and some of its bars are drawn where there is no terminal."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _explained(ref: str) -> Iterator[None]:
    """Turn transformers' errors about a model's files into one readable paragraph."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as err:
        raise StudyError(
            f"The memory does not suffice for the weights of {ref}. Take --dtype bfloat16."
        ) from err
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as err:
        if isinstance(err, StudyError):
            raise
        reason = " ".join(str(err).split())[:400] or type(err).__name__
        advice = (
            "Wanted are config.json, weights and a tokenizer of an architecture that it knows; a "
            "newer release may know more (pip install --upgrade transformers)."
        )
        # It names a package that it lacks so, in errors of several kinds.
        if "pip install" in reason:
            advice = 'pip install "qk-taxonomy[activations]" brings what is needed.'
        raise CheckpointError(
            f"transformers cannot open {ref}: {reason.rstrip('.')}. {advice}"
        ) from err


def _check_kind(config: PreTrainedConfig, name: str) -> None:
    """Raise StudyError for a model that is not one stack of layers on text."""
    if config.is_encoder_decoder:
        found = "an encoder-decoder model"
    elif not hasattr(config.get_text_config(), "vocab_size"):
        found = "a model without a vocabulary"
    else:
        return
    raise StudyError(
        f"{name} ({config.model_type}) is {found}; captured are models of text with one stack of "
        "layers, decoders or encoders. Choose such a one."
    )


def _check_loaded(ref: str, missing: set[str]) -> None:
    """Raise CheckpointError where layers have weights that no file gave, and random ones now."""
    layers = sorted(name for name in missing if re.search(r"\.\d+\.", f".{name}."))
    if layers:
        raise CheckpointError(
            f"{ref} has no weights for {len(layers)} tensors of its layers, such as {layers[0]}. "
            "Do config.json and weights belong together?"
        )
