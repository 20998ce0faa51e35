"""The study of one model: capture, correlations, verdict, intervention, bridge to spectra."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from qk_taxonomy.cache import load_spectra, spectra_path
from qk_taxonomy.errors import QKTaxonomyError, StudyError, TaxonomyError
from qk_taxonomy.progress import Progress, Silent
from qk_taxonomy.records import CIRCUITS, N_BINS, N_CLUSTERS, ModelRef, ModelSpectra
from qk_taxonomy.studies.query_norm.behaviour import (
    distinct_measures,
    head_behaviour,
    spectral_table,
)
from qk_taxonomy.studies.query_norm.bridge import Bridge, bridge
from qk_taxonomy.studies.query_norm.capturing import Capturing
from qk_taxonomy.studies.query_norm.controls import correlate_control, mismatched
from qk_taxonomy.studies.query_norm.correlations import HeadCorrelations, correlate
from qk_taxonomy.studies.query_norm.criteria import Criteria, differing
from qk_taxonomy.studies.query_norm.machine import peak_memory, versions
from qk_taxonomy.studies.query_norm.models import OpenModel, open_model, untrained
from qk_taxonomy.studies.query_norm.records import FEWEST_KEYS, Sample
from qk_taxonomy.studies.query_norm.scaling import ScaledHead, ScalingResult, scale_heads
from qk_taxonomy.studies.query_norm.texts import Text, built_in_text, windows
from qk_taxonomy.studies.query_norm.verdict import Verdict, decide
from qk_taxonomy.survey import survey_model
from qk_taxonomy.tables import spectra_rows
from qk_taxonomy.taxonomy import sort_into_classes, space_of
from qk_taxonomy.taxonomy.pool import pool_layers
from qk_taxonomy.wording import counted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Tokens of a window, unless the model has positions for fewer; and windows.
CONTEXT, N_SAMPLES = 512, 8

#: A model to hold the model against: one of its shape that has learned nothing, or none.
Control = Literal["untrained", "none"]

# Windows that the untrained model is shown at most, and the seed of its weights. Its heads are much
# alike, so that few windows tell their share.
_CONTROL_SAMPLES, _CONTROL_SEED = 4, 0


class _OfSurvey(Silent):
    """What a survey tells, as steps of the study: its layers."""

    def __init__(self, told: Progress) -> None:
        self._told = told

    def start(self, ref: ModelRef, layers: int, n_bytes: int) -> None:
        self._told.start(f"Spectra of {ref.name}", layers)

    def advance(self, layers: int, n_bytes: int) -> None:
        if layers:
            self._told.advance(layers)


@dataclass(frozen=True, eq=False)
class QueryNormStudy:
    """What the study found of one model.

    ref_name, family: as its results are called. context: tokens of a window. description: what was
    run, in the words of the report. bridge: None where the model's spectra could not be had, and
    then without_bridge says why. samples: of what was captured, the measures that correlations and
    figures need. notes: sentences that a reader must know. texts: names of those that windows are
    of. variant: what of the settings is not as by default, as file names have it, or "".
    """

    ref_name: str
    family: str
    context: int
    description: Mapping[str, str]
    criteria: Criteria
    correlations: HeadCorrelations
    verdict: Verdict
    behaviour: pd.DataFrame
    bridge: Bridge | None
    scaling: ScalingResult | None
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    texts: tuple[str, ...]
    variant: str = ""
    without_bridge: str = ""


def study_query_norm(
    ref: ModelRef,
    *,
    criteria: Criteria,
    texts: Sequence[Text] = (),
    context: int | None = None,
    n_samples: int = N_SAMPLES,
    dtype: str = "float32",
    device: str = "auto",
    after_rope: bool = False,
    scaled: Sequence[ScaledHead] = (),
    control: Control = "untrained",
    output_root: str | Path = ".",
    force: bool = False,
    api: HfApi | None = None,
    progress: Progress | None = None,
) -> QueryNormStudy:
    """Does the norm of a query predict the entropy of its attention, in every head of a model?

    texts: those of the user, else Python's documentation topics. context: tokens of each window,
    :data:`CONTEXT` or what the model has positions for unless given. scaled: heads whose queries or
    keys are scaled; unless given, queries of those of the extreme correlations. control: whether an
    untrained model of the same shape is shown some of the windows, too. Samples that were captured
    before, of the same model, tokens, settings and releases, are taken from their files under
    ``output_root/data`` unless ``force``; so are spectra. Raises QKTaxonomyError, such as
    BusyFileError where another process captures samples of the model and context.
    """
    told = progress or Silent()
    model = open_model(ref, dtype=dtype, device=device, api=api)
    if context is None:
        context = min(CONTEXT, model.longest or CONTEXT)
    shown, notes = windows(texts or (built_in_text(),), model.tokenizer, context, n_samples)
    if scaled:  # a head that is not there is said before the capture, which may take long
        scale_heads(model, shown[0].tokens[:FEWEST_KEYS], scaled, alphas=(1.0,))
    capturing = Capturing(ref, model, shown, context, after_rope, output_root, force, told)
    with capturing.samples() as each:
        behaviour = head_behaviour(each)
    samples = tuple(capturing.kept)
    memory = peak_memory(model.model.device)
    correlations = correlate(samples, criteria)
    chosen = scaled or _extremes(correlations)
    told.start("Scaled heads", 1)
    scaling = scale_heads(model, shown[0].tokens, chosen) if chosen else None
    told.advance(1)
    found, more, without = _bridge(
        ref, behaviour, distinct_measures(samples), criteria.seed, output_root, device, force, api,
        told,
    )  # fmt: skip
    against = None
    if control == "untrained":
        against, unmade = _untrained(capturing, criteria)
        more = (*more, *unmade)
    apart = mismatched(samples)
    verdict = decide(
        correlations,
        criteria,
        mismatched=correlate_control(apart, criteria) if apart else None,
        untrained=against,
    )
    names = tuple(dict.fromkeys(window.text for window in shown))
    of = counted(len(names), "text")
    description = {
        "model": f"{ref.name}, {model.revision}",
        "weights and activations": f"{model.dtype}, on {model.device}",
        "windows": f"{len(shown)} of at most {context} tokens, of {of}: {', '.join(names)}",
        "norm of queries": "after RoPE" if after_rope else "before RoPE",
        "attention": "causal" if model.causal else "bidirectional",
        "layers with attention": str(model.n_layers),
        "control": _said_of_control(model, against),
        "captured in": capturing.told(),
        "peak memory": f"{memory}, to the end of the capture",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    return QueryNormStudy(
        spectra_path(output_root, ref).stem, ref.family, context, description, criteria,
        correlations, verdict, behaviour, found, scaling, samples, (*notes, *more), names,
        _variant(dtype, after_rope, control, n_samples, texts, criteria), without,
    )  # fmt: skip


def _untrained(
    own: Capturing, criteria: Criteria
) -> tuple[HeadCorrelations | None, tuple[str, ...]]:
    """Correlations of a model of the same shape that has learned nothing, on some of the windows;
    or why there are none.
    """
    n = min(_CONTROL_SAMPLES, len(own.shown))
    some = [own.shown[i * len(own.shown) // n] for i in range(n)]
    try:
        capturing = replace(
            own, model=untrained(own.model, seed=_CONTROL_SEED), shown=some,
            control=f"untrained, seed {_CONTROL_SEED}", n_before=0, seconds=0.0, kept=[],
        )  # fmt: skip
        with capturing.samples() as each:
            for _ in each:  # which is kept
                pass
    except StudyError as err:
        return None, (f"The model is not held against an untrained one: {err}",)
    return correlate_control(capturing.kept, criteria), ()


def _said_of_control(model: OpenModel, against: HeadCorrelations | None) -> str:
    if against is None:
        return "no untrained model"
    spread = getattr(model.model.config.get_text_config(), "initializer_range", None)
    n = against.by_sample["sample"].nunique()
    return f"an untrained model of this shape, {n} of the windows, seed {_CONTROL_SEED}" + (
        f", weights of standard deviation {spread:g}" if spread is not None else ""
    )


def _variant(
    dtype: str,
    after_rope: bool,
    control: Control,
    n_samples: int,
    texts: Sequence[Text],
    criteria: Criteria,
) -> str:
    """What of the settings is not as by default, such as ``bfloat16-after-rope``.

    Texts and criteria of one's own go by six digits of a hash.
    """
    parts = [dtype] if dtype != "float32" else []
    if after_rope:
        parts.append("after-rope")
    if control == "none":
        parts.append("no-control")
    if n_samples != N_SAMPLES:
        parts.append(f"{n_samples}-windows")
    if texts:
        parts.append(f"text-{_short_hash(*(text.text for text in texts))}")
    others = differing(criteria)
    if others:
        hashed = _short_hash(*(f"{name}={own}" for name, (own, _) in others.items()))
        parts.append(f"criteria-{hashed}")
    return "-".join(parts)


def _short_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:6]


def _extremes(correlations: HeadCorrelations) -> list[ScaledHead]:
    """The heads of the lowest and the highest r, and of the largest |r| given position; none in a
    model of several stacks, where layer and head do not tell one.
    """
    heads = correlations.heads
    if heads["stack"].nunique() > 1:
        return []
    raw = heads["pearson"].dropna()
    partial = heads["partial_pearson"].abs().dropna()
    places = [raw.idxmin(), raw.idxmax()] if len(raw) else []
    places += [partial.idxmax()] if len(partial) else []
    rows = heads.loc[list(dict.fromkeys(places))]
    return [*map(ScaledHead, rows["layer"].tolist(), rows["head"].tolist())]


def _bridge(
    ref: ModelRef,
    behaviour: pd.DataFrame,
    behaviours: Sequence[str],
    seed: int,
    output_root: str | Path,
    device: str,
    force: bool,
    api: HfApi | None,
    progress: Progress,
) -> tuple[Bridge | None, tuple[str, ...], str]:
    """The bridge to the model's spectra, surveyed if they are not there, and notes; where there is
    none, why.
    """
    try:
        survey_model(
            ref,
            output_root=output_root,
            circuits=CIRCUITS,
            conventions=("folded",),
            device=device,
            force=force,
            api=api,
            progress=_OfSurvey(progress),
        )
        path = spectra_path(output_root, ref)
        spectra = load_spectra(path)
        table = spectra_rows(spectra, spectra.layers, path.stem)
        spectral = spectral_table(table, spectra.family, path.stem)
        classes, unsorted = _classes(spectra)
        found = bridge(behaviour, spectral, classes, behaviours=behaviours, seed=seed)
    except QKTaxonomyError as err:
        return None, (), str(err)
    return found, (*unsorted, *found.notes), ""


def _classes(spectra: ModelSpectra) -> tuple[pd.DataFrame | None, tuple[str, ...]]:
    """The class of each head, as ``qk-taxonomy cluster`` has it; or why there is none.

    Without the map of heads that :func:`~qk_taxonomy.taxonomy.classify_heads` makes as well, which
    takes more than all else here.
    """
    try:
        pool = pool_layers(spectra.select("qk", "folded"))
        space = space_of(pool.histograms(pool.edges(N_BINS)), "euclidean")
        labels = sort_into_classes(space, N_CLUSTERS).labels
    except TaxonomyError as err:
        return None, (f"Behaviour is not held against classes: {err}",)
    heads = {"stack": pool.stacks, "layer": pool.layers, "head": pool.heads}
    return pd.DataFrame({**heads, "class": labels}), ()
