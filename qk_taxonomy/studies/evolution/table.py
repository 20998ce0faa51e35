"""The tables of the study: a row a step and head, and a row a head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qk_taxonomy.studies.evolution.records import PATH_FEATURES, Evolution, Integers
from qk_taxonomy.studies.evolution.unusual import most_unusual_feature


def path_table(evolution: Evolution) -> pd.DataFrame:
    """One row a step and head, in that order.

    ``travelled`` since the step before and ``from_start`` are Jensen–Shannon divergences in nats;
    the same with ``_null`` are in units of the mean one of two untrained heads.
    """
    s, h = evolution.labels.shape
    heads = evolution.heads
    none = np.full((1, h), np.nan)
    travelled = np.concatenate([none, evolution.travelled])
    wide = {
        "effective_rank_lambda": evolution.effective_rank,
        "MAX": evolution.largest,
        "outliers": evolution.n_outliers,
        "p_untrained": evolution.p_untrained,
        "class": evolution.labels,
        "travelled": travelled,
        "from_start": evolution.from_start,
        "travelled_null": travelled / evolution.null.divergence,
        "from_start_null": evolution.from_start / evolution.null.divergence,
    }
    identity = _identity(evolution) | {
        "revision": np.repeat(evolution.names, h),
        "step": pd.array(np.repeat(evolution.steps, h), dtype="Int64"),
        **{name: np.tile(heads[name].to_numpy(), s) for name in ("stack", "layer", "head")},
    }
    table = pd.DataFrame(identity | {name: values.ravel() for name, values in wide.items()})
    return table.astype({"outliers": "Int64"})


def heads_table(evolution: Evolution) -> pd.DataFrame:
    """One row a head, the most unusual path first.

    ``left_class_step`` and ``outliers_step``: from which the head is for good in another class than
    at the first step, and has λ beyond the untrained edge; with the revision, "" where it never
    came to that, or began so. ``travelled``, the sum of the divergences between steps, grows with
    the number of checkpoints, since spectra differ by chance as well; ``travelled_beyond_null``
    sums what of each exceeds the mean of two untrained heads, in units of that, and of one model
    changes little with the choice of checkpoints (2 to 3 at 20 to 2 of them, where the whole sum
    falls from 11 to 3). ``from_start`` is of the last step. ``unusual_distance`` is a Mahalanobis
    distance; ``unusual_p`` and ``unusual_q`` assume tails
    (:mod:`~qk_taxonomy.studies.evolution.unusual`); ``unusual_in`` says in what
    the head is farthest from the heads' median, and which way.
    """
    heads, unusual = evolution.heads, evolution.unusual
    changes = (evolution.labels[1:] != evolution.labels[:-1]).sum(0)
    columns = _identity(evolution) | {
        **{name: heads[name].to_numpy() for name in ("stack", "layer", "head")},
        "first_class": evolution.labels[0],
        "last_class": evolution.labels[-1],
        "class_changes": changes,
        **_moment(evolution, "left_class", evolution.left_class),
        **_moment(evolution, "outliers", evolution.outliers_born),
        "travelled": evolution.travelled.sum(0),
        "from_start": evolution.from_start[-1],
        "travelled_beyond_null": evolution.travelled_beyond,
        "from_start_null": evolution.from_start[-1] / evolution.null.divergence,
        **{name: unusual.features[:, PATH_FEATURES.index(name)] for name in PATH_FEATURES[1:4]},
        "unusual": unusual.rank,
        "unusual_distance": unusual.distance,
        "unusual_p": unusual.p_values,
        "unusual_q": unusual.q_values,
        "unusual_in": most_unusual_feature(unusual),
    }
    return pd.DataFrame(columns).sort_values("unusual", ignore_index=True)


def _identity(evolution: Evolution) -> dict[str, str]:
    model = evolution.model
    return {
        "family": model.family,
        "model": evolution.name,
        "circuit": model.circuit,
        "convention": model.convention,
    }


def _moment(evolution: Evolution, name: str, index: Integers) -> dict[str, object]:
    """The step and revision of an index of a step; NA and "" for the first and one past the end."""
    steps = np.array([np.nan, *evolution.steps[1:], np.nan])[index]
    names = np.array(["", *evolution.names[1:], ""], dtype=object)[index]
    return {f"{name}_step": pd.array(steps, dtype="Int64"), f"{name}_revision": names}
