"""The report of the study of query norms, in Markdown: verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from qk_taxonomy.figures.query_norm.parts import measure_label, spectral_column_label
from qk_taxonomy.outputs.markdown import markdown_table, number
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.studies.circuits.chosen import Head
from qk_taxonomy.studies.query_norm.correlations import CORRELATIONS
from qk_taxonomy.studies.query_norm.criteria import Criteria, differing
from qk_taxonomy.studies.query_norm.scaling import ScalingResult
from qk_taxonomy.studies.query_norm.study import QueryNormStudy

# Rows of a table of heads, and of associations.
_TOP = 10

_CRITERIA = {
    "correlation": "least |r|, of Pearson and of Spearman alike, for a head to pass in a window",
    "p_value": "p of both below, corrected for the number of heads (Benjamini–Hochberg)",
    "consistent": "share of the windows in which a head passes with one sign, to be consistent",
    "share_of_heads": "share of the heads that are consistent given position, for a go: "
    "this project's own choice",
    "control": "largest |mean r|, and share of |r| that pass, of shuffled entropies; and share of "
    "the heads consistent given position with entropies of another window",
    "n_permutations": "shuffles of the entropies of each window",
    "seed": "of the shuffles",
}

# Columns of the numbers that the verdict rests on.
_HOW = ("as measured", "given position")

# What no run can tell, whatever its numbers are.
_LIMITS = (
    "A correlation over tokens does not say that the norm makes attention sharp: the queries of a "
    "head differ in direction as well as in norm.",
    "A query that grows in its own direction attends more sharply, by the identity of the "
    "intervention: some of the correlation is geometry, which an untrained model has as well.",
    "Position is held fixed in a straight line: of Pearson's correlation as its logarithm, of "
    "Spearman's as its rank. What norm and entropy share with position in another form remains in "
    "the partial correlation.",
    "Windows are the unit of replication: p-values within a window take the effective number of "
    "its tokens, which follow each other, and a head's interval is over windows. How alike tokens "
    "are is taken of what position leaves of norm and entropy, for raw correlations too: a trend "
    "with position is the same in every window, and no chance.",
    "Behaviour is that on these texts; spectra are of the weights alone.",
)


def report(study: QueryNormStudy, figures: Mapping[str, Sequence[str]]) -> str:
    """The report of a study. figures: files beside it by kind, one a stack."""
    parts = [
        f"# Query norm and attention entropy: {study.ref_name}, {study.context} tokens",
        f"**Verdict.** {study.verdict.line}",
        *_shown(figures, "correlation_map"),
        "## What the verdict rests on",
        *_numbers(study),
        "## Criteria",
        *_criteria(study.criteria),
        "## What was run",
        markdown_table(("", ""), study.description.items()),
        "## Correlations by head",
        *_shown(figures, "histograms", "layers", "scatter"),
        *_heads(study.correlations.heads),
        *_scaling(study.scaling, figures),
        "## Behaviour and spectra",
        *_bridge(study, figures),
        "## Limits",
        "\n".join(f"- {note}" for note in _notes(study)),
        "## Files",
        _files(study),
    ]
    return "\n\n".join(parts) + "\n"


def _numbers(study: QueryNormStudy) -> Iterator[str]:
    found = study.verdict.numbers
    n = int(found["heads"])
    # Each with all the rows; an untrained model only where there is one.
    models = {"": ""} | ({"untrained_": "untrained, "} if "untrained_heads" in found else {})

    def row(name: str, form: str, *keys: str) -> tuple[str, ...]:
        values = (found[f"{model}{key}"] for model in models for key in keys)
        return (name, *(number(value, form) for value in values))

    yield markdown_table(
        (
            f"of {n} heads, {int(found['samples'])} windows",
            *(f"{said}{how}" for said in models.values() for how in _HOW),
        ),
        [
            row("consistent heads", "d", "raw", "partial"),
            row("their share", ".1%", "raw_share", "partial_share"),
            row("of negative r: the larger the norm, the sharper", "d", "raw_negative",
                "partial_negative"),
            row("of positive r: the larger the norm, the broader", "d", "raw_positive",
                "partial_positive"),
            row("median of Pearson's r", ".2f", "median_pearson", "median_partial_pearson"),
        ],
    )  # fmt: skip
    yield f"{int(found['both'])} heads are consistent both ways."
    if "untrained_heads" in found:
        yield (
            "The untrained model has the same shape and random weights; it was shown "
            f"{int(found['untrained_samples'])} of the windows. A share no larger than its own is "
            "no sign of anything learned. It hangs much on the spread of those weights, which is "
            "that of the configuration (`initializer_range`) or, of a GGUF file, which does not "
            "say it, the default of the architecture."
        )
    if "mismatched_heads" in found:
        yield (
            "With norms of each window and entropies of the next, "
            f"{number(found['mismatched_raw_share'], '.1%')} of the heads are consistent as "
            "measured, by their place in the window alone, and "
            f"{number(found['mismatched_partial_share'], '.1%')} given position."
        )
    entropy, norm = (
        number(found[f"median_position_{of}"], ".2f") for of in ("entropy", "norm")
    )  # fmt: skip
    yield (
        f"With log position, the median r of entropy is {entropy} and that of query norm {norm}. "
        f"With entropies shuffled in each window {study.criteria.n_permutations} times, the mean r "
        f"is {number(found['control_mean'], '.4f')}, the mean |r| "
        f"{number(found['control_mean_abs'], '.3f')}, and "
        f"{number(found['control_share'], '.2%')} reach |r| ≥ {study.criteria.correlation:g}. "
        "Shuffling takes away the order of tokens, too, and leaves little to correlate: windows "
        "that are mismatched keep it, and are the stricter control."
    )
    if found["heads_undefined"]:
        yield f"{int(found['heads_undefined'])} heads have no correlation in any window."


def _criteria(criteria: Criteria) -> Iterator[str]:
    """Where the criteria are from, and what they are."""
    differ = differing(criteria)
    of = f"Those of {criteria.source}" if criteria.source else "Given by the caller"
    if differ:
        changes = ", ".join(
            f"`{name}` ({own:g} for {other:g})" for name, (own, other) in differ.items()
        )
        yield (
            f"{of}, which differ from the built-in ones in {changes}. Whether they were fixed "
            "before a first look at the numbers is not known here."
        )
    else:
        alike = f", as are those of {criteria.source}" if criteria.source else ""
        yield (
            "The built-in ones, fixed before the study was run on any model (what `control` says "
            f"of another window was added later){alike}."
        )
    values = asdict(criteria)
    rows = ((f"`{key}`", f"{values[key]:g}", what) for key, what in _CRITERIA.items())
    yield markdown_table(("criterion", "value", "what it is"), rows)


def _heads(heads: pd.DataFrame) -> Iterator[str]:
    """The heads of most negative and positive r, and those of the largest given position."""
    over = "over windows" if (heads["n_samples"] > 1).any() else "over the tokens of one window"
    yield f"In brackets: 95 % intervals, {over}. All heads are in `heads.csv`."
    raw, partial = heads["pearson"], heads["partial_pearson"]
    for name, order in (
        ("Lowest r as measured", raw),
        ("Highest r as measured", -raw),
        ("Largest |r| given position", -partial.abs()),
    ):
        top = heads.loc[order.dropna().sort_values(kind="stable").index[:_TOP]]
        if len(top):
            yield f"### {name}"
            yield markdown_table(
                ("head", "Pearson", "Spearman", "Pearson given position",
                 "Spearman given position", "r of entropy with position",
                 "consistent as measured", "consistent given position"),
                map(_head_row, top.to_dict("records")),
            )  # fmt: skip


def _head_row(head: Mapping[str, float]) -> tuple[str, ...]:
    return (
        str(Head(str(head["stack"]), int(head["layer"]), int(head["head"]))),
        *(
            f"{number(head[name], '.2f')} {_interval(head[f'{name}_low'], head[f'{name}_high'])}"
            for name in CORRELATIONS
        ),
        number(head["position_entropy"], ".2f"),
        *(number(head[f"consistent_{kind}"], ".0%") for kind in ("raw", "partial")),
    )  # fmt: skip


def _scaling(scaling: ScalingResult | None, figures: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What becomes of entropy when queries or keys of a head are scaled, and nothing else."""
    if scaling is None:
        return
    yield "## Intervention: the norm alone"
    yield from _shown(figures, "scaling")
    yield (
        f"Queries of a head times α, all else left as it was; means over {scaling.n_tokens} tokens "
        "of the first window. By the identity dH/d log α = −Cov_p(s, ∂s/∂log α), entropy falls as "
        "α grows wherever scores are linear in the query. The formula was checked on these scores "
        "by central differences, to a relative deviation of "
        f"{number(np.nanmax(scaling.deviation, initial=0.0), '.2g')}."
    )
    if any(head.of == "keys" for head in scaling.heads):
        yield (
            "Keys of a head times α are the same to a score as queries times α; they change all "
            "heads whose queries meet them, and numbers are means over these."
        )
    first, one, last = 0, int(np.argmin(np.abs(np.log(scaling.alphas)))), -1
    yield markdown_table(
        ("head", *(f"H at α = {scaling.alphas[at]:g}" for at in (first, one, last)),
         "dH/d log α at 1, measured", "by the identity"),
        (
            (
                str(head), *(number(entropy[at], ".3f") for at in (first, one, last)),
                number(slope[one], ".3f"), number(predicted[one], ".3f"),
            )
            for head, entropy, slope, predicted in zip(
                scaling.heads, scaling.entropy, scaling.slope, scaling.predicted, strict=True
            )
        ),
    )  # fmt: skip


