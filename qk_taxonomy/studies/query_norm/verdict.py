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

    ``numbers``: heads and samples; heads_undefined, without a correlation in any window; raw and
    partial: the number of consistent heads, and both, of those that are it both ways; raw_share,
    partial_share and both_share, of all heads; raw_negative, raw_positive, partial_negative and
    partial_positive; medians over heads of the mean r, median_pearson and median_partial_pearson,
    and of position_entropy and position_norm. Of shuffled entropies: control_mean (of r),
    control_mean_abs, control_share (of |r| ≥ the criterion). The same as of the model, from heads
    to median_partial_pearson, as mismatched_… and untrained_… where there are these controls: norms
    of each window with entropies of the next, and an untrained model of the same shape.
    """

    kind: Kind
    line: str
    numbers: Mapping[str, float]


def decide(
    correlations: HeadCorrelations,
    criteria: Criteria,
    *,
    mismatched: HeadCorrelations | None = None,
    untrained: HeadCorrelations | None = None,
) -> Verdict:
    """Go where enough heads are consistent given position; confounded by position where they are
    without regard to it only; else no-go. None of them where a control fails: the shuffled one, or
    that of mismatched windows, given position. (As measured, these correlate by position alone.)
    The untrained model has no part in it: it tells what a number is worth.
    """
    numbers = _numbers(correlations, criteria)
    for name, control in (("mismatched", mismatched), ("untrained", untrained)):
        if control is not None:
            numbers |= {f"{name}_{key}": v for key, v in _counts(control, criteria).items()}
    wanted = criteria.share_of_heads
    kind: Kind = "no-go"
    if _shuffled_fails(numbers, criteria) or _mismatched_fails(numbers, criteria):
        kind = "control failed"
    elif numbers["partial_share"] >= wanted:
        kind = "go"
    elif numbers["raw_share"] >= wanted:
        kind = "confounded by position"
    return Verdict(kind, _line(kind, numbers, criteria), numbers)


def _shuffled_fails(numbers: Mapping[str, float], criteria: Criteria) -> bool:
    """A control of nothing but nan does not fail: there is then no correlation either."""
    return numbers["control_share"] > criteria.control or (
        abs(numbers["control_mean"]) > criteria.control
    )


def _mismatched_fails(numbers: Mapping[str, float], criteria: Criteria) -> bool:
    return numbers.get("mismatched_partial_share", 0.0) > criteria.control


def _numbers(correlations: HeadCorrelations, criteria: Criteria) -> dict[str, float]:
    heads, by_sample = correlations.heads, correlations.by_sample
    numbers = _counts(correlations, criteria)
    numbers["heads_undefined"] = int((heads["n_samples"] == 0).sum())
    for name in ("position_entropy", "position_norm"):
        numbers[f"median_{name}"] = float(heads[name].median())
    for name in ("mean", "mean_abs", "share"):
        numbers[f"control_{name}"] = float(by_sample[f"shuffled_{name}"].mean())
    return numbers


def _counts(correlations: HeadCorrelations, criteria: Criteria) -> dict[str, float]:
    heads = correlations.heads
    numbers: dict[str, float] = {
        "heads": len(heads),
        "samples": correlations.by_sample["sample"].nunique(),
    }
    consistent = {
        kind: heads[f"consistent_{kind}"] >= criteria.consistent for kind in ("raw", "partial")
    }
    for kind, sign in (("raw", "sign_raw"), ("partial", "sign")):
        numbers[f"{kind}_negative"] = int((consistent[kind] & (heads[sign] < 0)).sum())
        numbers[f"{kind}_positive"] = int((consistent[kind] & (heads[sign] > 0)).sum())
    consistent["both"] = consistent["raw"] & consistent["partial"]
    for kind, those in consistent.items():
        numbers[kind] = int(those.sum())
        numbers[f"{kind}_share"] = float(those.mean())
    for name in ("pearson", "partial_pearson"):
        numbers[f"median_{name}"] = float(heads[name].median())
    return numbers


def _line(kind: Kind, numbers: Mapping[str, float], criteria: Criteria) -> str:
    if kind == "control failed":
        return _said_of_failure(numbers, criteria)
    side = "raw" if kind == "confounded by position" else "partial"
    rule = f"|r| ≥ {criteria.correlation:g} in {criteria.consistent:.0%} of the windows"
    found = (
        f"query norm goes with entropy, by {rule}, in {_heads(numbers, 'raw')} as measured, in "
        f"{_heads(numbers, 'partial')} given position and in {_heads(numbers, 'both')} both ways; "
        f"{criteria.share_of_heads:.0%} were wanted"
    )
    begin = kind.capitalize()
    if kind != "no-go":
        found += f". {_signs(numbers, side)}"
        if numbers[f"{side}_positive"] > numbers[f"{side}_negative"]:
            begin += ", with the opposite sign"
    return f"{begin}: {found}.{_said_of_controls(numbers, side)}"


def _heads(numbers: Mapping[str, float], kind: str) -> str:
    share = numbers[f"{kind}_share"]
    return f"{int(numbers[kind])} of {int(numbers['heads'])} heads ({share:.1%})"


def _signs(numbers: Mapping[str, float], side: str) -> str:
    negative, positive = (int(numbers[f"{side}_{sign}"]) for sign in ("negative", "positive"))
    which = "as measured" if side == "raw" else "given position"
    return (
        f"Of the correlations {which}, {negative} are negative (a larger norm, sharper attention: "
        f"the hypothesis) and {positive} positive (a larger norm, broader attention)"
    )


def _said_of_controls(numbers: Mapping[str, float], side: str) -> str:
    """What is consistent where nothing was learned, and where nothing belongs together."""
    said = ""
    if "untrained_heads" in numbers:
        said += f" An untrained model of this shape has {_shares(numbers, 'untrained')}"
        no_less = numbers[f"untrained_{side}_share"] >= numbers[f"{side}_share"] > 0
        said += ", no less: this is no sign of anything learned." if no_less else "."
    if "mismatched_heads" in numbers:
        of_two = "Norms of each window with entropies of the next have"
        said += f" {of_two} {_shares(numbers, 'mismatched')}."
    return said


def _shares(numbers: Mapping[str, float], control: str) -> str:
    raw, partial = (numbers[f"{control}_{kind}_share"] for kind in ("raw", "partial"))
    return f"{raw:.1%} as measured and {partial:.1%} given position"


def _said_of_failure(numbers: Mapping[str, float], criteria: Criteria) -> str:
    if _shuffled_fails(numbers, criteria):
        return (
            f"Control failed: with shuffled entropies the mean r is "
            f"{numbers['control_mean']:.3f} and {numbers['control_share']:.1%} of all |r| reach "
            f"{criteria.correlation:g}, where at most {criteria.control:g} was allowed of either; "
            "nothing can be said. Windows of more tokens may help."
        )
    heads = f"{int(numbers['mismatched_partial'])} of {int(numbers['mismatched_heads'])} heads"
    return (
        "Control failed: given position, norms of each window go with entropies of the next in "
        f"{heads} ({numbers['mismatched_partial_share']:.1%}), where at most "
        f"{criteria.control:.0%} was allowed; nothing can be said. All windows share something at "
        "the same places, such as special tokens, or have too few tokens."
    )
