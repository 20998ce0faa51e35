"""What a spectra file says of itself: whose spectra they are, and how they were made."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence

import torch

from qk_taxonomy import __version__
from qk_taxonomy.architectures import restrict
from qk_taxonomy.cache import FORMAT, FORMAT_VERSION
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.circuits.spectra import FORMULA
from qk_taxonomy.records import AttentionLayout, Circuit, Control, Convention, ModelRef
from qk_taxonomy.statistics.moments import STATISTICS


def spectra_metadata(
    ref: ModelRef, checkpoint: Checkpoint, layout: AttentionLayout
) -> dict[str, str]:
    g = layout.layers[0].geometry
    stacks = {
        name: {
            "n_layers": sum(plan.stack == name for plan in layout.layers),
            **dataclasses.asdict(geometry),
        }
        for name, geometry in layout.stacks.items()
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": checkpoint.model_id,
        "family": ref.family,
        "revision": checkpoint.revision,
        "architecture": layout.architecture,
        "n_layers": str(len(layout.layers)),
        "n_heads": str(g.n_heads),
        "n_kv_heads": str(g.n_kv_heads),
        "d_head": str(g.d_head),
        "d_model": str(g.d_model),
        "stacks": json.dumps(stacks),
        "weights_dtype": layout.weights_dtype,
        "source": checkpoint.source,
        "statistics": ",".join(STATISTICS),
        "tool_version": __version__,
        **_control_metadata(ref.control),
    }


def _control_metadata(control: Control | None) -> dict[str, str]:
    """What only the file of a control has: its label and, where chance has a part, the seed."""
    if control is None:
        return {}
    seed = {"seed": str(control.seed)} if control.kind == "random" else {}
    return {"control": control.label, **seed}


def provenance(
    layout: AttentionLayout,
    circuits: Sequence[Circuit],
    conventions: Sequence[Convention],
    recomputed: dict[str, int],
    unchanged: dict[str, int],
) -> str:
    """How a file's numbers were made, as JSON.

    ``recomputed``: heads that took the stable way, but for those of layers that were taken, so many
    of each revision as in ``unchanged``, from other files.
    """
    return json.dumps(
        {
            "circuits": list(circuits),
            "conventions": list(conventions),
            "formula": FORMULA,
            "model_type": layout.model_type,
            "notes": list(layout.notes),
            "recomputed_heads": recomputed,
            "skipped_layers": dict(layout.skipped),
            **({"unchanged_layers": unchanged} if unchanged else {}),
            "weights_bytes": sum(restrict(plan, circuits).n_bytes for plan in layout.layers),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
        sort_keys=True,
    )
