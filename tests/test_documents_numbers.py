"""Numbers that documents give as results are those of the committed files.

A claim is a sentence with ``{}`` for each number, and what computes these numbers from committed
files. It fails where the sentence is not there, or a number is not the value, rounded as it stands.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from documents import README, ROOT, Document
from safetensors import safe_open

from qk_taxonomy import evolve, load_revisions, load_spectra
from qk_taxonomy.architectures import architecture_table
from qk_taxonomy.cache import of_each_model
from qk_taxonomy.catalog import load_contrasts, load_families
from qk_taxonomy.cli import main
from qk_taxonomy.records import N_BINS
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.taxonomy.choice import ClusterQuality, cluster_quality
from qk_taxonomy.taxonomy.pool import pool_models
from qk_taxonomy.taxonomy.spaces import space_of

RESULTS = Document("plots/README.md")
BENCHMARKS = Document("tests/benchmarks/README.md")
CHANGELOG = Document("CHANGELOG.md")

MINILM = "minilm/all-MiniLM-L6-v2"
SMOLLM2 = "smollm2-gguf/SmolLM2-135M-Instruct.Q4_1"
GEMMA3 = "gemma3-gguf/gemma-3-270m-q4_k_m"

WORDS = {
    "none": 0, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "ten": 10, "twelve": 12,
}  # fmt: skip

#: A digit that ends it: the point or comma behind a number is the sentence's.
NUMBER = rf"([−+]?(?:\d[\d,]*)?\.?\d+|(?i:{'|'.join(WORDS)})\b)"


@dataclass(frozen=True)
class Above:
    """The number said is a bound: more than the value, by less than half of it."""

    value: float


@dataclass(frozen=True)
class Claim:
    """What a document says, and the values of its numbers, in order."""

    document: Document
    sentence: str
    values: Callable[[], tuple[float | Above, ...]]

    def __str__(self) -> str:
        return f"{self.document}: {self.sentence[:60]}"

    def said(self) -> list[tuple[str, ...]]:
        """The numbers, of each place that has the sentence."""
        pattern = NUMBER.join(re.escape(part) for part in self.sentence.split("{}"))
        return [match.groups() for match in re.finditer(pattern, self.document.prose)]


def half(number: str) -> float:
    """Half a unit of a number's last digit."""
    return 0.5 * 10.0 ** -len(number.partition(".")[2])


def holds(said: str, value: float | Above) -> bool:
    """Whether a number is the value rounded to its digits, a half either way."""
    text = str(WORDS.get(said.lower(), said)).replace(",", "").replace("−", "-")
    number = float(text)
    if isinstance(value, Above):
        return value.value < number < 1.5 * value.value
    return abs(number - value) <= half(text) * (1 + 1e-9)


# What is committed -------------------------------------------------------------------------------


@cache
def table(path: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / path, low_memory=False)


def metadata(path: str) -> dict[str, str]:
    with safe_open(ROOT / path, "np") as file:
        return dict(file.metadata())


def last_spectra() -> list[str]:
    """Spectra of models, each of its last revision; of controls and requantised copies none."""
    found = sorted((ROOT / "data").glob("*/*.safetensors"))
    paths = [path for path in found if "~" not in path.stem and path.parent.name != "differences"]
    last = [group[-1] for group in of_each_model(paths)]
    return [str(path.relative_to(ROOT)) for path in last]


def n_heads(path: str) -> int:
    stacks = json.loads(metadata(path)["stacks"]).values()
    return sum(stack["n_layers"] * stack["n_heads"] for stack in stacks)


def trained_here() -> list[str]:
    return [path for path in last_spectra() if path.startswith("data/neox/")]


def parameters() -> tuple[float, float]:
    """Of the smallest and the largest model trained here."""
    models = table("plots/sizes/neox/neox_models.csv")["parameters"]
    return models.min() / 1e3, models.max() / 1e6


# Classes and ranks -------------------------------------------------------------------------------


@cache
def quality(stem: str) -> ClusterQuality:
    """Of the classes in ESDs/, of heads in data/."""
    spectra = load_spectra(ROOT / "data" / f"{stem}.safetensors")
    pool = pool_models([spectra], "qk", "raw")
    rows = table(f"ESDs/{stem}.csv")
    assert rows[["layer", "head"]].to_numpy().tolist() == [
        [layer.layer, head]
        for layer in spectra.select("qk", "raw")
        for head in range(len(layer.singular_values))
    ]
    space = space_of(pool.histograms(pool.edges(N_BINS)), "euclidean")
    return cluster_quality(space, rows["class"].to_numpy())


