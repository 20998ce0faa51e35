"""Architectures: from a config and tensor names to which tensors make which head."""

from qk_taxonomy.architectures.layout import attention_layout
from qk_taxonomy.architectures.parts import parts, restrict, row_blocks, rows_of
from qk_taxonomy.architectures.table import architecture_table, named_architecture
from qk_taxonomy.architectures.vocabulary import token_blocks, vocabulary_plan

__all__ = [
    "architecture_table",
    "attention_layout",
    "named_architecture",
    "parts",
    "restrict",
    "row_blocks",
    "rows_of",
    "token_blocks",
    "vocabulary_plan",
]
