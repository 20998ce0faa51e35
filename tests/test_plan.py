"""Estimates before the network: held against public shapes, sums by hand, and each other."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from click.testing import CliRunner, Result
from public_shapes import RESTS

from qk_taxonomy.catalog import find_family, load_families, user_catalog
from qk_taxonomy.cli import main
from qk_taxonomy.costs import (
    RATE_LIMITS,
    Assumptions,
    Kind,
    ModelCost,
    Shape,
    collection_cost,
    estimate,
    family_costs,
    model_cost,
    shape_table,
    useful_workers,
)
from qk_taxonomy.records import Circuit, ModelEntry

SHAPES = {
    shape.model: (parameters, shape, kind)
    for kind in shape_table().kinds.values()
    for parameters, shape in kind.shapes
}


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *(str(argument) for argument in arguments)])


def entry(model: str) -> tuple[ModelEntry, str]:
    """A model of the catalogue and the name of its family."""
    return next((m, f.name) for f in load_families() for m in f.models if m.id == model)


def share(parameters: int, shape: Shape, circuits: tuple[Circuit, ...]) -> float:
    return shape.attentions * sum(shape.needed(circuits).values()) / parameters


def errors(circuits: tuple[Circuit, ...]) -> tuple[list[float], float]:
    """Each listed model estimated from the others of its kind: logarithms of estimate by truth.

    And the ratio of all their estimated bytes to the true ones.
    """
    found, estimated, true = [], 0.0, 0.0
    for parameters, shape, kind in SHAPES.values():
        rest = Kind(kind.name, tuple(other for other in kind.shapes if other[1] is not shape))
        guess, truth = (
            share(*rest.nearest(parameters), circuits),
            share(parameters, shape, circuits),
        )
        found.append(abs(math.log(guess / truth)))
        estimated, true = estimated + guess * parameters, true + truth * parameters
    return sorted(found), estimated / true


@pytest.mark.parametrize("model", RESTS)
def test_shapes_have_the_parameters_that_the_catalogue_counts(model: str) -> None:
    parameters, shape, _ = SHAPES[model]
    rest = RESTS[model]
    total = (
        shape.attentions * sum(shape.projections.values())
        + (shape.layers + shape.decoder_layers) * rest.mlp * shape.d_model
        + (1 if rest.tied else 2) * rest.vocab * shape.d_model
        + rest.beside
    )
    # What is left out are norms, biases, poolers, and the vision tower of a few.
    assert total == pytest.approx(parameters, rel=0.02)


def test_only_hybrids_are_not_held_against_the_catalogue() -> None:
    assert {SHAPES[model][2].name for model in SHAPES.keys() - RESTS.keys()} == {"hybrid"}


@pytest.mark.parametrize("circuits", [("qk",), ("qk", "ov")])
def test_how_wrong_the_estimate_can_be(circuits: tuple[Circuit, ...]) -> None:
    """The numbers in the module's docstring."""
    found, together = errors(circuits)
    assert math.exp(found[len(found) // 2]) < 1.13
    assert math.exp(found[8 * len(found) // 10]) < 1.75
    assert math.exp(found[-1]) < 4.7
    assert together == pytest.approx(1, abs=0.05)


def test_most_of_the_catalogue_has_a_listed_shape() -> None:
    table = shape_table()
    near = total = 0
    for family in load_families():
        for model in family.models:
            known, _ = table.kind(model.id, family.name).nearest(model.parameters)
            near += model.parameters * (abs(known / model.parameters - 1) < 0.02)
            total += model.parameters
    assert near / total > 0.85


def test_every_family_of_the_catalogue_has_a_kind_and_every_member_exists() -> None:
    table = shape_table()
    families = {family.name for family in load_families()}
    models = {model.id for family in load_families() for model in family.models}
    for family in load_families():
        ids = {model.id for model in family.models}
        assert family.name in table.members or ids <= table.members.keys(), family.name
    assert table.members.keys() <= families | models
    assert table.stored.keys() <= families


def test_bytes_of_attention_by_hand() -> None:
    llama = model_cost(*entry("meta-llama/Llama-3.1-8B-Instruct"))
    # Q 4096 × 4096 and K 1024 × 4096 in each of 32 layers, two bytes each
    assert llama.moved == pytest.approx(2 * 32 * (4096 + 1024) * 4096, rel=1e-9)
    assert llama.weights == 2 * 8_030_261_248
    assert (llama.files, llama.layers, llama.ranges) == (4, 32, 2 * 4 + 32 * 3)
    both = model_cost(*entry("meta-llama/Llama-3.1-8B"), ("qk", "ov"))
    assert both.moved == pytest.approx(2 * llama.moved, rel=1e-9)

    gpt2 = model_cost(*entry("openai-community/gpt2"))
    # one tensor of Q, K and V, read whole; four bytes each
    assert gpt2.moved == pytest.approx(4 * 12 * 3 * 768**2, rel=1e-9)

    mixtral = model_cost(*entry("mistralai/Mixtral-8x7B-v0.1"))
    assert mixtral.moved == pytest.approx(llama.moved, rel=1e-9)

    t5 = model_cost(*entry("google-t5/t5-base"))
    # 12 layers of the encoder, 12 of the decoder with two attentions each
    assert t5.moved == pytest.approx(4 * 36 * 2 * 768**2, rel=1e-9)

    deepseek = model_cost(*entry("deepseek-ai/DeepSeek-V3"))
    latent = 7168 * 1536 + 1536 * 128 * 192 + 7168 * (512 + 64) + 512 * 128 * 256
    assert deepseek.moved == pytest.approx(61 * latent, rel=1e-9)


def test_a_packaged_model_costs_no_network() -> None:
    costs = family_costs(find_family("rxnfp"))
    found = estimate(costs, Assumptions())
    assert (found.moved, found.requests, found.link_seconds, found.rate_seconds) == (0, 0, 0, 0)
    assert found.compute_seconds > 0
    assert found.limit == "computing"


def test_training_checkpoints_cost_as_much_as_the_model_each() -> None:
    pythia = find_family("pythia")
    alone = estimate(family_costs(pythia), Assumptions())
    all_of_them = estimate(family_costs(pythia, checkpoints=True), Assumptions())
    assert (alone.models, all_of_them.models) == (10, 10 * 155)
    assert all_of_them.moved == pytest.approx(155 * alone.moved)
    assert all_of_them.requests == 155 * alone.requests


def cost(**changes: float) -> ModelCost:
    """A model of 12 GB in three files, 1 GB of it attention, in 12 layers."""
    known = {
        "weights": 12e9, "computed": 1e9, "moved": 1e9, "files": 3, "layers": 12, "ranges": 42,
    }  # fmt: skip
    return ModelCost("model", **{**known, **changes})  # type: ignore[arg-type]


def test_the_slowest_of_three_decides() -> None:
    found = estimate([cost()], Assumptions(link=125e6, compute=100e6))
    assert (found.link_seconds, found.rate_seconds, found.compute_seconds) == (8, 0, 10)
    assert (found.seconds, found.limit) == (10, "computing")
    # one description, one config, one index, three files
    assert found.requests == 1 + 2 + 3 + 42
    two = estimate([cost()], Assumptions(link=125e6, compute=100e6, workers=2))
    assert (two.seconds, two.limit) == (8, "link")
    assert two.requests == 1 + 2 + 3 * 2 + 42
    apart = estimate([cost()], Assumptions(link=125e6, compute=100e6, workers=2, own_links=True))
    assert (apart.link_seconds, apart.compute_seconds) == (4, 5)


def test_requests_beyond_a_window_wait_for_the_next() -> None:
    small = {"weights": 1e6, "computed": 1.0, "moved": 1.0, "files": 1}
    api, resolvers = RATE_LIMITS["anonymous"]
    assert estimate([cost(**small, copies=api)], Assumptions()).rate_seconds == 0
    assert estimate([cost(**small, copies=api + 1)], Assumptions()).rate_seconds == 300
    free = Assumptions(account="free")
    assert estimate([cost(**small, copies=api + 1)], free).rate_seconds == 0
    # A worker resolves each file it reads a layer of, and there are twelve layers in one file.
    many = Assumptions(workers=100)
    assert estimate([cost(**small, copies=400)], many).rate_seconds == 300
    assert resolvers < 400 * (2 + 12)
    own = Assumptions(workers=100, own_links=True)
    assert estimate([cost(**small, copies=400)], own).rate_seconds == 0


@pytest.mark.parametrize("own_links", [False, True])
@pytest.mark.parametrize("family", ["llama-3", "bert", "deepseek-v3", "rxnfp"])
def test_more_than_the_useful_workers_do_not_help(family: str, own_links: bool) -> None:
    costs = family_costs(find_family(family), checkpoints=True)
    assumed = Assumptions(own_links=own_links, compute=20e6)
    enough = useful_workers(costs, assumed)
    layers = sum(c.copies * c.layers for c in costs)

    def seconds(workers: int) -> float:
        found = estimate(costs, Assumptions(own_links=own_links, compute=20e6, workers=workers))
        return found.seconds

    assert 1 <= enough <= layers
    if enough < layers:
        assert seconds(enough + 1) >= seconds(enough)
        assert seconds(10 * enough) >= seconds(enough)
    if enough > 1:
        assert seconds(enough - 1) > seconds(enough)


def test_workers_help_until_the_shared_link_is_full() -> None:
    costs = [cost(copies=100)]
    # 125 MB/s of link are kept busy by 6.25 workers of 20 MB/s
    assert useful_workers(costs, Assumptions(link=125e6, compute=20e6)) == 7
    assert useful_workers(costs, Assumptions(link=1e6, compute=20e6)) == 1


def test_a_collection_is_of_the_make_of_the_models() -> None:
    costs = [cost(), cost(moved=3e9, computed=3e9)]
    found = estimate([collection_cost(costs, 1000, 24e12)], Assumptions())
    # 4 of 24 GB are attention; files of 24 GB are five
    assert (found.models, found.weights) == (1000, 24e12)
    assert found.moved == pytest.approx(4e12)
    assert found.requests == 1000 * (1 + 2 + 5 + 36 + 2 * 5)


def test_the_whole_catalogue_is_planned_and_sums_up() -> None:
    record = json.loads(plan("--json").output)
    rows, total = record["families"], record["total"]
    assert list(rows) == [family.name for family in load_families()]
    assert total["models"] == sum(len(family.models) for family in load_families())
    for key in ("models", "weights", "moved", "requests", "link_seconds", "compute_seconds"):
        assert sum(row[key] for row in rows.values()) == pytest.approx(total[key]), key
    assert total["seconds"] == max(
        total["link_seconds"], total["rate_seconds"], total["compute_seconds"]
    )
    for name, row in rows.items():
        assert row["weights"] > 2 * row["moved"], name
    assert record["useful_workers"] == 2


def test_a_users_family_may_have_the_name_of_a_built_in_one() -> None:
    path = user_catalog() / "families" / "opt.toml"
    path.parent.mkdir(parents=True)
    keys = {"name": "opt", "title": "OPT", "description": "One of them.", "license": "other"}
    model = '[[models]]\nid = "facebook/opt-350m"\nparameters = 331_196_416\n'
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in keys.items()) + model)
    shape_table.cache_clear()
    result = plan("--family", "opt", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["total"]["models"] == 1


def test_the_table_says_what_is_assumed() -> None:
    result = plan("--family", "Pythia", "--family", "llama-2", "--link", 100, "--account", "pro")
    assert result.exit_code == 0
    head, *rows = result.output.splitlines()
    assert head.split() == [
        "family", "models", "weights", "to", "move", "saved", "requests", "hours", "slowest",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows[:3]] == ["pythia", "llama-2", "all"]
    assert rows[0].rstrip().endswith("link")
    assert "one link of 100 Mbit/s" in result.output
    assert "grants pro users 2,500 API requests and 12,000 file look-ups" in result.output
    assert "One worker is enough" in result.output


def test_options_reach_the_estimate() -> None:
    def total(*arguments: object) -> dict[str, float]:
        return json.loads(plan("--family", "llama-3", "--json", *arguments).output)["total"]

    alone = total()
    assert total("--circuit", "qk", "--circuit", "ov")["moved"] == pytest.approx(2 * alone["moved"])
    assert total("--bytes-per-weight", 4)["moved"] == pytest.approx(2 * alone["moved"])
    assert total("--compute", 50)["compute_seconds"] == pytest.approx(2 * alone["compute_seconds"])
    assert total("--workers", 4)["compute_seconds"] == pytest.approx(alone["compute_seconds"] / 4)
    assert total("--workers", 4, "--own-links")["link_seconds"] == alone["link_seconds"] / 4
    assert total("--checkpoints") == alone  # there are none of it
    held = plan("--family", "llama-3", "--collection", 1000, 50, "--json")
    assert json.loads(held.output)["total"]["weights"] == 50e12
    assert "the collection" in plan("--collection", 1_000_000, 8000).output


@pytest.mark.parametrize("option", ["--link", "--compute", "--bytes-per-weight", "--workers"])
def test_what_cannot_be_is_a_wrong_call(option: str) -> None:
    assert plan(option, 0).exit_code == 2
    assert plan("--family", "pithia").exit_code == 2


def test_kinds_are_told_apart_where_it_matters() -> None:
    """Estimated as a dense model with as many heads, a mixture of experts would cost tenfold."""
    costs = {
        model: model_cost(*entry(model))
        for model in ("mistralai/Mixtral-8x7B-v0.1", "huggyllama/llama-65b", "facebook/opt-66b")
    }
    shares = {model: found.moved / found.weights for model, found in costs.items()}
    assert shares["mistralai/Mixtral-8x7B-v0.1"] < shares["huggyllama/llama-65b"] / 10
    for one, other in itertools.combinations(list(shares.values())[1:], 2):
        assert one == pytest.approx(other, rel=0.1)
