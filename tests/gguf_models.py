"""Tiny GGUF files, written from transformers models as llama.cpp's converter writes them.

https://github.com/ggml-org/llama.cpp/tree/master/conversion. Nothing here comes from qk_taxonomy.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tiny_base import TinyModel
from tiny_models import TINY_MODELS
from transformers import PreTrainedModel

#: llama.cpp's architectures, and the transformers models that its converter makes of that kind.
CONVERTED = {
    "bert": ("bert", "camembert", "distilbert", "roberta", "xlm-roberta"),
    "cohere2": ("cohere2",),
    "command-r": ("cohere",),
    "ernie4_5": ("ernie4_5",),
    "gemma": ("gemma",),
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3_text",),
    "gpt2": ("gpt2",),
    "gptneox": ("gpt_neox",),
    "granite": ("granite",),
    "granitemoe": ("granitemoe",),
    "llama": ("llama", "mistral", "mixtral"),
    "nemotron": ("nemotron",),
    "olmo": ("olmo",),
    "olmo2": ("olmo2", "olmo3"),
    "olmoe": ("olmoe",),
    "phi2": ("phi",),
    "phi3": ("phi3",),
    "qwen2": ("qwen2",),
    "qwen2moe": ("qwen2_moe",),
    "qwen3": ("qwen3",),
    "qwen3moe": ("qwen3_moe",),
    "seed_oss": ("seed_oss",),
    "smollm3": ("smollm3",),
    "stablelm": ("stablelm",),
    "starcoder2": ("starcoder2",),
}

_PERMUTED = ("granite", "granitemoe", "llama", "olmo", "smollm3")
_GAINS_FROM_ONE = ("gemma", "gemma2", "gemma3", "nemotron")

_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def _converted_model(arch: str, model_type: str) -> TinyModel:
    """The model of a type, with an attention scale that a GGUF file can tell, saved as such."""

    def rewrite(model: PreTrainedModel, folder: Path) -> Path:
        write_gguf(arch, model, folder.with_name("tiny.gguf"))
        return folder.with_name("tiny.gguf")

    tiny = replace(TINY_MODELS[model_type], rewrite=rewrite)
    if "query_pre_attn_scalar" not in tiny.config:
        return tiny
    return tiny.but(query_pre_attn_scalar=tiny.config["head_dim"])


def _permuted(weights: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Each head's rows, from halves that rotate together to neighbours that do."""
    halves = weights.reshape(n_heads, 2, -1, *weights.shape[1:])
    return halves.transpose(1, 2).reshape(weights.shape)


def _converted(arch: str, name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    n_heads = config.num_attention_heads
    if arch in _PERMUTED and ".q_proj." in name:
        return _permuted(tensor, n_heads)
    if arch in _PERMUTED and ".k_proj." in name:
        return _permuted(tensor, config.num_key_value_heads)
    if arch in _GAINS_FROM_ONE and name.endswith("norm.weight"):
        return tensor + 1
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return tensor.T
    if arch == "gptneox" and ".query_key_value." in name:
        by_head = tensor.reshape(n_heads, 3, -1, *tensor.shape[1:])
        return by_head.transpose(0, 1).reshape(tensor.shape)
    return tensor


def converted_tensors(arch: str, model: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """A model's tensors under GGUF's names, but for experts, which attention does not need."""
    config = model.config.get_text_config()
    names = gguf.get_tensor_name_map(_ARCHITECTURES[arch], config.num_hidden_layers)
    tensors = {}
    for name, tensor in (model.base_model if arch == "bert" else model).state_dict().items():
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            assert "att" not in name, f"{name} of {arch} has no name in GGUF"
            continue
        weights = _converted(arch, name, tensor.float(), config)
        tensors[new_name] = weights.contiguous().numpy()
    return tensors


def write_gguf(arch: str, model: PreTrainedModel, path: Path, **splitting: Any) -> None:
    """Write a model in float32. ``splitting`` as GGUFWriter takes it."""
    config = model.config.get_text_config()
    writer = gguf.GGUFWriter(path, arch, **splitting)
    writer.add_name("Tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if hasattr(config, "num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None) is not None and not arch.startswith("granite"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if hasattr(config, "attention_multiplier"):
        writer.add_attention_scale(config.attention_multiplier)
    writer.add_token_list([f"token {i}" for i in range(40)])
    writer.add_token_scores([0.0] * 40)
    for name, weights in converted_tensors(arch, model).items():
        writer.add_tensor(name, weights)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


#: One converted model for every architecture of a GGUF file, by the table's model_type.
GGUF_MODELS = {
    f"gguf-{arch}": _converted_model(arch, sources[0]) for arch, sources in CONVERTED.items()
}

#: Converted models of other types that llama.cpp takes for the same architecture.
GGUF_VARIANTS = {
    f"gguf-{arch}-from-{source}": _converted_model(arch, source)
    for arch, sources in CONVERTED.items()
    for source in sources[1:]
}
