"""Every key of a config that the architecture table reads, with values that none should have."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from qk_taxonomy.architectures import architecture_table, attention_layout
from qk_taxonomy.architectures.table import Architecture, Stack, lookup
from qk_taxonomy.errors import LayoutError, QKTaxonomyError
from qk_taxonomy.records import TensorInfo

#: Heads, dimensions, rows of a latent vector and of positions in the models made here.
H, E, D, RANK, ROTARY = 4, 8, 32, 6, 2

VALUES: list[Any] = [
    *(0, -1, 10**12, 10**400, True, 1.5, 1e308, math.nan, math.inf),
    *("4", "9" * 100_000, [4], [None] * 10_000, {}, {"a": {"": 4}}),
    None,
]

#: Quantities that the table's products know without the config.
_KNOWN = {"d_head", "d_query", "d_model", "layer_number", "n_layers", "fan_in", "fan_mean"}


def shapes(stack: Stack) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors, by role."""
    d_in = D * stack.input_width
    qkv, o = (3 * H * E, d_in), (D, H * E)
    made = {
        "separate": {
            "q": (H * E * (2 if stack.gated else 1), d_in),
            "k": (H * E, d_in),
            "v": (H * E, d_in),
            "o": o,
        },
        "latent": {
            "q_latent": (RANK, d_in),
            "q": (H * (E + ROTARY), RANK if "q_latent" in stack.tensors else d_in),
            "kv_latent": (RANK + ROTARY, d_in),
            "kv": (H * 2 * E, RANK),
            "o": o,
        },
    }.get(stack.packing, {"qkv": qkv, "o": o})
    return {role: made[role][:: -1 if stack.transposed else 1] for role in stack.tensors}


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with a value under a key, in nested tables where it has dots."""
    outer, _, inner = key.partition(".")
    nested = config.get(outer)
    if not inner:
        return config | {key: value}
    return config | {outer: put(nested if isinstance(nested, dict) else {}, inner, value)}


def keys_of(stack: Stack) -> Iterator[str]:
    """What is read of a config for one stack."""
    yield from ("rope_parameters", "rope_scaling", "pos_att_type", "initializer_cutoff_factor")
    yield from ("quantization_config", "model_type")
    for several in stack.keys.values():
        yield from several
    for powers in (stack.scale, *stack.init.values()):
        yield from (key for key in powers if key not in _KNOWN and not key[0].isdigit())
    yield from (refusal.key for refusal in stack.refuse)
    yield from (key for key in (stack.shared_by, stack.extra_layers) if key)


def model(row: Architecture) -> tuple[dict[str, Any], dict[str, TensorInfo], set[str]]:
    """A row's config, one layer of each of its stacks, and the keys of the config that are read."""
    config: dict[str, Any] = {"model_type": row.model_types[0]}
    tensors: dict[str, tuple[int, ...]] = {}
    read: set[str] = set()
    for part in row.stacks:
        stack = part.resolve(part.config(config), lambda name: False)
        prefix = part.patterns[0].format(i=0)
        for role, shape in shapes(stack).items():
            tensors[prefix + stack.tensors[role]] = shape
        for role, norm in stack.norms.items():
            if not norm.gains:
                continue
            size = {"q_norm": E, "k_norm": E, "q_latent_norm": RANK, "kv_latent_norm": RANK}
            names = [norm.gains[0].format(h=h) for h in range(H)]
            place = "" if role == "memory_norm" else prefix
            width = size.get(role, D * stack.input_width)
            tensors |= {place + name: (width,) for name in dict.fromkeys(names)}
        place = part.table.get("config_in", "")
        keys = {f"{place}.{key}".lstrip(".") for key in keys_of(stack)}
        read |= keys | ({place} if place else set())
        said = {"n_layers": 1, "n_heads": H}
        for role, value in said.items():
            key = f"{place}.{stack.keys[role][0]}".lstrip(".")
            config = put(config, key, value)
        for powers in (stack.scale, *stack.init.values()):
            for key in powers:
                full = f"{place}.{key}".lstrip(".")
                if key not in _KNOWN and not key[0].isdigit() and lookup(config, full) is None:
                    config = put(config, full, 1.0)
    infos = {
        name: TensorInfo(name, "F32", shape, "x", 0, 4 * math.prod(shape))
        for name, shape in tensors.items()
    }
    return config, infos, read


ROWS = [row for row in architecture_table().rows.values() if row.model_types and row.stacks]


def fits(row: Architecture) -> bool:
    config, infos, _ = model(row)
    try:
        return bool(attention_layout(config, infos).layers)
    except LayoutError:
        return False


#: Rows whose tensors are what the table says without a config's help.
SOUND = [row for row in ROWS if fits(row)]


def test_most_rows_are_tried() -> None:
    assert len(SOUND) >= 0.8 * len(ROWS), [row.name for row in ROWS if row not in SOUND]


@pytest.mark.parametrize("row", SOUND, ids=lambda row: row.name)
def test_each_key_with_each_value(row: Architecture) -> None:
    config, infos, read = model(row)
    sound = attention_layout(config, infos, row.name)
    refused = 0
    for key in sorted(read):
        for value in VALUES:
            try:
                layout = attention_layout(put(config, key, value), infos, row.name, untrained=True)
            except QKTaxonomyError as err:
                assert len(str(err)) < 3000, key  # noqa: PT017
                refused += 1
                continue
            for found, wanted in zip(layout.layers, sound.layers, strict=True):
                # Without the key, a row's own number stands.
                assert found.geometry == wanted.geometry or value is None, (key, value)
                assert 0 < found.scale < math.inf, (key, value)
                assert all(0 < std < math.inf for std in found.init_std.values()), (key, value)
    assert refused


@pytest.mark.parametrize("key", ["num_attention_heads", "num_hidden_layers", "head_dim"])
@pytest.mark.parametrize("value", [10**12, -1, 0, True, "4", 4.0, math.nan, {}, [], 10**400])
def test_a_count_that_is_none_is_named(key: str, value: Any) -> None:
    (row,) = (row for row in SOUND if "llama" in row.model_types)
    config, infos, _ = model(row)
    with pytest.raises(LayoutError, match=rf"The config says {key} = .*a positive number"):
        attention_layout(config | {key: value}, infos)


@pytest.mark.parametrize("value", VALUES)
def test_what_a_wrapper_holds(value: Any) -> None:
    (row,) = (row for row in SOUND if "llama" in row.model_types)
    config, infos, _ = model(row)
    inner = {f"model.language_model.{n.removeprefix('model.')}": t for n, t in infos.items()}
    for said in ({"text_config": value}, {"text_config": config | {"model_type": value}}):
        with pytest.raises(LayoutError) as caught:
            attention_layout({"model_type": "llava"} | said, inner)
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": "40", "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": 40, "mscale_all_dim": "1.0"},
        {"rope_type": "yarn", "factor": -40, "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": True, "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": math.nan, "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": 10**400, "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": 40, "mscale_all_dim": -1e9},
        {"rope_type": "yarn", "factor": 40, "mscale_all_dim": {}},
        "yarn",
    ],
)
def test_positions_that_are_no_numbers(rope: Any) -> None:
    (row,) = (row for row in SOUND if "deepseek_v3" in row.model_types)
    config, infos, _ = model(row)
    with pytest.raises(LayoutError, match=r"rope parameters|yarn_temperature"):
        attention_layout(config | {"rope_scaling": rope}, infos)