def lower_ranked(statistic: str) -> int:
    """Heads of all-MiniLM-L6-v2 that are lower-ranked than untrained ones."""
    tests = table("plots/tests.csv")
    rows = tests[(tests["hypothesis"] == "rank") & (tests["model"] == "all-MiniLM-L6-v2")]
    return int((rows[rows["statistic"] == statistic]["q_value"] <= 0.05).sum())


# Full circuits -----------------------------------------------------------------------------------


def circuits(stem: str) -> pd.DataFrame:
    rows = table(f"plots/circuits/{stem}.csv")
    return rows[rows["convention"] == "folded"]


def beside_twin(column: str, middle: str) -> tuple[float, ...]:
    """Of both models, each followed by the mean of its random twin."""
    return tuple(
        value
        for stem in (MINILM, SMOLLM2)
        for value in (
            circuits(stem)[column].agg(middle),
            circuits(stem)[f"{column}_control"].mean(),
        )
    )


def unlike_control() -> tuple[int, ...]:
    return tuple(
        int((circuits(stem)[f"{circuit}_q"] <= 0.05).sum())
        for stem in (MINILM, SMOLLM2)
        for circuit in ("qk", "ov")
    )


def words(stem: str, circuit: str) -> pd.DataFrame:
    rows = table(f"plots/circuits/{stem}_words.csv")
    return rows[rows["circuit"] == circuit]


def scaling_words() -> tuple[int, ...]:
    return tuple(
        int((words(stem, circuit)["q"] <= 0.05).sum())
        for stem in (MINILM, SMOLLM2)
        for circuit in ("qk", "ov")
    )


def dividing(stem: str) -> float:
    """Percentage of OV circuits whose positive part scales words and whose other part reverses."""
    rows = words(stem, "ov")
    return 100 * float(((rows["positive_effect"] > 0) & (rows["negative_effect"] < 0)).mean())


# Superposition -----------------------------------------------------------------------------------


def answer(preset: str, measure: str, name: str) -> tuple[float, float, float]:
    """Effect and interval of the one measure that begins so."""
    rows = table(f"plots/superposition/{preset}/answer.csv")
    (row,) = rows[rows["measure"].str.startswith(measure) & (rows["name"] == name)].to_numpy()
    return float(row[2]), float(row[3]), float(row[4])


def effects(preset: str, measure: str, *names: str) -> tuple[float, ...]:
    return tuple(answer(preset, measure, name)[0] for name in names)


def n_seeds(preset: str) -> tuple[int]:
    return (int(table(f"plots/superposition/{preset}/answer.csv")["n"].max()),)


def least_alignment(preset: str, least_p: float, most_p: float = 1) -> float:
    """Least mean |cos| over probabilities."""
    rows = table(f"plots/superposition/{preset}/answer.csv")
    rows = rows[rows["measure"].str.startswith("lesser |cos|")]
    p = rows["name"].str.removeprefix("p = ").astype(float)
    return float(rows[(p >= least_p) & (p <= most_p)]["effect"].min())


def lighter_pair() -> tuple[int, int, int]:
    """Seeds at p = .02: with a feature that shares its dimension, all, and below |cos| = .95."""
    targets, features = (
        table(f"plots/superposition/basic-10-seeds/{name}.csv") for name in ("targets", "features")
    )
    light = targets[(targets["probability"] == 0.02) & (targets["weight"] == 1)]
    own = features[(features["probability"] == 0.02) & features["feature"].isin([2, 4])]
    shared = own[own["dimensionality"] < 0.9]["seed"].nunique()
    lost = light[["left_cosine", "right_cosine"]].min(axis=1) < 0.95
    return shared, own["seed"].nunique(), int(lost.sum())


def heavy_sigma() -> tuple[float, float]:
    targets = table("plots/superposition/basic-10-seeds/targets.csv")
    ratio = targets[targets["weight"] == 2]["sigma"] / 2
    return float(ratio.min()), float(ratio.max())


def light_sigma() -> tuple[float, float]:
    """Least and largest mean over seeds, at p ≥ .07."""
    rows = table("plots/superposition/basic-10-seeds/answer.csv")
    rows = rows[rows["measure"] == "σ of 2 → 4 over its weight 1"]
    means = rows[rows["name"].str.removeprefix("p = ").astype(float) >= 0.07]["effect"]
    return float(means.min()), float(means.max())


STEPS = "steps from {}% of orthogonality"


def settled(percent: int, probability: str) -> pd.Series:
    rows = table("plots/superposition/dynamics/answer.csv")
    named = rows["measure"].str.startswith(STEPS.format(percent)) & (rows["name"] == probability)
    (index,) = rows.index[named]
    return rows.loc[index]


def earlier() -> tuple[float, ...]:
    row = settled(95, "p = 0.5")
    return -row["effect"], -row["high"], -row["low"], int(row["statistic"]), int(row["n"])


