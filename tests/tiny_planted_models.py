"""Tiny models with a tokenizer, some with weights made by hand, and texts for them.

The vocabulary is <s>, <unk> and numbered words; <s> comes before every text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tiny_base import randomise

N_WORDS = 198
VOCABULARY = {"<s>": 0, "<unk>": 1, **{f"w{i}": i + 2 for i in range(N_WORDS)}}

Array = NDArray[np.float64]


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """A model's folder, with the tokenizer of numbered words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def words(n: int, seed: int = 0) -> str:
    """A text of so many words at random."""
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(N_WORDS, size=n))


def random_llama(folder: Path, seed: int = 0) -> Path:
    """Two layers of 4 heads on 2 key heads, 128 positions."""
    config = _llama_config(num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config)
    randomise(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1 + 0.1 * seed)
    return save(model, folder)


def _llama_config(**changes: object) -> transformers.LlamaConfig:
    sizes = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
        "max_position_embeddings": 128,
    }  # fmt: skip
    return transformers.LlamaConfig(**sizes | changes)


# Coordinates of what a token is: two numbers of its own, each with what makes up its square to 1,
# and the direction of its key.
_FIRST, _SECOND, _KEY = slice(0, 2), slice(2, 4), slice(4, 6)


def _token_features(rng: np.random.Generator) -> Array:
    """(vocabulary, 6), each of one length, so that no norm of a layer changes their proportions.

    The two numbers are a grid's, so that over the vocabulary neither tells anything of the other.
    """
    second, first = np.divmod(np.arange(len(VOCABULARY)), 20)
    first, second = first / 19, second / second.max()
    angle = rng.uniform(size=len(VOCABULARY))
    pairs = [_circle(0.1 + 0.9 * first), _circle(0.1 + 0.9 * second)]
    turned = np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], axis=1)
    return np.concatenate([*pairs, turned], axis=1)


def _circle(values: Array) -> Array:
    return np.stack([values, np.sqrt(np.clip(1 - values**2, 0, None))], axis=1)


def planted_llama(folder: Path, norm: Literal["sharpens", "idles"]) -> Path:
    """A Llama whose queries' norms are a number of the token's, in every head.

    ``sharpens``: queries have one direction, so that the norm is the inverse temperature.
    ``idles``: the norm is of a dimension in which keys have nothing; another number of the token's
    is the inverse temperature. Dimensions 3 and 7 of a head make a pair that RoPE does not turn to
    speak of, 2 and 6 another pair.
    """
    rng = np.random.default_rng(1)
    config = _llama_config(rope_parameters={"rope_type": "default", "rope_theta": 1e12})
    model = transformers.LlamaForCausalLM(config)
    randomise(model)
    features = _token_features(rng)
    embedding = np.zeros((len(VOCABULARY), config.hidden_size))
    embedding[:, : features.shape[1]] = features
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(embedding))
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1.0)
            # What layers add is too little to change what the next one reads.
            layer.self_attn.o_proj.weight.mul_(1e-4)
            layer.mlp.down_proj.weight.mul_(1e-4)
            q = np.zeros((4, 8, config.hidden_size))
            k = np.zeros_like(q)
            for head in range(4):
                q[head, 3, _FIRST.start if norm == "sharpens" else _SECOND.start] = 1.5 + 0.2 * head
                if norm == "idles":
                    q[head, 2, _FIRST.start] = 20.0
                k[head, [3, 7], _KEY] = 1.0 + 0.1 * head
            layer.self_attn.q_proj.weight.copy_(torch.from_numpy(q.reshape(32, -1)))
            layer.self_attn.k_proj.weight.copy_(torch.from_numpy(k.reshape(32, -1)))
    return save(model, folder)


def planted_gpt2(folder: Path) -> Path:
    """A GPT-2 whose queries' norms grow with log position, in a dimension in which keys have
    nothing; so does entropy, as there are more keys. Both have noise of the token's, not the same.
    """
    rng = np.random.default_rng(2)
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=128, n_embd=32, n_layer=2, n_head=4
    )
    model = transformers.GPT2LMHeadModel(config)
    randomise(model)
    token = np.zeros((len(VOCABULARY), 32))
    features = _token_features(rng)
    token[:, :6], token[:, 16:22] = features, -features  # of mean 0, as LayerNorm makes it
    place = np.zeros((config.n_positions, 32))
    log = np.log(np.arange(1, config.n_positions + 1)) / np.log(config.n_positions)
    place[:, 6:8], place[:, 22:24] = _circle(log), -_circle(log)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.from_numpy(token))
        model.transformer.wpe.weight.copy_(torch.from_numpy(place))
        for layer in model.transformer.h:
            layer.ln_1.weight.fill_(1.0)
            layer.ln_1.bias.zero_()
            layer.attn.c_proj.weight.mul_(1e-4)
            layer.attn.c_proj.bias.zero_()
            layer.mlp.c_proj.weight.mul_(1e-4)
            layer.mlp.c_proj.bias.zero_()
            q = np.zeros((32, 4, 8))
            k = np.zeros_like(q)
            for head in range(4):
                q[6, head, 0] = 20.0  # position, of which keys have nothing
                q[_FIRST.start, head, 1] = 6.0  # noise of norms
                q[_SECOND.start, head, 2] = 1.0 + 0.2 * head  # noise of entropies
                k[_KEY.start, head, 2] = 1.0
            both = np.concatenate([q.reshape(32, 32), k.reshape(32, 32)], axis=1)
            layer.attn.c_attn.weight[:, :64] = torch.from_numpy(both)
            layer.attn.c_attn.bias[:64] = 0.0
    return save(model, folder)
