"""What every head does at every token of a text: norms of queries, entropies, and the like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.attention import observed
from qk_taxonomy.studies.query_norm.models import OpenModel, run
from qk_taxonomy.studies.query_norm.records import FEWEST_KEYS, MEASURES, LayerMeasures, Sample
from qk_taxonomy.studies.query_norm.scores import AttentionBlock, ScoreBlock
from qk_taxonomy.studies.query_norm.watch import AttentionLayer, Scaling

# Of the keys' attention, for k_eff.
_SHARE = 0.9


def capture(
    model: OpenModel,
    tokens: Sequence[int] | NDArray[np.int64],
    *,
    name: str,
    after_rope: bool = False,
    scale: Mapping[tuple[int, int], float] | None = None,
    scaled: Literal["query", "key"] = "query",
) -> Sample:
    """Every layer's measures of one text, in one forward pass.

    tokens: (T,), ids. Norms of queries are those before RoPE, or ``after_rope``. ``scale``: factors
    by (layer, head) of queries or, where ``scaled`` says so, of keys (head then counts key heads);
    later layers see what becomes of it. Raises StudyError where the text has too few tokens or
    more than the model has positions for, the activations are not finite, the memory does not
    suffice, or the attention is of a kind that is not known.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    check_text(model, ids)
    observer = _Measuring(ids.shape[0])
    scaling = Scaling(scale or {}, scaled)
    with observed(model.model, observer, after_rope=after_rope, scaling=scaling):
        run(model, ids)
    missing = {layer for layer, _ in scaling.factors} - {m.layer for m in observer.layers}
    if missing:
        raise StudyError(
            f"{model.name} has no attention in layer {sorted(missing)[0]}, which was to be scaled; "
            f"it has in {', '.join(str(m.layer) for m in observer.layers)}."
        )
    return Sample(name, ids, observer.causal, observer.named())


def check_text(model: OpenModel, ids: NDArray[np.int64]) -> None:
    """Raise StudyError where a text has too few or many tokens for a model, or those of another."""
    n_tokens, longest = len(ids), model.longest
    if n_tokens < FEWEST_KEYS:
        raise StudyError(
            f"The text has {n_tokens} tokens; at least {FEWEST_KEYS} are wanted, and some hundred "
            "to say anything. Give more text."
        )
    if longest is not None and n_tokens > longest:
        raise StudyError(
            f"The text has {n_tokens} tokens, and {model.name} has positions for {longest}. Take a "
            f"window of at most that many (--context {longest})."
        )
    n_known = model.model.config.get_text_config().vocab_size
    strange = ids[(ids < 0) | (ids >= n_known)]
    if len(strange):
        raise StudyError(
            f"The text has the token {strange[0]}, and {model.name} "
            f"knows those from 0 to {n_known - 1}. Take the tokenizer of the same model."
        )


class _Measuring:
    """An observer that takes the measures of :data:`MEASURES`."""

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens
        self.layers: list[LayerMeasures] = []
        self.causal = True

    def named(self) -> tuple[LayerMeasures, ...]:
        """What was measured; stacks have names only where there are several."""
        if len({layer.stack for layer in self.layers}) > 1:
            return tuple(self.layers)
        return tuple(
            LayerMeasures(layer.layer, "", layer.n_keys, layer.values) for layer in self.layers
        )

    def begin(self, layer: AttentionLayer) -> None:
        shape = (layer.n_heads, self._n_tokens)
        values = {name: np.full(shape, np.nan, np.float32) for name in MEASURES}
        values["query_norm"][:] = layer.query_norm.float().cpu().numpy()
        n_keys = np.zeros(self._n_tokens, np.int64)
        self.layers.append(LayerMeasures(layer.place.number, layer.place.stack, n_keys, values))

    def see(self, layer: AttentionLayer, scores: ScoreBlock, attention: AttentionBlock) -> None:
        measures = self.layers[-1]
        rows = slice(int(scores.queries[0]), int(scores.queries[-1]) + 1)
        n_keys = scores.allowed.sum(-1)
        measures.n_keys[rows] = n_keys.cpu().numpy()
        later = scores.keys > scores.queries[:, None]
        self.causal &= not bool((later & scores.allowed).any())
        enough = n_keys >= FEWEST_KEYS
        for name, value in _measures(scores, attention, n_keys).items():
            value = value.float().masked_fill(~enough, torch.nan)
            measures.values[name][:, rows] = value.cpu().numpy()


def _measures(
    scores: ScoreBlock, attention: AttentionBlock, n_keys: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The measures of a block of queries, (H, Q) each."""
    p = attention.probabilities
    n_outcomes = n_keys + (scores.sink is not None)
    between = (scores.queries[:, None] - scores.keys).abs().to(p.dtype)
    of_keys = p.sum(-1)
    return {
        "entropy": attention.entropy,
        "normalised_entropy": attention.entropy / n_outcomes.log(),
        "max_attention": p.amax(-1),
        "k_eff": _fewest(p),
        "gain": attention.gain,
        "distance": (p * between).sum(-1) / of_keys,
        "previous_token": _of_key(p, scores, scores.queries - 1),
        "first_token": _of_key(p, scores, torch.zeros_like(scores.queries)),
    }


def _of_key(p: torch.Tensor, scores: ScoreBlock, keys: torch.Tensor) -> torch.Tensor:
    """The probability of a key for each query, by its position; nan for a position before 0."""
    columns = keys - scores.keys[0]
    inside = (columns >= 0) & (columns < p.shape[-1])  # outside, no query may attend to it
    index = columns.clamp(0, p.shape[-1] - 1).expand(len(p), -1)[..., None]
    found = p.gather(-1, index)[..., 0].masked_fill(~inside, 0)
    return found.masked_fill(keys < 0, torch.nan)


def _fewest(p: torch.Tensor) -> torch.Tensor:
    """The least number of keys that hold the share of all keys' attention, (H, Q).

    All keys but the most that together hold no more than the rest of it.
    """
    if p.device.type == "cpu":
        # NumPy's sort of short floats is many times as fast as torch's.
        ascending = torch.from_numpy(np.sort(p.numpy(), axis=-1))
    else:
        ascending = p.sort(-1).values
    held = ascending.cumsum_(-1)
    spare = (1 - _SHARE) * held[..., -1:]
    return p.shape[-1] - (held <= spare).sum(-1)