def later() -> tuple[float, ...]:
    row = settled(50, "p = 0.5")
    return row["effect"], row["low"], row["high"]


def undecided() -> tuple[float, ...]:
    rows = [settled(95, name) for name in ("p = 0.15", "p = 0.05")]
    (p,) = {row["p_value"] for row in rows}
    return rows[0]["statistic"], rows[0]["n"], rows[1]["statistic"], rows[1]["n"], p


def importance() -> tuple[Above]:
    rows = table("plots/superposition/head-size/answer.csv")
    rows = rows[rows["measure"].str.startswith("ρ of the importance")]
    return (Above(float(rows[rows["name"].str.endswith("r < m")]["effect"].abs().max())),)


# Query norm --------------------------------------------------------------------------------------

SHORT = f"plots/query-norm/{SMOLLM2}-512"
LONG = f"plots/query-norm/{SMOLLM2}-4096-4-windows"


def criteria() -> tuple[float, ...]:
    text = (ROOT / "catalog" / "query-norm.toml").read_text(encoding="utf-8")
    rules = tomllib.loads(text)["criteria"]
    return (
        rules["correlation"],
        rules["p_value"],
        100 * rules["consistent"],
        100 * rules["share_of_heads"],
    )


def consistent(folder: str) -> tuple[int, int, int]:
    """All heads, those consistent as measured, and those given position."""
    heads = table(f"{folder}/heads.csv")
    found = heads[["consistent_raw", "consistent_partial"]].ge(0.3).sum()
    return len(heads), int(found["consistent_raw"]), int(found["consistent_partial"])


