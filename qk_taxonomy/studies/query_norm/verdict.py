"""The verdict: whether query norm predicts attention entropy, by criteria fixed in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qk_taxonomy.studies.query_norm.correlations import HeadCorrelations
from qk_taxonomy.studies.query_norm.criteria import Criteria

Kind = Literal["go", "no-go", "confounded by position", "control failed"]


@dataclass(frozen=True)
class Verdict:
    """``kind``; ``line``, which says why in a sentence or two; and the ``numbers`` behind it.

    ``numbers``: heads and samples; heads_undefined, without a correlation in any text; raw and
    partial: the number of consistent heads, raw_share and partial_share of all, raw_negative,
    raw_positive, partial_negative, partial_positive; medians over heads of the mean r,
    median_pearson and median_partial_pearson, and of position_entropy and position_norm;
    control_mean (of shuffled r), control_mean_abs, control_share (of |r| ≥ the criterion).
    """

    kind: Kind
    line: str
    numbers: Mapping[str, float]


def decide(correlations: HeadCorrelations, criteria: Criteria) -> Verdict:
    """Go where enough heads are consistent given position; confounded by position where they are
    without regard to it only; else no-go. None of them where the shuffled control fails.
    """
    numbers = _numbers(correlations, criteria)
    wanted = criteria.share_of_heads
    kind: Kind = "no-go"
    if _control_fails(numbers, criteria):
        kind = "control failed"
    elif numbers["partial_share"] >= wanted:
        kind = "go"
    elif numbers["raw_share"] >= wanted:
        kind = "confounded by position"
    return Verdict(kind, _line(kind, numbers, criteria), numbers)


def _control_fails(numbers: Mapping[str, float], criteria: Criteria) -> bool:
    """A control of nothing but nan does not fail: there is then no correlation either."""
    return numbers["control_share"] > criteria.control or (
        abs(numbers["control_mean"]) > criteria.control
    )


def _numbers(correlations: HeadCorrelations, criteria: Criteria) -> dict[str, float]:
    heads, by_sample = correlations.heads, correlations.by_sample
    numbers: dict[str, float] = {
        "heads": len(heads),
        "samples": by_sample["sample"].nunique(),
        "heads_undefined": int((heads["n_samples"] == 0).sum()),
    }
    for kind, sign in (("raw", "sign_raw"), ("partial", "sign")):
        consistent = heads[f"consistent_{kind}"] >= criteria.consistent
        numbers[kind] = int(consistent.sum())
        numbers[f"{kind}_share"] = float(consistent.mean())
        numbers[f"{kind}_negative"] = int((consistent & (heads[sign] < 0)).sum())
        numbers[f"{kind}_positive"] = int((consistent & (heads[sign] > 0)).sum())
    for name in ("pearson", "partial_pearson", "position_entropy", "position_norm"):
        numbers[f"median_{name}"] = float(heads[name].median())
    for name in ("mean", "mean_abs", "share"):
        numbers[f"control_{name}"] = float(by_sample[f"shuffled_{name}"].mean())
    return numbers


def _line(kind: Kind, numbers: Mapping[str, float], criteria: Criteria) -> str:
    heads = int(numbers["heads"])
    counted = {
        side: f"{int(numbers[side])} of {heads} heads ({numbers[f'{side}_share']:.1%})"
        for side in ("raw", "partial")
    }
    rule = f"|r| ≥ {criteria.correlation:g} in {criteria.consistent:.0%} of the texts"
    wanted = f"{criteria.share_of_heads:.0%} were wanted"
    if kind == "control failed":
        return (
            f"Control failed: with shuffled entropies the mean r is "
            f"{numbers['control_mean']:.3f} and {numbers['control_share']:.1%} of all |r| reach "
            f"{criteria.correlation:g}, where at most {criteria.control:g} was allowed of either; "
            "nothing can be said. Texts of more tokens may help."
        )
    if kind == "go":
        return (
            f"Go: query norm goes with entropy, given position, in {counted['partial']} by {rule}; "
            f"{wanted}. {_signs(numbers, 'partial')}"
        )
    if kind == "confounded by position":
        return (
            f"Confounded by position: query norm goes with entropy in {counted['raw']} by {rule}, "
            f"but given position in {counted['partial']} only; {wanted}. "
            f"{_signs(numbers, 'raw', 'raw ')}"
        )
    return (
        f"No-go: query norm goes with entropy in {counted['raw']} by {rule}, given position in "
        f"{counted['partial']}; {wanted}."
    )


def _signs(numbers: Mapping[str, float], side: str, which: str = "") -> str:
    negative, positive = (int(numbers[f"{side}_{sign}"]) for sign in ("negative", "positive"))
    told = (
        f"Of these {which}correlations {negative} are negative (a larger norm, sharper attention: "
        f"the hypothesis) and {positive} positive (a larger norm, broader attention)"
    )
    return told + (", against the hypothesis." if positive > negative else ".")
