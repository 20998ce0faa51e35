"""What samples were captured with, and the memory that it took."""

from __future__ import annotations

import platform
import sys

import torch

from qk_taxonomy import __version__


def versions() -> dict[str, str]:
    """Releases by name of what a model's activations, and measures of them, may depend on."""
    import transformers

    return {
        "qk-taxonomy": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has had so far, and on a GPU that its tensors have had."""
    parts = []
    if sys.platform != "win32":  # which has no such number
        import resource

        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        n_bytes = found if sys.platform == "darwin" else found << 10
        parts.append(f"{n_bytes / 1e9:.2f} GB of the process")
    if device.type == "cuda":
        parts.append(
            f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of tensors on the GPU"
        )
    return ", ".join(parts) or "not known"
