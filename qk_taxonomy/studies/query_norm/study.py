"""The study of one model: capture, correlations, verdict, intervention, bridge to spectra."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pandas as pd

from qk_taxonomy import __version__
from qk_taxonomy.cache import exclusive, load_spectra, make_folder, spectra_path
from qk_taxonomy.errors import QKTaxonomyError, StudyError, TaxonomyError
from qk_taxonomy.records import CIRCUITS, N_BINS, N_CLUSTERS, ModelRef, ModelSpectra
from qk_taxonomy.studies.query_norm.behaviour import (
    distinct_measures,
    head_behaviour,
    spectral_table,
)
from qk_taxonomy.studies.query_norm.bridge import Bridge, bridge
from qk_taxonomy.studies.query_norm.capture import capture
from qk_taxonomy.studies.query_norm.controls import correlate_control, mismatched
from qk_taxonomy.studies.query_norm.correlations import HeadCorrelations, correlate
from qk_taxonomy.studies.query_norm.criteria import Criteria
from qk_taxonomy.studies.query_norm.models import OpenModel, open_model, untrained
from qk_taxonomy.studies.query_norm.records import FEWEST_KEYS, Sample
from qk_taxonomy.studies.query_norm.scaling import ScalingResult, scale_queries
from qk_taxonomy.studies.query_norm.store import (
    fingerprint,
    read_sample,
    sample_path,
    samples_folder,
    write_sample,
)
from qk_taxonomy.studies.query_norm.texts import Text, Window, built_in_text, windows
from qk_taxonomy.studies.query_norm.verdict import Verdict, decide
from qk_taxonomy.survey import Silent as SilentSurvey
from qk_taxonomy.survey import survey_model
from qk_taxonomy.tables import spectra_rows
from qk_taxonomy.taxonomy import sort_into_classes, space_of
from qk_taxonomy.taxonomy.pool import pool_layers

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Tokens of a text, unless the model has positions for fewer; and texts.
CONTEXT, N_SAMPLES = 512, 8

#: A model to hold the model against: one of its shape that has learned nothing, or none.
Control = Literal["untrained", "none"]

# Texts that the untrained model is shown at most, and the seed of its weights. Its heads are much
# alike, so that few texts tell their share.
_CONTROL_SAMPLES, _CONTROL_SEED = 4, 0


class Progress(Protocol):
    """What the study tells while it runs; the command line draws a bar from it."""

    def start(self, what: str, n_steps: int) -> None:
        """Something of so many steps begins."""

    def advance(self, n_steps: int) -> None:
        """So many more steps are done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, what: str, n_steps: int) -> None: ...

    def advance(self, n_steps: int) -> None: ...


