"""Whatever is done to a file, its parser refuses it in words or returns what is sound.

The inputs and what must hold of them are those of the fuzzers (fuzz/harnesses.py).
"""

import json
import re
from typing import Any

import pytest
from fuzz.harnesses import BETWEEN, CONFIGS, HARNESSES, header_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence", "ignore::RuntimeWarning")


def inputs(n: int) -> settings:
    """As many inputs, the same each time: what is found by chance is for the fuzzers."""
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


SEEDS = {name: list(harness.seeds()) for name, harness in HARNESSES.items()}

EXTREMES = (b"0", b"-1", b"1e308", b"9" * 40, b"NaN", b"4294967296", b"9223372036854775808", b'"4"')


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes changed, cut, doubled, taken from another seed, or numbers replaced."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 24)))
        match draw(st.sampled_from(["byte", "number", "number", "splice", "double", "cut"])):
            case "byte":
                content = content[:start] + draw(st.binary(max_size=4)) + content[end:]
            case "number":
                if number := re.compile(rb"-?\d+(\.\d+)?").search(content, start):
                    extreme = draw(st.sampled_from(EXTREMES))
                    content = content[: number.start()] + extreme + content[number.end() :]
            case "splice":
                other = draw(st.sampled_from(seeds))
                content = content[:start] + other[draw(st.integers(0, len(other))) :]
            case "double":
                content = content[:end] + content[start:]
            case "cut":
                content = content[:start] + content[end:]
    return content


@pytest.mark.parametrize("name", HARNESSES)
def test_changed_files(name: str) -> None:
    outcomes = set()

    @inputs(250)
    @given(changed(SEEDS[name]))
    def attempt(content: bytes) -> None:
        outcomes.add(HARNESSES[name].attempt(content))

    attempt()
    assert outcomes == {True, False}


numbers = st.one_of(
    st.integers(-(1 << 80), 1 << 80),
    st.sampled_from([0, 1, 2, 4, 10**12, 10**400, 1 << 31, 1 << 63, (1 << 64) - 1]),
    st.floats(),
)
texts = st.one_of(st.text(max_size=8), st.sampled_from(["F32", "I8", "llama", "1", "x" * 1000]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)

#: Keys that a config is read for; values are put under them, and under others.
KEYS = st.sampled_from(
    [
        *("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "n_head", "n_layer", "text_config", "rope_scaling", "rope_parameters"),
        *("attention_multiplier", "query_pre_attn_scalar", "num_nextn_predict_layers"),
        *("quantization_config", "initializer_range", "layer_types", "auto_map"),
    ]
)
ADAPTER_KEYS = st.sampled_from(
    [
        *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "use_rslora"),
        *("alpha_pattern", "use_dora", "init_lora_weights", "fan_in_fan_out", "revision"),
    ]
)


@inputs(300)
@given(
    st.sampled_from(CONFIGS),
    st.dictionaries(KEYS | texts, values, max_size=3),
    st.none() | st.dictionaries(texts, values, max_size=3) | values,
)
def test_any_config_and_index(model: Any, said: dict[str, Any], weight_map: Any) -> None:
    config, shapes = model
    index = b"" if weight_map is None else json.dumps({"weight_map": weight_map}).encode()
    HARNESSES["planning"].attempt(
        BETWEEN.join((json.dumps(config | said).encode(), index, header_of(shapes)))
    )


@inputs(300)
@given(
    st.sampled_from(["dtype", "shape", "data_offsets", "other"]),
    values | st.lists(numbers, min_size=2, max_size=3),
    values,
)
def test_any_entry_of_a_header(key: str, value: Any, other: Any) -> None:
    config, shapes = CONFIGS[0]
    header = json.loads(header_of(shapes))
    header["model.layers.0.self_attn.q_proj.weight"][key] = value
    header["other"] = other
    text = json.dumps(header).encode()
    HARNESSES["safetensors"].attempt(text + BETWEEN + bytes(300))
    HARNESSES["planning"].attempt(BETWEEN.join((json.dumps(config).encode(), b"", text)))


sizes = st.lists(st.integers(0, 8), max_size=4)


@inputs(400)
@given(
    st.sampled_from(CONFIGS),
    st.dictionaries(st.integers(0, 5), sizes, max_size=2),
    st.none() | sizes,
    st.sampled_from(["F32", "F8_E4M3", "F16", "I8"]),
    st.none() | st.lists(st.sampled_from([1, 2, 3, 128, 10**12]), max_size=3),
)
def test_any_shapes(
    model: Any, other: dict[int, list[int]], scale: list[int] | None, dtype: str, block: Any
) -> None:
    """Headers that are sound in themselves, of tensors or scales that fit no model."""
    config, shapes = model
    said: dict[str, Any] = dict(shapes)
    for number, shape in other.items():
        said[list(shapes)[number % len(shapes)]] = tuple(shape)
    reader = next(name for name in shapes if name.endswith(("q_proj.weight", "c_attn.weight")))
    if scale is not None:
        said[f"{reader}_scale_inv"] = tuple(scale)
    header = header_of(said, {reader: dtype})
    config = config | {"quantization_config": {"weight_block_size": block}}
    HARNESSES["planning"].attempt(BETWEEN.join((json.dumps(config).encode(), b"", header)))


@inputs(300)
@given(st.dictionaries(ADAPTER_KEYS | texts, values, max_size=3))
def test_any_config_of_an_adapter(said: dict[str, Any]) -> None:
    config, _, header = SEEDS["adapter"][0].partition(BETWEEN)
    text = json.dumps(json.loads(config) | said).encode()
    HARNESSES["adapter"].attempt(text + BETWEEN + header)


@inputs(200)
@given(
    st.sampled_from(["n_layers", "n_heads", "d_head", "stacks", "statistics", "provenance"]),
    texts | values.map(json.dumps),
)
def test_any_metadata_of_spectra(key: str, value: str) -> None:
    header, _, data = SEEDS["spectra"][0].partition(BETWEEN)
    said = json.loads(header)
    said["__metadata__"][key] = value
    HARNESSES["spectra"].attempt(json.dumps(said).encode() + BETWEEN + data)