def reported(folder: str, row: str) -> list[float]:
    """The numbers in a row of a table of the report."""
    text = (ROOT / folder / "report.md").read_text(encoding="utf-8")
    (cells,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", text, re.MULTILINE)
    return [float(number) for number in re.findall(r"\d+\.?\d*", cells)]


def shares(folder: str) -> list[float]:
    """Percentages of consistent heads: as measured, given position, and both untrained."""
    total, *found = consistent(folder)
    counted = reported(folder, "consistent heads")
    assert counted[:2] == found
    return [100 * count / total for count in counted]


def of_another_window() -> tuple[float]:
    """Consistent heads, in per cent, of norms of each window with entropies of the next."""
    text = (ROOT / SHORT / "report.md").read_text(encoding="utf-8")
    ((raw, partial),) = re.findall(
        r"entropies of the next have ([\d.]+)% as measured and ([\d.]+)% given position", text
    )
    return (float(raw) + float(partial),)


def per_window(folder: str) -> float:
    seconds = reported(folder, "captured in")[0]
    return seconds / reported(folder, "windows")[0]


def predicted() -> tuple[float | Above, ...]:
    rows = table(f"{SHORT}/prediction.csv").set_index("behaviour")
    r2 = rows["r2_within"]
    middle = r2[["query_norm", "gain", "k_eff", "entropy", "distance"]]
    rest = r2[["first_token", "max_attention"]]
    assert len(r2) == 1 + len(middle) + len(rest)
    (q,) = set(rows["q"])
    return r2["previous_token"], middle.min(), middle.max(), Above(rest.max()), len(rest), q


# Training, differences, sizes --------------------------------------------------------------------


def paths(circuit: str) -> pd.DataFrame:
    return table(f"plots/evolution/neox/neox-1m{circuit}_heads.csv")


def unlike_untrained(circuit: str, step: int) -> int:
    rows = table(f"plots/evolution/neox/neox-1m{circuit}.csv")
    return int((rows[rows["step"] == step]["p_untrained"] <= 0.05).sum())


def half_by(circuit: str, column: str) -> float:
    """The first step by which it holds of half of the heads, counting those it never holds of."""
    steps = paths(circuit)[column]
    return float(steps.fillna(math.inf).sort_values().iloc[math.ceil(len(steps) / 2) - 1])


def needed() -> float:
    (revisions,) = load_revisions("neox-1m", "neox", ROOT).stacks
    return evolve(revisions).unusual.needed


def moves(name: str) -> pd.DataFrame:
    return table(f"plots/differences/{name}.csv")


def shifts(name: str) -> pd.DataFrame:
    return table(f"plots/differences/{name}.shifts.csv").set_index("statistic")


TUNED = "rxnfp/bert_pretrained-to-bert_ft"
TUNED_ON_FEWER = "rxnfp/bert_pretrained-to-bert_ft_10k_25s"
REQUANTISED = f"{SMOLLM2}-to-SmolLM2-135M-Instruct.Q4_1-as-Q4_0"
UNITS = ["shape_units", "scale_units", "rank_units"]


def farthest(name: str) -> pd.Series:
    """Of moves in shape, scale and rank, in per cent of the unit."""
    return 100 * moves(name)[UNITS].abs().max()


def fallen(name: str) -> float:
    """Per cent that Σλ fell by, in the median head."""
    return -100 * math.expm1(moves(name)["scale"].median())


def shifted(name: str) -> pd.DataFrame:
    rows = shifts(name)
    return rows[rows["q_value"] <= 0.05]


def tuned() -> tuple[float, ...]:
    assert (moves(TUNED)["scale"] < 0).all()
    mean = shifts(TUNED).loc["MEAN"]
    assert set(shifted(TUNED).index) == {"MIN", "MAX", "MEAN", "STD", "effective_rank_sigma"}
    return len(moves(TUNED)), fallen(TUNED), mean["p_value"], mean["q_value"], mean["n"]


def unlike_by_shape(name: str) -> tuple[int, int]:
    return int((moves(name)["q_untrained"] <= 0.05).sum()), len(moves(name))


def tuned_on_fewer() -> tuple[float, ...]:
    rows = shifts(TUNED_ON_FEWER)
    assert shifted(TUNED_ON_FEWER).empty
    grown = int((moves(TUNED_ON_FEWER)["scale"] > 0).sum())
    tested = int(rows["p_value"].notna().sum())
    return grown, len(moves(TUNED_ON_FEWER)), rows.loc["MEAN", "q_value"], tested


def requantised() -> tuple[float, ...]:
    rows = shifted(REQUANTISED)
    n = rows["n"].iloc[0]
    return len(rows), len(shifts(REQUANTISED)), rows["q_value"].max(), n, fallen(REQUANTISED)


def slope(hypothesis: str) -> pd.Series:
    """With parameters, of the effective rank of QK's λ, by least squares."""
    rows = table("plots/sizes/neox/neox.csv")
    (index,) = rows.index[
        (rows["hypothesis"] == hypothesis)
        & (rows["circuit"] == "qk")
        & (rows["statistic"] == "effective_rank_lambda")
        & rows["method"].str.startswith("least squares")
    ]
    return rows.loc[index]


def slope_of_rank() -> tuple[float, ...]:
    row = slope("sizes: slope with parameters")
    return row["effect"], row["low"], row["high"], row["q_value"]


def slopes_that_hold() -> tuple[int, int]:
    rows = table("plots/sizes/neox/neox.csv")
    held = rows[
        (rows["hypothesis"] == "sizes: slope with parameters")
        & (rows["circuit"] == "qk")
        & (rows["q_value"] <= 0.05)
    ]
    return len(held), int(held["note"].str.startswith("also untrained").sum())


# Costs -------------------------------------------------------------------------------------------


def planned(*options: str) -> dict[str, float]:
    result = CliRunner().invoke(main, ["plan", "--json", *options])
    assert result.exit_code == 0, result.output
    total = json.loads(result.stdout)["total"]
    return {"hours": total["seconds"] / 3600, "terabytes": total["moved"] / 1e12}


def large_collection() -> tuple[float, ...]:
    cost = planned(
        "--collection", "100000", "1000", "--workers", "8", "--own-links", "--account", "free"
    )
    return 100_000, 1, cost["terabytes"], 8, cost["hours"]


def benchmark(row: str) -> list[float]:
    """The numbers in the cells of a row of the benchmarks' tables, its name left out."""
    (cells,) = re.findall(rf"^\| {re.escape(row)}[^|]*\|(.*)\|$", BENCHMARKS.text, re.MULTILINE)
    return [float(number) for number in re.findall(r"\d+\.?\d*", cells)]


def in_benchmarks(sentence: str) -> list[float]:
    (numbers,) = Claim(BENCHMARKS, sentence, tuple).said()
    return [float(number) for number in numbers]


FASTER = (
    "a survey is {} times faster at the shape of Llama-3-8B (4 layers; 12 times fewer bytes) and {}"
)
MEMORY = (
    "at most {} MB for a checkpoint of 1 GB, {} MB for one of 4 GB of the same shape, and {} MB"
)

CLAIMS = (
    # The first command, and its classes
    Claim(README, "and {} small ones trained for it", lambda: (len(trained_here()),)),
    Claim(README, "for {} real models", lambda: (len(last_spectra()) - len(trained_here()),)),
    Claim(RESULTS, "{} GPT-NeoX of", lambda: (len(trained_here()),)),
    Claim(RESULTS, "{} real models", lambda: (len(last_spectra()) - len(trained_here()),)),
    Claim(RESULTS, "every head of all {}", lambda: (len(last_spectra()) - len(trained_here()),)),
    Claim(
        README,
        "{} of the model's 91 MB were read",
        lambda: (
            json.loads(metadata(f"data/{MINILM}.safetensors")["provenance"])["weights_bytes"] / 1e6,
        ),
    ),
    Claim(
        README,
        "6 classes, stability {} ± {}, silhouette {};",
        lambda: (
            quality(MINILM).stability,
            quality(MINILM).standard_error,
            quality(MINILM).silhouette,
        ),
    ),
    Claim(
        README,
        "agreement with other runs at the lowest {} (",
        lambda: (table(f"ESDs/{MINILM}.agreement.csv")["ari"].min(),),
    ),
    Claim(README, "(a stability of {},", lambda: (quality(MINILM).stability,)),
    Claim(
        README, "of all-MiniLM-L6-v2 have a stability of {}:", lambda: (quality(MINILM).stability,)
    ),
    Claim(
        README,
        "Those of SmolLM2 and Gemma 3 have {} and {}.",
        lambda: (quality(SMOLLM2).stability, quality(GEMMA3).stability),
    ),
    Claim(
        README,
        "of {} heads, lower-rank than untrained ones: {} by effective rank of σ, {} by effective "
        "rank of λ, {} by participation ratio of λ, {} by r90: number of λ for 90 % of Σλ, {} by",
        lambda: (
            n_heads(f"data/{MINILM}.safetensors"),
            *map(
                lower_ranked,
                (
                    "effective_rank_sigma",
                    "effective_rank_lambda",
                    "participation_ratio",
                    "r90",
                    "near_zero_ratio",
                ),
            ),
        ),
    ),
    Claim(
        README,
        "{} of {} heads have a lower effective rank than untrained heads",
        lambda: (lower_ranked("effective_rank_sigma"), n_heads(f"data/{MINILM}.safetensors")),
    ),
    Claim(
        README, "*All {} heads of all-MiniLM-L6-v2.", lambda: (len(table(f"ESDs/{MINILM}.csv")),)
    ),
    Claim(
        README,
        "The committed page of {} heads has {} MB",
        lambda: (
            sum(n_heads(path) for path in last_spectra()),
            (ROOT / "plots" / "report.html").stat().st_size / 1e6,
        ),
    ),
    Claim(
        RESULTS,
        "too small for {} layers",
        lambda: (table("plots/smollm2-gguf/boxplots.csv")["n_layers"].max(),),
    ),
    Claim(RESULTS, "units; {} more statistics", lambda: (len(STATISTICS) - 6,)),
    # Full circuits
    Claim(
        README,
        "*All {} heads of SmolLM2-135M-Instruct (4-bit weights), folded, over its {} tokens.*",
        lambda: (
            len(circuits(SMOLLM2)),
            int(metadata(f"data/circuits/{SMOLLM2}.safetensors")["n_tokens"]),
        ),
    ),
    Claim(
        README,
        "| copying, OV: median (twin: mean) | {} | {} | {} | {} |",
        lambda: beside_twin("ov_copying", "median"),
    ),
    Claim(
        README,
        "| symmetry, QK: median (twin: mean) | {} | {} | {} | {} | "
        "| the same centred | {} | {} | {} | {} |",
        lambda: (
            *beside_twin("qk_symmetry", "median"),
            *beside_twin("qk_symmetry_centred", "median"),
        ),
    ),
    Claim(
        README,
        "| λ below λ₁ / 1000, QK: mean | {} % | {} % | {} % | {} % | "
        "| the same centred | {} % | {} % | {} % | {} % |",
        lambda: tuple(
            100 * value
            for column in ("qk_near_zero", "qk_near_zero_centred")
            for value in beside_twin(column, "mean")
        ),
    ),
    Claim(
        README,
        "| effective rank, QK: median (twin: mean) | {} of 32 | {} | {} of 64 | {} |",
        lambda: beside_twin("qk_effective_rank", "median"),
    ),
    Claim(README, "q ≤ 0.05, QK, OV | {}, {} | | {}, {} | |", unlike_control),
    Claim(README, "scale or reverse words, QK, OV | {}, {} | | {}, {} | |", scaling_words),
    Claim(
        README,
        "reverse them in {} % of SmolLM2's OV circuits (31 % under shuffled words, p = 0.13) and "
        "in {} % of MiniLM's",
        lambda: (dividing(SMOLLM2), dividing(MINILM)),
    ),
    # Superposition
    Claim(
        README,
        "yes: mean \\|cos\\| ≥ {} at p ≥ .038, and {} [{}, {}] at p = .02",
        lambda: (
            least_alignment("basic-10-seeds", 0.038),
            *answer("basic-10-seeds", "lesser |cos|", "p = 0.02"),
        ),
    ),
    Claim(
        README,
        "yes: ≥ {} at p ≤ .52; at p = 1 that target is constant, and \\|cos\\| is {}, below the {}",
        lambda: (
            least_alignment("indicator-10-seeds", 0, 0.53),
            *effects("indicator-10-seeds", "lesser |cos|", "p = 1"),
            table("plots/superposition/indicator-10-seeds/answer.csv")["chance"][0],
        ),
    ),
    Claim(README, "| `basic`, {} seeds |", lambda: n_seeds("basic-10-seeds")),
    Claim(README, "| `indicator`, {} seeds |", lambda: n_seeds("indicator-10-seeds")),
    Claim(README, "| `dynamics`, {} seeds |", lambda: n_seeds("dynamics")),
    Claim(README, "| `head-size`, {} seeds |", lambda: n_seeds("head-size")),
    Claim(README, "| `tegum`, {} seeds |", lambda: n_seeds("tegum")),
    Claim(RESULTS, "(`basic`, {} seeds;", lambda: n_seeds("basic-10-seeds")),
    Claim(RESULTS, "(`indicator`, {} seeds)", lambda: n_seeds("indicator-10-seeds")),
    Claim(RESULTS, "(`sparse-limit`, {} seeds)", lambda: n_seeds("sparse-limit")),
    Claim(RESULTS, "(`dynamics`, {} seeds)", lambda: n_seeds("dynamics")),
    Claim(RESULTS, "(`head-size`, {} seeds,", lambda: n_seeds("head-size")),
    Claim(RESULTS, "(`tegum`, {} seeds)", lambda: n_seeds("tegum")),
    Claim(README, "settled {} [{}, {}] steps earlier, in {} of {} seeds", earlier),
    Claim(README, "half its way comes {} [{}, {}] steps later", later),
    Claim(
        README,
        "of 15 targets, r = 15 recovers all at p = .3 and {} [{}, {}] at p = .8",
        lambda: answer("head-size", "targets recovered", "p = 0.8, r = 15"),
    ),
    Claim(
        README,
        "of {} targets, r = 15 recovers all at p = .3",
        lambda: effects("head-size", "targets recovered", "p = 0.3, r = 15"),
    ),
    Claim(
        README,
        "{} [{}, {}] groups a vector",
        lambda: answer("tegum", "tegum factors that", "apart 2:1, r = 1"),
    ),
    Claim(
        RESULTS,
        "At p = .02, {} of {} seeds store a feature of the lighter pair together with others, and "
        "{} of them",
        lighter_pair,
    ),
    Claim(RESULTS, "of weight 2 is {} to {} times that weight", heavy_sigma),
    Claim(RESULTS, "of weight 1 is {} to {} in the mean at p ≥ .07", light_sigma),
    Claim(
        RESULTS,
        "{} [{}, {}] at p = .038 and {} [{}, {}] at p = .02, where its features are shared",
        lambda: (
            *answer("basic-10-seeds", "σ of 2 → 4", "p = 0.0384"),
            *answer("basic-10-seeds", "σ of 2 → 4", "p = 0.02"),
        ),
    ),
    Claim(
        RESULTS,
        "σ grows from {} at p = .52 to {} [{}, {}] at p = .02",
        lambda: (
            *effects("indicator-10-seeds", "σ of 2 → 4", "p = 0.521"),
            *answer("indicator-10-seeds", "σ of 2 → 4", "p = 0.02"),
        ),
    ),
    Claim(
        RESULTS,
        "(`sparse-limit`, 3 seeds) to {} [{}, {}] at p = .05",
        lambda: answer("sparse-limit", "σ of 2 → 4", "p = 0.05"),
    ),
    Claim(
        RESULTS,
        "settled earlier in {} of {} seeds and at p = .05 in {} of {}: either may be chance "
        "(p = {})",
        undecided,
    ),
    Claim(
        RESULTS,
        "Heads of r = 12, 8 and 4 recover {}, {} and {} targets at p = .3, and {}, {} and {} at",
        lambda: effects(
            "head-size",
            "targets recovered",
            *(f"p = {p}, r = {r}" for p in (0.3, 0.8) for r in (12, 8, 4)),
        ),
    ),
    Claim(
        RESULTS,
        "(Spearman's ρ = {} and {})",
        lambda: effects("head-size", "Spearman's ρ", "p = 0.3, r < m", "p = 0.8, r < m"),
    ),
    Claim(RESULTS, "(|ρ| < {})", importance),
    Claim(
        RESULTS,
        "A vector that recovers no target serves {} and {} of them",
        lambda: effects(
            "head-size", "pairs on another singular vector", "p = 0.3, r < m", "p = 0.8, r < m"
        ),
    ),
    Claim(
        RESULTS,
        "each vector keeps to one factor ({} [{}, {}], |cos| {})",
        lambda: (
            *answer("tegum", "tegum factors that", "apart 2:1, r = 1"),
            *effects("tegum", "|cos| of a singular vector", "apart 2:1, r = 1"),
        ),
    ),
    Claim(
        RESULTS,
        "one vector for both spans them ({} [{}, {}])",
        lambda: answer("tegum", "tegum factors that", "apart 1:1, r = 1"),
    ),
    Claim(
        RESULTS,
        "(r = 10: |cos| {} [{}, {}] for weights 2 : 1, {} [{}, {}] for equal ones)",
        lambda: (
            *answer("tegum", "|cos| of a singular vector", "within 2:1, r = 10"),
            *answer("tegum", "|cos| of a singular vector", "within 1:1, r = 10"),
        ),
    ),
    # Query norm
    Claim(
        README,
        "both r have |r| ≥ {} (and p < {}) in {} % of the windows; a *go* takes {} % of the heads",
        criteria,
    ),
    Claim(
        README,
        "{} of its {} heads are consistent as measured and {} given position",
        lambda: tuple(consistent(SHORT)[i] for i in (1, 0, 2)),
    ),
    Claim(README, "entropies of another window give {}.", of_another_window),
    Claim(
        README,
        "has {} % such heads as measured, against {} % of the trained one, and {} % against {} % "
        "given position",
        lambda: tuple(shares(SHORT)[i] for i in (2, 0, 3, 1)),
    ),
    Claim(
        README,
        "R² is {} for attention to the previous token, {} to {} for query norm, gain, keys that "
        "hold 90 %, entropy and distance, and below {} for the other {} (q = {} each)",
        predicted,
    ),
    Claim(
        README,
        "Classes explain up to η² = {}",
        lambda: (table(f"{SHORT}/classes.csv")["eta_squared"].max(),),
    ),
    Claim(
        RESULTS,
        "{} of SmolLM2's {} heads are consistent as measured and {} given position ({} and {} %; "
        "untrained {} and {} %)",
        lambda: (*(consistent(LONG)[i] for i in (1, 0, 2)), *shares(LONG)),
    ),
    Claim(
        RESULTS,
        "captured in {} s at 512 tokens and in {} s at 4,096",
        lambda: (per_window(SHORT), per_window(LONG)),
    ),
    Claim(
        RESULTS,
        "the process had at most {} and {} GB",
        lambda: (*reported(SHORT, "peak memory")[:1], *reported(LONG, "peak memory")[:1]),
    ),
    # Training, differences, sizes
    Claim(
        README,
        "a GPT-NeoX of {} heads at {} revisions",
        lambda: (len(paths("")), table("plots/evolution/neox/neox-1m.csv")["step"].nunique()),
    ),
    Claim(
        README,
        "At step 0 {} of its heads is told from untrained ones at p ≤ .05 (OV: {} of {};",
        lambda: (unlike_untrained("", 0), unlike_untrained(".ov.raw", 0), len(paths(".ov.raw"))),
    ),
    Claim(
        README,
        "for good by step {} (OV: {}), and have left the classes of untrained heads by step {} "
        "(OV: {})",
        lambda: tuple(
            half_by(circuit, column)
            for column in ("outliers_step", "left_class_step")
            for circuit in ("", ".ov.raw")
        ),
    ),
    Claim(
        README,
        "among {} heads that takes a distance of {}, and the farthest is at {}",
        lambda: (len(paths("")), needed(), paths("")["unusual_distance"].max()),
    ),
    Claim(
        README,
        "all {} shrank: Σλ by {} % in the median, p = {}, q = {} over {} layers",
        tuned,
    ),
    Claim(
        README,
        "by at most {} % (shape), {} % (scale) and {} % (rank); in shape {} of {} moved farther",
        lambda: (*farthest(TUNED), *unlike_by_shape(TUNED)),
    ),
    Claim(
        README,
        "{} of {} grew, q = {}; in the {} statistics that can be tested no shift is found",
        tuned_on_fewer,
    ),
    Claim(
        README,
        "by at most {} %; {} of {} |",
        lambda: (farthest(TUNED_ON_FEWER).max(), *unlike_by_shape(TUNED_ON_FEWER)),
    ),
    Claim(
        README,
        "{} of {} statistics shifted (q ≤ {}, {} layers): Σλ fell by {} % in the median",
        requantised,
    ),
    Claim(
        README,
        "by at most {} %: significant, and negligible",
        lambda: (farthest(REQUANTISED).max(),),
    ),
    Claim(README, "of {}k to {}M parameters", parameters),
    Claim(RESULTS, "of {}k to {}M parameters", parameters),
    Claim(README, "of QK's λ rises by {} [{}, {}] (q = {})", slope_of_rank),
    Claim(
        README,
        "at step 0 it rises by {} already",
        lambda: (slope("sizes: slope with parameters, untrained")["effect"],),
    ),
    Claim(README, "of {} slopes of QK that hold, {} are there before training", slopes_that_hold),
    # Costs
    Claim(
        README,
        "{} hours on two cores at 100 MB/s, or under {} with two such workers",
        lambda: (planned()["hours"], Above(planned("--workers", "2")["hours"])),
    ),
    Claim(
        README,
        "For {} models in {} PB it is {} TB: {} workers with links of their own take {} hours",
        large_collection,
    ),
    Claim(
        README,
        "σ and μ of a layer of Llama-3-8B take {} ms (two thin SVDs a head, for σ alone: {} ms)",
        lambda: tuple(benchmark("Llama-3-8B (32 heads")[i] for i in (3, 0)),
    ),
    Claim(
        README,
        "A survey moves {} times the bytes of the tensors it names",
        lambda: (benchmark("Llama-3-8B, bfloat16")[1],),
    ),
    Claim(
        README,
        "is {} to {} times faster than downloading whole shards",
        lambda: tuple(in_benchmarks(FASTER)),
    ),
    Claim(README, "at most {} MB above a process", lambda: (Above(max(in_benchmarks(MEMORY))),)),
    # The catalogue
    Claim(
        CHANGELOG,
        "Catalogue of {} model families with training checkpoints, and {} contrasts",
        lambda: (len(load_families()), len(load_contrasts())),
    ),
    Claim(
        CHANGELOG,
        "A table of {} model types and {} of GGUF files",
        lambda: tuple(
            sum(name.startswith("gguf-") is of_gguf for name in architecture_table().model_types)
            for of_gguf in (False, True)
        ),
    ),
)


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_numbers_are_those_of_committed_files(claim: Claim) -> None:
    said = claim.said()
    assert said, f"{claim.document} does not say: {claim.sentence}"
    values = claim.values()
    for numbers in said:
        assert len(numbers) == len(values)
        for number, value in zip(numbers, values, strict=True):
            assert holds(number, value), f"{number} in {claim.sentence!r} is {value}"


def test_all_heads_are_unlike_untrained_ones_at_the_end_of_training() -> None:
    """ "at step 1,000 all are", and "No path stands out"."""
    for circuit in ("", ".ov.raw"):
        assert unlike_untrained(circuit, 1000) == len(paths(circuit))
        assert paths(circuit)["unusual_q"].min() > 0.05


def test_no_statistic_of_minilm_has_a_trend_with_depth() -> None:
    tests = table("plots/tests.csv")
    rows = tests[
        (tests["hypothesis"] == "trend with depth") & (tests["model"] == "all-MiniLM-L6-v2")
    ]
    assert len(rows)
    assert not (rows["q_value"] <= 0.05).any()


def test_consistent_heads_attend_more_sharply_where_the_norm_is_larger() -> None:
    heads = table(f"{SHORT}/heads.csv")
    assert (heads[heads["consistent_raw"] >= 0.3]["sign_raw"] == -1).all()
    assert (heads[heads["consistent_partial"] >= 0.3]["sign"] == -1).all()


@pytest.mark.parametrize("row", ["Llama-3-8B (", "Llama-2-7B (", "SmolLM2", "all-MiniLM", "gpt2"])
def test_ratios_of_the_kernel_are_those_of_its_times(row: str) -> None:
    """As far as the times are known, which are rounded."""
    line = next(line for line in BENCHMARKS.text.splitlines() if line.startswith(f"| {row}"))
    usual, ours, ratio = re.findall(r"[\d.]+", line.split("|", 2)[2])[:3]
    low, high = ((float(usual) + s * half(usual)) / (float(ours) - s * half(ours)) for s in (-1, 1))
    assert low - half(ratio) <= float(ratio) <= high + half(ratio)


def test_shares_of_the_kernels_time_are_those_of_its_parts() -> None:
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) % \|$", BENCHMARKS.text, re.MULTILINE)
    times, shares_said = np.array(rows, dtype=float).T
    assert len(rows) == 6
    np.testing.assert_array_equal(shares_said, np.round(100 * times / times.sum()))


def test_a_number_holds_where_it_is_the_value_rounded() -> None:
    assert holds("12", 12.43)
    assert not holds("13", 12.43)
    assert holds(".95", 0.9524)
    assert holds("1,024", 1024)
    assert not holds("1,024", 1025)
    assert holds("six", 6)
    assert holds("Seven", 7.3)
    assert not holds("six", 7)
    assert holds("190", Above(189))
    assert not holds("188", Above(189))
    assert not holds("400", Above(189))
