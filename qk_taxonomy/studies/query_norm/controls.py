"""Controls of the study: what passes where query norm has nothing to do with entropy.

Shuffled entropies, which are taken with the correlations, lose their order with their partners, so
that they hardly ever pass. Entropies of *another window* keep it: what they share with the norms is
the place in the window, and how alike neighbours are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qk_taxonomy.studies.query_norm.correlations import HeadCorrelations, correlate
from qk_taxonomy.studies.query_norm.criteria import Criteria
from qk_taxonomy.studies.query_norm.records import LayerMeasures, Sample


def correlate_control(samples: Sequence[Sample], criteria: Criteria) -> HeadCorrelations:
    """:func:`correlate`, without the shuffles that a control has no use for."""
    return correlate(samples, replace(criteria, n_permutations=1))


def mismatched(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Norms of each window with entropies of the next, the last one's with the first's, token by
    token as far as both go; none of a single window.
    """
    if len(samples) < 2:
        return ()
    others = (*samples[1:], samples[0])
    return tuple(_of_two(one, other) for one, other in zip(samples, others, strict=True))


def _of_two(norms: Sample, entropies: Sample) -> Sample:
    n = min(len(norms.tokens), len(entropies.tokens))
    layers = tuple(
        LayerMeasures(
            second.layer,
            second.stack,
            second.n_keys[:n],
            {
                "query_norm": first.values["query_norm"][:, :n],
                "entropy": second.values["entropy"][:, :n],
            },
        )
        for first, second in zip(norms.layers, entropies.layers, strict=True)
    )
    return Sample(norms.name, norms.tokens[:n], norms.causal, layers)
