"""Tiny encoders, encoder-decoders and vision models."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_base import BERT, BLOCKS, GROUPED, SMALL, TinyModel, TinyStack, one, text
from transformers import PreTrainedModel

_MASKED = "AutoModelForMaskedLM"


@torch.no_grad()
def _first_position(model: PreTrainedModel) -> None:
    """Give every token the rotation of position 0: sines 0, cosines 1."""
    table = model.base_model.encoder.embed_positions.weight
    table[:, : table.shape[1] // 2] = 0.0
    table[:, table.shape[1] // 2 :] = 1.0


def _rename(folder: Path, pattern: str, new: str) -> Path:
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    return folder


def _as_new(model: PreTrainedModel, folder: Path) -> Path:
    """Save a gte model the way its repositories do, which bring their own code."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "new", "architectures": ["NewModel"], "pack_qkv": True}
    (folder / "config.json").write_text(json.dumps(config))
    return _rename(folder, "^gte", "new")


def _with_weights(model: PreTrainedModel, folder: Path) -> Path:
    """Call an ESM's gains what the published ones are called."""
    return _rename(folder, "LayerNorm.gamma$", "LayerNorm.weight")


def _by_head_size(attention: Any) -> float:
    return float(attention.attention_head_size) ** -0.5


_UNSAID_SCALE = {"scaling": _by_head_size}
_PRE_NORM = BERT.but(stack={"norm": "layer", "entrance": "attention"})
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_DEBERTA = replace(BERT, model_type="deberta", zero=("rel_embeddings.weight",)).but(
    **_RELATIVE, stack={"scaling": lambda attention: (3 * attention.attention_head_size) ** -0.5}
)
_MODERNBERT = one(
    "modernbert",
    {**BLOCKS, "num_hidden_layers": 3, "local_attention": 256},
    attention="attn",
    norm="layer",
    unnormed=(0,),
    scaling=lambda attention: attention.head_dim**-0.5,
    auto_class=_MASKED,
)
_XMOD = replace(BERT, model_type="xmod").but(languages=["en_XX"], default_language="en_XX")
_GTE = one("gte", BLOCKS, norm=None, auto_class=_MASKED)
_ESM = replace(_PRE_NORM, model_type="esm", zero=("inv_freq",)).but(
    position_embedding_type="rotary", mask_token_id=3, stack=_UNSAID_SCALE
)

