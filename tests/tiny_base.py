"""What a tiny random model of an architecture is: made by transformers, and where its parts are.

Nothing here comes from qk_taxonomy: a test that compares the two must know a model's modules
independently of the package's own table.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

SEED = 20240229


def _own_scaling(attention: Any) -> float:
    """The scale as a module keeps it: as a factor, or (CodeGen, older GPT-J) as a divisor."""
    if hasattr(attention, "scale_attn"):
        return 1.0 / float(attention.scale_attn)
    return float(attention.scaling)


@dataclass(frozen=True)
class TinyStack:
    """One stack of layers, and the names of the modules that its attention runs through.

    ``layers`` is relative to the base model, the other names to a layer; a layer without a module
    ``attention``, or where that lacks a module ``has``, has none. ``writer`` is the module whose
    output joins the residual stream, where that is not the attention module itself; ``entrance``
    the one that the residual stream enters, where that is not the layer; ``norm`` what happens to
    it before the attention, except in the layers ``unnormed``. ``memory`` is the module of the base
    model through which what
    cross-attention looks at passes, and ``memory_norm`` what it does. ``silent``: parts of modules'
    outputs that tell positions only.
    """

    name: str = ""
    layers: str = "layers"
    attention: str = "self_attn"
    has: str = ""
    writer: str | None = None
    entrance: str = ""
    norm: Literal["rms", "layer"] | None = "rms"
    unnormed: tuple[int, ...] = ()
    cross: bool = False
    memory: str | None = None
    memory_norm: Literal["rms", "layer"] | None = None
    qk_norms: tuple[str, ...] = ()
    silent: Mapping[str, slice] = field(default_factory=dict)
    gated: bool = False
    scaling: Callable[[Any], float] = _own_scaling
    n_heads: int = 4
    d_input: int = 32

    def layers_of(self, model: transformers.PreTrainedModel) -> nn.ModuleList:
        found = model.base_model.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found

    def numbers(self, model: transformers.PreTrainedModel) -> list[int]:
        """Layers with attention of their own: not shared with an earlier one."""
        seen: dict[int, int] = {}
        for number, layer in enumerate(self.layers_of(model)):
            modules = dict(layer.named_modules())
            if f"{self.attention}.{self.has}".rstrip(".") in modules:
                first = next(modules[self.attention].parameters())
                seen.setdefault(id(first), number)
        return list(seen.values())


def text(batch: int, n_tokens: int) -> dict[str, Any]:
    """Token ids of a text model without rotary positions."""
    ids = torch.zeros(batch, n_tokens, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rotary_text(batch: int, n_tokens: int) -> dict[str, Any]:
    """Token ids, all at position 0."""
    ids = torch.zeros(batch, n_tokens, dtype=torch.long)
    return {**text(batch, n_tokens), "position_ids": ids}


@dataclass(frozen=True)
class TinyModel:
    """A model type's config, small, its stacks, and how to run it.

    ``zero`` names parameters and buffers, by the end of their names, that tell positions and
    nothing else. ``still`` does what else it takes for positions to tell nothing. ``unsaid`` are
    keys that the saved config.json leaves out, as some published ones do. ``made_as`` is the model
    type that transformers builds, where it does not know this one. ``rewrite`` saves the model in
    ``folder`` anew as another program would have, and gives the path to survey.
    """

    model_type: str
    config: Mapping[str, Any]
    stacks: tuple[TinyStack, ...] = (TinyStack(),)
    inputs: Callable[[int, int], dict[str, Any]] = rotary_text
    auto_class: str = "AutoModelForCausalLM"
    zero: tuple[str, ...] = ()
    still: Callable[[transformers.PreTrainedModel], None] | None = None
    unsaid: tuple[str, ...] = ()
    said_architecture: str | None = None
    made_as: str | None = None
    rewrite: Callable[[transformers.PreTrainedModel, Path], Path] | None = None

    def but(
        self,
        *,
        auto_class: str | None = None,
        stack: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> "TinyModel":
        """The same model with other values in its config or stacks, or of another auto class."""
        return replace(
            self,
            config={**self.config, **config},
            stacks=tuple(replace(s, **(stack or {})) for s in self.stacks),
            auto_class=auto_class or self.auto_class,
        )

    def build(self, folder: Path) -> tuple[transformers.PreTrainedModel, Path]:
        """The model with random parameters, run in float64, and where it is saved in float32."""
        model = self._model(self.transformers_config())
        randomise(model)
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name.endswith(self.zero):
                    tensor.zero_()
            if self.still is not None:
                self.still(model)
        saved = self._save(model, folder)
        return model.eval().double(), saved

    def untrained(self, config: transformers.PreTrainedConfig, folder: Path) -> Path:
        """Where the model is saved as transformers' own initialiser made it from a config."""
        return self._save(self._model(config), folder)

    def transformers_config(self) -> transformers.PreTrainedConfig:
        # A copy, since some configs change what they are given.
        kind = self.made_as or self.model_type
        return transformers.AutoConfig.for_model(kind, **copy.deepcopy(dict(self.config)))

    def _model(self, config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
        auto_class = getattr(transformers, self.auto_class)
        model: transformers.PreTrainedModel = auto_class.from_config(
            config, attn_implementation="eager"
        )
        return model

    def _save(self, model: transformers.PreTrainedModel, folder: Path) -> Path:
        model.save_pretrained(folder)
        self._leave_out(folder / "config.json")
        return folder if self.rewrite is None else self.rewrite(model, folder)

    def _leave_out(self, path: Path) -> None:
        config = json.loads(path.read_text())
        for table in (config, config.get("text_config", {}), config.get("vision_config", {})):
            for key in self.unsaid:
                table.pop(key, None)
        path.write_text(json.dumps(config))


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move every parameter away from its initial value, so that none can be left out unseen.

    Vectors are added to, since a gain starts at 1 or, where the model adds the 1 itself, at 0.
    """
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(noise * 0.5)


SMALL = {
    "vocab_size": 40,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOCKS = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {
    **BLOCKS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-20,  # the oracle undoes query and key norms without knowing it
}
GPT2_BLOCKS = {**SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
QK_NORMS = ("q_norm", "k_norm")


def one(
    model_type: str,
    config: Mapping[str, Any],
    *,
    rotary: bool = True,
    auto_class: str = "AutoModelForCausalLM",
    unsaid: tuple[str, ...] = (),
    zero: tuple[str, ...] = (),
    **stack: Any,
) -> TinyModel:
    """A text model of one stack."""
    return TinyModel(
        model_type,
        config,
        (TinyStack(**stack),),
        inputs=rotary_text if rotary else text,
        auto_class=auto_class,
        unsaid=unsaid,
        zero=zero,
    )


BERT = one(
    "bert",
    BLOCKS,
    layers="encoder.layer",
    attention="attention.self",
    writer="attention.output.dense",
    norm=None,
    rotary=False,
    auto_class="AutoModelForMaskedLM",
)
