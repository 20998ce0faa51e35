"""What a survey costs before a byte is moved: bytes, requests and hours, from the catalogue alone.

The estimate is for planning; ``download --dry-run`` opens each checkpoint and gives exact bytes.
A model is taken to have the attention of the public model of its kind (``catalog/shapes.toml``)
that is nearest in number of parameters. Nine tenths of the catalogue's weights are in models of a
listed size, whose bytes are exact where the stored width is. For others, with each listed model
estimated from the rest of its kind: half are within 13 % of the truth, eight in ten within a factor
of 1.75, the worst off by 4.7 (a mixture of experts), and all of them together within 5 %
(tests/test_plan.py). A family of no known kind is taken for dense decoders without shared keys.

Time is that of the slowest of three: the link, the hub's rate limits, computing.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qk_taxonomy.catalog import read_family
from qk_taxonomy.errors import CatalogError
from qk_taxonomy.records import Circuit, Family, ModelEntry
from qk_taxonomy.resources import builtin_catalog, read_toml

Account = Literal["anonymous", "free", "pro"]
Packing = Literal["separate", "fused", "latent"]
Limit = Literal["link", "rate limit", "computing", "nothing"]

#: Requests the hub grants in each fixed window: (API, resolvers). Anonymous ones by IP address,
#: others by user. https://huggingface.co/docs/hub/rate-limits, the table of September 2025.
RATE_LIMITS: dict[Account, tuple[int, int]] = {
    "anonymous": (500, 3_000),
    "free": (1_000, 5_000),
    "pro": (2_500, 12_000),
}

#: Seconds of a rate limit's window (same page).
RATE_WINDOW = 300

#: Bytes of attention weights that two cores fetch and turn into spectra in a second: 87 to 97 MB
#: of bfloat16 at the shapes of Llama-3-8B and Llama-3.2-1B (``tests/benchmarks/streaming.py``).
COMPUTE_RATE = 100e6

#: Bytes of a weight where the table does not say: float16 and bfloat16.
BYTES_PER_WEIGHT = 2

#: Bytes of one weight file at most: what transformers 4 splits a model into.
SHARD_BYTES = 5e9

# Requests a model: its description from the API; its config and its index of weight files from
# the resolvers; and, for each weight file, the header's length and the header.
_API_REQUESTS = 1
_JSON_REQUESTS = 2
_HEADER_REQUESTS = 2

# Taken for a family that the table does not list: the estimate is then rather too high.
_UNLISTED_KIND = "full"

_ROLES: dict[Circuit, frozenset[str]] = {
    "qk": frozenset({"q", "k", "qkv", "kv", "q_latent", "kv_latent"}),
    "ov": frozenset({"v", "o", "qkv", "kv", "kv_latent"}),
}


@dataclass(frozen=True)
class Shape:
    """The attention of one public model.

    ``layers`` counts layers with attention, those of the encoder where there are
    ``decoder_layers`` besides, each with a cross-attention. ``latent``: ranks of the latent
    queries (0: none) and of the latent keys and values, and dimensions that only tell positions.
    """

    model: str
    packing: Packing
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    d_head: int
    latent: tuple[int, int, int] | None = None
    decoder_layers: int = 0

    @property
    def attentions(self) -> int:
        """Attention layers of all stacks."""
        return self.layers + 2 * self.decoder_layers

    @property
    def projections(self) -> dict[str, int]:
        """Weights of each stored projection of one attention layer, by role."""
        d, e, heads, kv_heads = self.d_model, self.d_head, self.heads, self.kv_heads
        o = {"o": d * heads * e}
        if self.latent is not None:
            q_rank, kv_rank, positions = self.latent
            q = {"q": (q_rank or d) * heads * (e + positions)}
            if q_rank:
                q["q_latent"] = d * q_rank
            kv = {"kv_latent": d * (kv_rank + positions), "kv": kv_rank * heads * 2 * e}
            return q | kv | o
        if self.packing == "fused":
            return {"qkv": d * (heads + 2 * kv_heads) * e} | o
        return {"q": d * heads * e, "k": d * kv_heads * e, "v": d * kv_heads * e} | o

    def needed(self, circuits: Iterable[Circuit]) -> dict[str, int]:
        """The projections that ``circuits`` need."""
        roles = frozenset[str]().union(*(_ROLES[circuit] for circuit in circuits))
        return {role: n for role, n in self.projections.items() if role in roles}


@dataclass(frozen=True)
class Kind:
    """Models whose attention is stored alike: their shapes, by number of parameters."""

    name: str
    shapes: tuple[tuple[int, Shape], ...]

    def nearest(self, parameters: int) -> tuple[int, Shape]:
        """Parameters and shape of the listed model nearest in logarithm of parameters."""
        wanted = math.log(max(parameters, 1))
        return min(self.shapes, key=lambda item: abs(math.log(item[0]) - wanted))


@dataclass(frozen=True)
class ShapeTable:
    """``catalog/shapes.toml``: kinds by name, and of families and models their kind and bytes."""

    kinds: Mapping[str, Kind]
    members: Mapping[str, str]
    stored: Mapping[str, float]

    def kind(self, model_id: str, family: str) -> Kind:
        """The kind of a model, else that of its family."""
        name = self.members.get(model_id) or self.members.get(family) or _UNLISTED_KIND
        return self.kinds[name]


@dataclass(frozen=True)
class ModelCost:
    """What one model costs, the same for each of its ``copies`` (itself, training checkpoints).

    ``weights``: bytes of the checkpoint; ``computed``: bytes of the tensors the circuits need;
    ``moved``: those of them that cross the network; ``files``: weight files to read from;
    ``layers``: attention layers, the units of work; ``ranges``: reads of bytes.
    """

    model: str
    weights: float
    computed: float
    moved: float
    files: int
    layers: int
    ranges: int
    copies: int = 1

    @property
    def on_hub(self) -> bool:
        return self.files > 0

    def resolves(self, workers: int) -> int:
        """Requests to the hub's resolvers: every worker resolves each file it reads from."""
        if not self.on_hub:
            return 0
        sharing = min(workers, math.ceil(self.layers / self.files))
        return _JSON_REQUESTS + self.files * sharing

    @property
    def api_requests(self) -> int:
        return _API_REQUESTS if self.on_hub else 0