def _bridge(study: QueryNormStudy, figures: Mapping[str, Sequence[str]]) -> Iterator[str]:
    bridge = study.bridge
    if bridge is None:
        yield f"Behaviour is not held against spectra: {study.without_bridge}"
        return
    yield bridge.line
    yield from _shown(figures, "prediction")
    yield (
        "Predictive R² of a behaviour's normal scores in layers that were held out. What is tested "
        "is what spectra say within layers, both less their layer's mean; in brackets, the central "
        "95 % of that for heads permuted within layers. Beside it, not tested, scores as they are."
    )
    yield markdown_table(
        ("behaviour", "within layers", "of permuted heads", "p", "q", "by spectra",
         "by depth alone", "by both"),
        (
            (
                measure_label(row["behaviour"]), number(row["r2_within"], ".2f"),
                _interval(row["null_low"], row["null_high"]),
                *(number(row[key], ".2g") for key in "pq"),
                *(number(row[f"r2_{by}"], ".2f") for by in ("spectra", "depth", "both")),
            )
            for row in bridge.prediction.to_dict("records")
        ),
    )  # fmt: skip
    yield from _shown(figures, "associations")
    yield from _associations(bridge.associations)
    if len(bridge.classes):
        yield "### Classes of the taxonomy"
        yield from _shown(figures, "classes")
        yield markdown_table(
            ("behaviour", "η² within layers", "heads", "classes", "p", "q"),
            (
                (
                    measure_label(row["behaviour"]), number(row["eta_squared"], ".2f"),
                    str(row["n_heads"]), str(row["n_classes"]),
                    *(number(row[key], ".2g") for key in "pq"),
                )
                for row in bridge.classes.to_dict("records")
            ),
        )  # fmt: skip