class _OfSurvey(SilentSurvey):
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

    ref_name, family: as its results are called. context: tokens of a text. description: what was
    run, in the words of the report. samples: as captured. bridge: None where the model's spectra
    could not be had, and then a note says why. notes: sentences that a reader must know.
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
    scaled: Sequence[tuple[int, int]] = (),
    control: Control = "untrained",
    output_root: str | Path = ".",
    force: bool = False,
    api: HfApi | None = None,
    progress: Progress | None = None,
) -> QueryNormStudy:
    """Does the norm of a query predict the entropy of its attention, in every head of a model?

    texts: those of the user, else Python's documentation topics. context: tokens of each text,
    :data:`CONTEXT` or what the model has positions for unless given. scaled: heads (layer, head)
    whose queries are scaled; unless given, those of the extreme correlations. control: whether an
    untrained model of the same shape is shown some of the texts, too. Samples that were
    captured before, of the same model, tokens and settings, are taken from their files under
    ``output_root/data`` unless ``force``; so are spectra. Raises QKTaxonomyError, such as
    BusyFileError where another process captures samples of the model and context.
    """
    told = progress or Silent()
    begun = time.perf_counter()
    model = open_model(ref, dtype=dtype, device=device, api=api)
    if context is None:
        context = min(CONTEXT, model.longest or CONTEXT)
    shown, notes = windows(texts or (built_in_text(),), model.tokenizer, context, n_samples)
    if scaled:  # a head that is not there is said before the capture, which may take long
        scale_queries(model, shown[0].tokens[:FEWEST_KEYS], scaled, alphas=(1.0,))
    samples, n_kept = _samples(
        ref, model, shown, context, after_rope=after_rope, output_root=output_root, force=force,
        progress=told,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    correlations = correlate(samples, criteria)
    behaviour = head_behaviour(samples)
    chosen = scaled or _extremes(correlations)
    told.start("Scaled queries", 1)
    scaling = scale_queries(model, shown[0].tokens, chosen) if chosen else None
    told.advance(1)
    found, more = _bridge(
        ref, behaviour, distinct_measures(samples), criteria.seed, output_root, device, api, told
    )  # fmt: skip
    against = None
    if control == "untrained":
        against, unmade = _untrained(
            ref, model, shown, context, criteria, after_rope=after_rope, output_root=output_root,
            force=force, progress=told,
        )  # fmt: skip
        more = (*more, *unmade)
    apart = mismatched(samples)
    verdict = decide(
        correlations,
        criteria,
        mismatched=correlate_control(apart, criteria) if apart else None,
        untrained=against,
    )
    texts_used = ", ".join(dict.fromkeys(window.name.rpartition(", ")[0] for window in shown))
    description = {
        "model": f"{ref.name}, {model.revision}",
        "weights and activations": f"{model.dtype}, on {model.device}",
        "texts": f"{len(shown)} of at most {context} tokens: {texts_used}",
        "norm of queries": "after RoPE" if after_rope else "before RoPE",
        "attention": "causal" if model.causal else "bidirectional",
        "layers with attention": str(model.n_layers),
        "control": _said_of_control(model, against),
        "captured in": f"{seconds:.0f} s"
        + (f" ({n_kept} of {len(shown)} texts had been captured before)" if n_kept else ""),
        "versions": _versions(),
    }
    return QueryNormStudy(
        spectra_path(output_root, ref).stem, ref.family, context, description, criteria,
        correlations, verdict, behaviour, found, scaling, samples, (*notes, *more),
    )  # fmt: skip


def _samples(
    ref: ModelRef,
    model: OpenModel,
    shown: Sequence[Window],
    context: int,
    *,
    after_rope: bool,
    output_root: str | Path,
    force: bool,
    progress: Progress,
    control: str = "",
) -> tuple[tuple[Sample, ...], int]:
    """Each window's sample, captured or as it was kept, and how many were kept.

    control: what the samples are of, unless they are of the model itself.
    """
    settings = {
        "model": ref.name,
        "revision": model.revision,
        "dtype": model.dtype,
        "after_rope": str(after_rope),
    }
    if control:
        settings["control"] = control
    folder = make_folder(samples_folder(output_root, ref, context))
    samples, n_kept = [], 0
    with exclusive(folder):  # all of it: a run that began later would stop the first half-way
        what = f"Capture of {ref.name}{f', {control}' if control else ''}"
        progress.start(f"{what}, {context} tokens a text", len(shown))
        for window in shown:
            mark = fingerprint({**settings, "name": window.name}, window.tokens)
            path = sample_path(folder, mark)
            sample = None if force else read_sample(path, mark)
            n_kept += sample is not None
            if sample is None:
                sample = capture(model, window.tokens, name=window.name, after_rope=after_rope)
                write_sample(path, sample, mark)
            samples.append(sample)
            progress.advance(1)
    return tuple(samples), n_kept


def _untrained(
    ref: ModelRef,
    model: OpenModel,
    shown: Sequence[Window],
    context: int,
    criteria: Criteria,
    *,
    after_rope: bool,
    output_root: str | Path,
    force: bool,
    progress: Progress,
) -> tuple[HeadCorrelations | None, tuple[str, ...]]:
    """Correlations of a model of the same shape that has learned nothing, on some of the windows;
    or why there are none.
    """
    n = min(_CONTROL_SAMPLES, len(shown))
    some = [shown[i * len(shown) // n] for i in range(n)]
    try:
        samples, _ = _samples(
            ref, untrained(model, seed=_CONTROL_SEED), some, context, after_rope=after_rope,
            output_root=output_root, force=force, progress=progress,
            control=f"untrained, seed {_CONTROL_SEED}",
        )  # fmt: skip
    except StudyError as err:
        return None, (f"The model is not held against an untrained one: {err}",)
    return correlate_control(samples, criteria), ()


def _said_of_control(model: OpenModel, against: HeadCorrelations | None) -> str:
    if against is None:
        return "no untrained model"
    spread = getattr(model.model.config.get_text_config(), "initializer_range", None)
    n = against.by_sample["sample"].nunique()
    return f"an untrained model of this shape, {n} of the texts, seed {_CONTROL_SEED}" + (
        f", weights of standard deviation {spread:g}" if spread is not None else ""
    )


def _extremes(correlations: HeadCorrelations) -> list[tuple[int, int]]:
    """The heads of the lowest and the highest r, and of the largest |r| given position."""
    heads = correlations.heads
    heads = heads[heads["stack"] == heads["stack"].iloc[0]]
    raw = heads["pearson"].dropna()
    partial = heads["partial_pearson"].abs().dropna()
    places = [raw.idxmin(), raw.idxmax()] if len(raw) else []
    places += [partial.idxmax()] if len(partial) else []
    rows = heads.loc[list(dict.fromkeys(places))]
    return list(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))


def _bridge(
    ref: ModelRef,
    behaviour: pd.DataFrame,
    behaviours: Sequence[str],
    seed: int,
    output_root: str | Path,
    device: str,
    api: HfApi | None,
    progress: Progress,
) -> tuple[Bridge | None, tuple[str, ...]]:
    """The bridge to the model's spectra, surveyed if they are not there; or why there is none."""
    try:
        survey_model(
            ref,
            output_root=output_root,
            circuits=CIRCUITS,
            conventions=("folded",),
            device=device,
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
        return None, (f"Behaviour is not held against spectra: {err}",)
    return found, (*unsorted, *found.notes)


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


def _versions() -> str:
    import torch
    import transformers

    return (
        f"qk-taxonomy {__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