@dataclass(frozen=True)
class Assumptions:
    """How a survey is run. ``link`` and ``compute`` in bytes a second, ``compute`` of one worker.

    ``own_links``: every worker has a link of that speed of its own, and its own IP address.
    """

    link: float = 125e6
    workers: int = 1
    account: Account = "anonymous"
    compute: float = COMPUTE_RATE
    own_links: bool = False


@dataclass(frozen=True)
class Estimate:
    """Totals of several models, and seconds that each of link, rate limit and computing takes."""

    models: int
    weights: float
    moved: float
    requests: int
    link_seconds: float
    rate_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        """All three go on side by side: the slowest decides."""
        return max(self.link_seconds, self.rate_seconds, self.compute_seconds)

    @property
    def limit(self) -> Limit:
        """What takes longest."""
        if self.seconds == 0:
            return "nothing"
        if self.seconds == self.compute_seconds:
            return "computing"
        return "link" if self.seconds == self.link_seconds else "rate limit"


@functools.cache
def shape_table() -> ShapeTable:
    """The built-in table. Raises CatalogError where it is broken."""
    file = read_toml(builtin_catalog() / "shapes.toml")
    file.check(file.data, (), {"kinds": dict, "stored": list}, {})
    # The built-in families, since a user's own of the same name may leave these models out.
    families = map(read_family, (builtin_catalog() / "families").glob("*.toml"))
    parameters = {model.id: model.parameters for family in families for model in family.models}
    kinds: dict[str, Kind] = {}
    members: dict[str, str] = {}
    for name, table in file.data["kinds"].items():
        required = {"packing": str, "members": list, "shapes": list}
        file.check(table, ("kinds", name), required, {})
        shapes = [_shape(row, table["packing"]) for row in table["shapes"]]
        kinds[name] = Kind(name, tuple((parameters[shape.model], shape) for shape in shapes))
        for member in table["members"]:
            if members.setdefault(member, name) != name:
                raise CatalogError(f"{file.path}: {member} is of two kinds; take it from one.")
    stored = {member: row["bytes"] for row in file.data["stored"] for member in row["members"]}
    return ShapeTable(kinds, members, stored)


def _shape(row: Mapping[str, Any], packing: Packing) -> Shape:
    latent = row.get("latent")
    return Shape(**{**row, "packing": packing, "latent": tuple(latent) if latent else None})