def _associations(table: pd.DataFrame) -> Iterator[str]:
    """Those pairs of behaviour and statistic that hold, the strongest of them in a table."""
    holding = table[table["q"] <= LEVEL]
    tested = int(table["q"].notna().sum())
    yield f"{len(holding)} of {tested} associations within layers hold at q ≤ {LEVEL}."
    if len(holding):
        order = holding["spearman"].abs().sort_values(ascending=False, kind="stable").index
        yield markdown_table(
            ("behaviour", "statistic", "Spearman's ρ within layers", "q"),
            (
                (
                    measure_label(row["behaviour"]), spectral_column_label(row["statistic"]),
                    number(row["spearman"], ".2f"), number(row["q"], ".2g"),
                )
                for row in holding.loc[order[:_TOP]].to_dict("records")
            ),
        )  # fmt: skip


def _interval(low: float, high: float) -> str:
    return f"[{number(low, '.2f')}, {number(high, '.2f')}]"


def _notes(study: QueryNormStudy) -> list[str]:
    """What limits this run, and any; each once."""
    of_bridge = study.bridge.notes if study.bridge is not None else ()
    found = [*study.notes, *study.correlations.notes, *of_bridge]
    if len(study.texts) == 1 and len(study.samples) > 1:
        found.append(
            f"All {len(study.samples)} windows are of one text, {study.texts[0]}: intervals over "
            "windows say nothing of other texts."
        )
    return list(dict.fromkeys((*found, *_LIMITS)))


def _files(study: QueryNormStudy) -> str:
    parts = [
        "`heads.csv`: a row a head, over windows",
        "`samples.csv`: a row a window and head",
        "`behaviour.csv`: what each head does, on average",
    ]
    if study.bridge is not None:
        parts.append("`prediction.csv`, `associations.csv` and, of classes, `classes.csv`: a row "
                     "a test of behaviour")  # fmt: skip
    if study.scaling is not None:
        parts.append("`scaling.csv`: a row a head and factor of its queries or keys")
    return "; ".join(parts) + ". What has no value is empty."


def _shown(figures: Mapping[str, Sequence[str]], *kinds: str) -> Iterator[str]:
    for kind in kinds:
        for name in figures.get(kind, ()):
            yield f"![{kind.replace('_', ' ')}]({name.replace(' ', '%20')})"