_ENCODERS = (
    one(
        "albert",
        {**BLOCKS, "num_hidden_layers": 5, "num_hidden_groups": 2, "embedding_size": 16},
        layers="encoder.albert_layer_groups",
        attention="albert_layers.0.attention",
        writer="albert_layers.0.attention.dense",
        norm=None,
        rotary=False,
        auto_class=_MASKED,
    ),
    _DEBERTA,
    replace(_DEBERTA, model_type="deberta-v2"),
    replace(BERT, model_type="mpnet", zero=("relative_attention_bias.weight",)).but(
        stack={
            "attention": "attention.attn",
            "writer": "attention.attn.o",
            **_UNSAID_SCALE,
        }
    ),
    _MODERNBERT,
    replace(_MODERNBERT, model_type="modernbert-decoder", auto_class="AutoModelForCausalLM"),
    _ESM,
    *(replace(BERT, model_type=name) for name in ("data2vec-text", "ernie", "layoutlm")),
    replace(BERT, model_type="rembert").but(stack=_UNSAID_SCALE),
    replace(BERT, model_type="roc_bert"),
    replace(BERT, model_type="tapas").but(stack=_UNSAID_SCALE),
    replace(BERT, model_type="bert-generation", auto_class="AutoModelForCausalLM"),
    replace(BERT, model_type="big_bird").but(attention_type="original_full", stack=_UNSAID_SCALE),
    replace(BERT, model_type="dpr", auto_class="AutoModel").but(
        stack={"layers": "bert_model.encoder.layer"}
    ),
    replace(BERT, model_type="markuplm", auto_class="AutoModelForTokenClassification"),
    replace(BERT, model_type="visual_bert", auto_class="AutoModelForPreTraining").but(
        stack=_UNSAID_SCALE
    ),
    *(
        one(
            name,
            {**SMALL, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128},
            layers="attentions",
            attention="",
            norm=None,
            rotary=False,
            auto_class=_MASKED,
            scaling=lambda attention: (attention.dim // attention.n_heads) ** -0.5,
        )
        for name in ("flaubert", "xlm")
    ),
    replace(BERT, model_type="splinter", auto_class="AutoModelForQuestionAnswering"),
    _XMOD,
    replace(BERT, model_type="roformer", still=_first_position).but(stack=_UNSAID_SCALE),
    *(replace(_PRE_NORM, model_type=name) for name in ("roberta-prelayernorm", "xlm-roberta-xl")),
    replace(_PRE_NORM, model_type="megatron-bert").but(stack=_UNSAID_SCALE),
    one("nomic_bert", BLOCKS, norm=None, auto_class=_MASKED),
    _GTE,
    replace(_GTE, model_type="new", made_as="gte", rewrite=_as_new),
    one("eurobert", {**BLOCKS, "num_key_value_heads": 2}, auto_class=_MASKED),
)


def _translation(batch: int, n_tokens: int) -> dict[str, Any]:
    """Token ids for an encoder and for a decoder."""
    inputs = text(batch, n_tokens)
    return {
        **inputs,
        "decoder_input_ids": inputs["input_ids"],
        "decoder_attention_mask": inputs["attention_mask"],
    }


def _speech(batch: int, n_tokens: int) -> dict[str, Any]:
    """Forty frames of eight mel bins for an encoder, token ids for a decoder."""
    return {
        "input_features": torch.zeros(batch, 8, 40, dtype=torch.float64),
        "decoder_input_ids": text(batch, n_tokens)["input_ids"],
    }


def _waves(batch: int, n_tokens: int) -> dict[str, Any]:
    """A thousand samples for an encoder, token ids for a decoder."""
    speech = _speech(batch, n_tokens)
    del speech["input_features"]
    return {"input_values": torch.zeros(batch, 1000, dtype=torch.float64), **speech}


def _turned_speech(batch: int, n_tokens: int) -> dict[str, Any]:
    """Speech with frames before mel bins."""
    inputs = _speech(batch, n_tokens)
    return {**inputs, "input_features": inputs["input_features"].mT}


_T5_STACK = TinyStack(
    name="encoder",
    layers="encoder.block",
    attention="layer.0.SelfAttention",
    scaling=lambda attention: 1.0,
)
_T5_STACKS = (
    _T5_STACK,
    replace(_T5_STACK, name="decoder", layers="decoder.block"),
    replace(
        _T5_STACK,
        name="cross",
        layers="decoder.block",
        attention="layer.1.EncDecAttention",
        entrance="layer.1",
        cross=True,
        memory="encoder.final_layer_norm",
        memory_norm="rms",
    ),
)
_T5 = TinyModel(
    "t5",
    {
        **SMALL,
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 24,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    _T5_STACKS,
    inputs=_translation,
    auto_class="AutoModelForSeq2SeqLM",
    zero=("relative_attention_bias.weight",),
)

_BART_STACK = TinyStack(name="encoder", layers="encoder.layers", norm=None)
_BART_STACKS = (
    _BART_STACK,
    replace(_BART_STACK, name="decoder", layers="decoder.layers", n_heads=2),
    replace(
        _BART_STACK,
        name="cross",
        layers="decoder.layers",
        attention="encoder_attn",
        entrance="encoder_attn",
        n_heads=2,
        cross=True,
    ),
)
_MBART_STACKS = (
    *(replace(stack, norm="layer") for stack in _BART_STACKS[:2]),
    replace(
        _BART_STACKS[2],
        norm="layer",
        entrance="encoder_attn_layer_norm",
        memory="encoder.layer_norm",
        memory_norm="layer",
    ),
)
_BART = TinyModel(
    "bart",
    {
        **SMALL,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 128,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
    },
    _BART_STACKS,
    inputs=_translation,
    auto_class="AutoModelForSeq2SeqLM",
)
_MBART = replace(_BART, model_type="mbart", stacks=_MBART_STACKS)

_GEMMA = {
    **GROUPED,
    "head_dim": 6,
    "query_pre_attn_scalar": 23,
    "attn_logit_softcapping": None,  # a capped score is not bilinear
}

_SEQUENCES = (
    *(replace(_T5, model_type=name) for name in ("mt5", "t5", "umt5")),
    replace(_T5, model_type="switch_transformers").but(
        num_experts=2, num_sparse_encoder_layers=0, num_sparse_decoder_layers=0
    ),
    *(
        replace(_BART, model_type=name)
        for name in ("bart", "blenderbot-small", "marian", "mvp", "plbart")
    ),
    *(replace(_MBART, model_type=name) for name in ("blenderbot", "m2m_100", "mbart", "pegasus")),
    replace(
        _MBART, model_type="whisper", inputs=_speech, auto_class="AutoModelForSpeechSeq2Seq"
    ).but(num_mel_bins=8, max_source_positions=20),
    TinyModel(
        "t5gemma",
        {
            **SMALL,
            "encoder": _GEMMA,
            "decoder": {**_GEMMA, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 12},
        },
        (
            TinyStack(name="encoder", layers="encoder.layers"),
            TinyStack(name="decoder", layers="decoder.layers", n_heads=2),
            TinyStack(
                name="cross",
                layers="decoder.layers",
                attention="cross_attn",
                entrance="pre_cross_attn_layernorm",
                n_heads=2,
                cross=True,
                memory="encoder.norm",
                memory_norm="rms",
            ),
        ),
        inputs=_translation,
        auto_class="AutoModelForSeq2SeqLM",
        zero=("inv_freq",),
    ),
    replace(
        _MBART,
        model_type="nllb-moe",
        stacks=(
            *_MBART_STACKS[:2],
            replace(
                _MBART_STACKS[2],
                attention="cross_attention",
                entrance="cross_attention_layer_norm",
            ),
        ),
    ).but(num_experts=2),
    replace(  # transformers cannot run one whose encoder has another number of heads
        _MBART,
        model_type="moonshine",
        stacks=(
            _MBART_STACKS[0],
            replace(_MBART_STACKS[1], n_heads=4),
            replace(_MBART_STACKS[2], n_heads=4, entrance="post_attention_layernorm"),
        ),
        inputs=_waves,
        auto_class="AutoModelForSpeechSeq2Seq",
        zero=("inv_freq",),
        config={
            **SMALL,
            "hidden_size": 32,
            "intermediate_size": 24,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 3,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    replace(
        _MBART,
        model_type="speech_to_text",
        inputs=_turned_speech,
        auto_class="AutoModelForSpeechSeq2Seq",
    ).but(input_feat_per_channel=8, max_source_positions=40),
)


def _image(batch: int, n_tokens: int) -> dict[str, Any]:
    """Blank images of 16 × 16 pixels; the layers looked at are fed other tokens than theirs."""
    return {"pixel_values": torch.zeros(batch, 3, 16, 16, dtype=torch.float64)}


def _image_of_as_many(batch: int, n_tokens: int) -> dict[str, Any]:
    """Blank images of one patch of 2 × 2 pixels a token, less one."""
    return {"pixel_values": torch.zeros(batch, 3, 10, 26, dtype=torch.float64)}


def _video(batch: int, n_tokens: int) -> dict[str, Any]:
    return {"pixel_values": torch.zeros(batch, 2, 3, 16, 16, dtype=torch.float64)}


def _sound(batch: int, n_tokens: int) -> dict[str, Any]:
    return {"input_values": torch.zeros(batch, 64, dtype=torch.float64)}


def _spectrogram(batch: int, n_tokens: int) -> dict[str, Any]:
    return {"input_values": torch.zeros(batch, 16, 16, dtype=torch.float64)}


def _captioned(batch: int, n_tokens: int) -> dict[str, Any]:
    return {**text(batch, n_tokens), **_image(batch, n_tokens)}


def _patches(batch: int, n_tokens: int) -> dict[str, Any]:
    """Images as patches of 8 × 8 pixels."""
    return {
        "pixel_values": torch.zeros(batch, n_tokens, 3 * 8 * 8, dtype=torch.float64),
        "pixel_attention_mask": torch.ones(batch, n_tokens, dtype=torch.long),
        "spatial_shapes": torch.tensor([[2, n_tokens // 2]] * batch),
    }


def _captioned_patches(batch: int, n_tokens: int) -> dict[str, Any]:
    return {**text(batch, n_tokens), **_patches(batch, n_tokens)}


_IMAGE = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_CLASSIFIER = "AutoModelForImageClassification"
_VIT = TinyModel(
    "vit",
    {**_IMAGE, "qkv_bias": True},
    (TinyStack(attention="attention", norm="layer"),),
    inputs=_image,
    auto_class=_CLASSIFIER,
)
_IN_ENCODER = {"layers": "encoder.layer"}
_BERT_LIKE = {
    **_IN_ENCODER,
    "attention": "attention.attention",
    "writer": "attention.output.dense",
}
_BIASED_BY_POSITION = {
    "inputs": _image_of_as_many,
    "zero": ("relative_position_bias_table",),
}
_BEIT = replace(_VIT, model_type="beit", **_BIASED_BY_POSITION).but(
    image_size=(10, 26), patch_size=2, use_relative_position_bias=True
)

_TOWER = TinyStack(layers="encoder.layers", norm="layer", scaling=lambda attention: attention.scale)
_TEXT_TOWER = replace(_TOWER, name="text", layers="text_model.encoder.layers")
_IMAGE_TOWER = replace(
    _TOWER, name="vision", layers="vision_model.encoder.layers", n_heads=2, d_input=24
)
_VISION = {**_IMAGE, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
_AIMV2 = {"attention": "attention", "norm": "rms"}
_DOZEN = {"num_attention_heads": 12, "num_hidden_layers": 12}
_CLIP = TinyModel(
    "clip",
    {"text_config": BLOCKS, "vision_config": _VISION, "projection_dim": 8},
    (_TEXT_TOWER, _IMAGE_TOWER),
    inputs=_captioned,
    auto_class="AutoModel",
)
_IMAGE_ALONE = replace(
    _VIT, model_type="clip_vision_model", stacks=(_TOWER,), auto_class="AutoModel"
)

_WAV2VEC2 = TinyModel(
    "wav2vec2",
    {
        **BLOCKS,
        "conv_dim": [8],
        "conv_kernel": [4],
        "conv_stride": [2],
        "num_feat_extract_layers": 1,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "do_stable_layer_norm": False,
    },
    (TinyStack(layers="encoder.layers", attention="attention", norm=None),),
    inputs=_sound,
    auto_class="AutoModelForCTC",
)

_IMAGES_AND_SOUNDS = (
    *(replace(_VIT, model_type=name) for name in ("ijepa", "vit", "vit_msn")),
    replace(_VIT, model_type="deit", auto_class="AutoModelForMaskedImageModeling"),
    replace(_VIT, model_type="vit_mae", auto_class="AutoModelForPreTraining").but(
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    ),
    *(
        replace(_VIT, model_type=name).but(stack=_IN_ENCODER)
        for name in ("dinov2", "dinov2_with_registers")
    ),
    replace(_VIT, model_type="dinov3_vit", zero=("inv_freq",), auto_class="AutoModel").but(
        stack={"layers": "layer"}
    ),
    _BEIT,
    replace(_BEIT, model_type="data2vec-vision").but(stack={**_BERT_LIKE, **_UNSAID_SCALE}),
    replace(_VIT, model_type="yolos", auto_class="AutoModelForObjectDetection").but(
        stack=_BERT_LIKE, image_size=[16, 16]
    ),
    replace(
        _VIT, model_type="videomae", inputs=_video, auto_class="AutoModelForVideoClassification"
    ).but(stack=_BERT_LIKE, num_frames=2),
    replace(
        _VIT, model_type="vivit", inputs=_video, auto_class="AutoModelForVideoClassification"
    ).but(num_frames=2, tubelet_size=[2, 8, 8]),
    replace(
        _VIT,
        model_type="audio-spectrogram-transformer",
        inputs=_spectrogram,
        auto_class="AutoModelForAudioClassification",
    ).but(max_length=16, num_mel_bins=16, frequency_stride=8, time_stride=8),
    replace(_VIT, model_type="vilt", inputs=_captioned, auto_class="AutoModel").but(
        **SMALL, max_position_embeddings=128, stack={**_BERT_LIKE, **_UNSAID_SCALE}
    ),
    replace(_VIT, model_type="dpt", auto_class="AutoModelForDepthEstimation").but(
        stack=_BERT_LIKE, backbone_out_indices=[0, 0, 1, 1], is_hybrid=False
    ),
    _CLIP,
    *(replace(_CLIP, model_type=name) for name in ("clipseg", "metaclip_2", "siglip")),
    *(
        replace(_CLIP, model_type=name, auto_class="AutoModelForZeroShotObjectDetection")
        for name in ("owlv2", "owlvit")
    ),
    replace(_CLIP, model_type="siglip2", inputs=_captioned_patches),
    replace(
        _CLIP,
        model_type="chinese_clip",
        stacks=(
            replace(BERT.stacks[0], name="text", layers="text_model.encoder.layer"),
            _IMAGE_TOWER,
        ),
    ),
    replace(_CLIP, model_type="aimv2").but(stack=_AIMV2),
    replace(_IMAGE_ALONE, model_type="aimv2_vision_model").but(stack=_AIMV2),
    _IMAGE_ALONE,
    replace(_IMAGE_ALONE, model_type="siglip_vision_model"),
    replace(_IMAGE_ALONE, model_type="siglip2_vision_model", inputs=_patches),
    one(
        "clip_text_model",
        BLOCKS,
        rotary=False,
        layers="encoder.layers",
        norm="layer",
        scaling=lambda attention: attention.scale,
        auto_class="AutoModel",
    ),
    *(
        replace(_WAV2VEC2, model_type=name)
        for name in ("hubert", "unispeech", "unispeech-sat", "wav2vec2")
    ),
    replace(_WAV2VEC2, model_type="data2vec-audio").but(do_stable_layer_norm=True),
)

MODELS: tuple[TinyModel, ...] = (*_ENCODERS, *_SEQUENCES, *_IMAGES_AND_SOUNDS)

VARIANTS: dict[str, TinyModel] = {
    "deberta-absolute": _DEBERTA.but(relative_attention=False),
    "esm-as-published": replace(_ESM, rewrite=_with_weights),
    "xmod-pre-norm": _XMOD.but(stack={"norm": "layer", "entrance": "attention"}, pre_norm=True),
    "wav2vec2-pre-norm": _WAV2VEC2.but(stack={"norm": "layer"}, do_stable_layer_norm=True),
    "siglip-by-default": replace(
        _CLIP.but(
            text_config={**BLOCKS, "hidden_size": 24, **_DOZEN},
            vision_config={**_VISION, **_DOZEN},
            stack={"n_heads": 12, "d_input": 24},
        ),
        model_type="siglip",
        unsaid=tuple(_DOZEN),
    ),
    "t5-encoder-alone": replace(
        _T5, stacks=_T5_STACKS[:1], inputs=text, auto_class="AutoModelForTextEncoding"
    ),
}
