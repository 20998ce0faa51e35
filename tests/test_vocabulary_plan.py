"""Plans of vocabularies against what transformers models do with their tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LLAMA_CONFIG, MakeFolder, llama_tensors, package_folder
from gguf_models import GGUF_MODELS
from test_initialisers import ERRORS, told_nothing, with_settings
from tiny_base import TinyModel, TinyStack
from tiny_models import BASE_MODELS, TINY_MODELS, VARIANTS
from torch import nn
from transformers import PreTrainedModel
from twins import RANDOM

from qk_taxonomy.architectures import (
    architecture_table,
    attention_layout,
    row_blocks,
    token_blocks,
    vocabulary_plan,
)
from qk_taxonomy.architectures.vocabulary_table import vocabulary_table
from qk_taxonomy.checkpoints import open_checkpoint
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.controls import surveyed
from qk_taxonomy.errors import CatalogError, LayoutError
from qk_taxonomy.records import AttentionLayout, Norm, TensorInfo, VocabularyPlan
from qk_taxonomy.resources import builtin_catalog

TABLE = architecture_table()
MODELS = TINY_MODELS | GGUF_MODELS


def plan_of(
    checkpoint: Checkpoint, architecture: str | None = None, **options: Any
) -> VocabularyPlan:
    layout = attention_layout(checkpoint.config, checkpoint.tensors, architecture)
    return vocabulary_plan(checkpoint.config, checkpoint.tensors, layout, **options)