def model_cost(
    model: ModelEntry,
    family: str,
    circuits: Sequence[Circuit] = ("qk",),
    *,
    checkpoints: bool = False,
    bytes_per_weight: float | None = None,
) -> ModelCost:
    """What surveying a model of the catalogue costs; with ``checkpoints``, those of its training.

    A model that a package carries costs no network. Without ``bytes_per_weight``, the table's.
    """
    table = shape_table()
    known, shape = table.kind(model.id, family).nearest(model.parameters)
    width = bytes_per_weight or table.stored.get(family, BYTES_PER_WEIGHT)
    weights = width * model.parameters
    needed = shape.needed(circuits)
    computed = weights * shape.attentions * sum(needed.values()) / known
    files = math.ceil(weights / SHARD_BYTES) if model.hub else 0
    # Projections and the gain of the norm before them.
    tensors = shape.attentions * (len(needed) + 1)
    return ModelCost(
        model=model.id,
        weights=weights,
        computed=computed,
        moved=computed if model.hub else 0.0,
        files=files,
        layers=shape.attentions,
        ranges=_HEADER_REQUESTS * files + tensors if model.hub else 0,
        copies=1 + (len(model.checkpoints.revisions) if checkpoints and model.checkpoints else 0),
    )


def family_costs(
    family: Family,
    circuits: Sequence[Circuit] = ("qk",),
    *,
    checkpoints: bool = False,
    bytes_per_weight: float | None = None,
) -> tuple[ModelCost, ...]:
    """The cost of each model of a family."""
    return tuple(
        model_cost(
            model,
            family.name,
            circuits,
            checkpoints=checkpoints,
            bytes_per_weight=bytes_per_weight,
        )
        for model in family.models
    )


def collection_cost(costs: Sequence[ModelCost], models: int, weights: float) -> ModelCost:
    """A collection of that many models and bytes of weights, otherwise like ``costs`` on average.

    Attention's share of the bytes is that of all of ``costs`` together.
    """
    known = [cost for cost in costs if cost.on_hub]
    n = sum(cost.copies for cost in known)
    share = sum(c.copies * c.moved for c in known) / sum(c.copies * c.weights for c in known)
    layers = round(sum(c.copies * c.layers for c in known) / n)
    files = math.ceil(weights / models / SHARD_BYTES)
    tensors = round(sum(c.copies * (c.ranges - _HEADER_REQUESTS * c.files) for c in known) / n)
    return ModelCost(
        model="collection",
        weights=weights / models,
        computed=share * weights / models,
        moved=share * weights / models,
        files=files,
        layers=layers,
        ranges=_HEADER_REQUESTS * files + tensors,
        copies=models,
    )


def _full_windows(requests: int, granted: int) -> int:
    """Windows to wait out: what is left after the last of them fits the next one."""
    return max(math.ceil(requests / granted) - 1, 0)


def estimate(costs: Iterable[ModelCost], assumed: Assumptions) -> Estimate:
    """Totals and times of surveying all of ``costs`` together."""
    costs = tuple(costs)
    api = sum(cost.copies * cost.api_requests for cost in costs)
    resolves = sum(cost.copies * cost.resolves(assumed.workers) for cost in costs)
    moved = sum(cost.copies * cost.moved for cost in costs)
    api_granted, granted = RATE_LIMITS[assumed.account]
    # The process that plans asks the API; workers at addresses of their own are granted their own.
    if assumed.own_links and assumed.account == "anonymous":
        granted *= assumed.workers
    windows = max(_full_windows(api, api_granted), _full_windows(resolves, granted))
    links = assumed.workers if assumed.own_links else 1
    return Estimate(
        models=sum(cost.copies for cost in costs),
        weights=sum(cost.copies * cost.weights for cost in costs),
        moved=moved,
        requests=api + resolves + sum(cost.copies * cost.ranges for cost in costs),
        link_seconds=moved / (assumed.link * links),
        rate_seconds=float(RATE_WINDOW * windows),
        compute_seconds=sum(c.copies * c.computed for c in costs)
        / (assumed.compute * assumed.workers),
    )


def useful_workers(costs: Sequence[ModelCost], assumed: Assumptions) -> int:
    """The number of workers from which more do not help, at most one a layer.

    It is the first with which the time is that of something workers do not add to: the rate
    limit or, where they share it, the link.
    """
    most = max(sum(cost.copies * cost.layers for cost in costs), 1)

    def bound(workers: int) -> bool:
        found = estimate(costs, replace(assumed, workers=workers))
        return found.limit == "rate limit" or (found.limit == "link" and not assumed.own_links)

    # More workers only shorten what they add to, so once something else binds, it goes on binding.
    return 1 + bisect.bisect_left(range(1, most), True, key=bound)
