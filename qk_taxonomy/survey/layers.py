"""One part of a survey's work: read the tensors of a layer, compute its heads' spectra.

It runs in a thread or in a process of a cluster; what it is given and what it returns are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.spectra import circuit_spectra
from qk_taxonomy.errors import QKTaxonomyError, SpectrumError
from qk_taxonomy.records import Circuit, Convention, LayerPart, LayerPlan, LayerSpectra
from qk_taxonomy.statistics.moments import describe


def resolve_device(device: str | None) -> torch.device:
    """The device to compute on: "cpu", "cuda", or with "auto" or None CUDA where there is any."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise QKTaxonomyError(
            "CUDA was asked for and torch finds none on this machine. Use --device cpu, or install "
            "a CUDA build of torch."
        )
    return torch.device(device)


def survey_part(
    checkpoint: Checkpoint,
    part: LayerPart,
    conventions: Sequence[Convention],
    device: str | None,
) -> list[LayerSpectra]:
    """Read a part's tensors and compute their spectra, one record a circuit and convention.

    Raises CheckpointError, and SpectrumError naming the tensors that are not finite.
    """
    target, plan = resolve_device(device), part.plan
    read = checkpoint.read_all(plan.tensors)
    tensors = {role: tensor.to(target) for role, tensor in read.items()}
    results = []
    for circuit in part.circuits:
        for convention in conventions:
            left, right, scale = circuit_factors(plan, tensors, circuit, convention)
            try:
                spectra = circuit_spectra(left, right, scale=scale)
            except SpectrumError as err:
                raise _not_finite(plan, tensors, err.role) from err
            sigma = spectra.singular_values.cpu().numpy()
            if not sigma.max() ** 2 < np.finfo(np.float32).max:
                raise SpectrumError(
                    f"{_place(plan)}: the {circuit} circuit has σ up to {sigma.max():.3g}, "
                    "whose square no spectra file holds. The weights may be damaged: compare the "
                    "file with the original.",
                    "left",
                )
            assert spectra.eigenvalues is not None
            results.append(
                LayerSpectra(
                    layer=plan.layer,
                    circuit=circuit,
                    convention=convention,
                    singular_values=sigma,
                    eigenvalues=spectra.eigenvalues.cpu().numpy(),
                    statistics=describe(sigma**2),
                    n_recomputed=spectra.n_recomputed,
                    stack=plan.stack,
                )
            )
    return results


def joined(parts: Iterable[Sequence[LayerSpectra]]) -> list[LayerSpectra]:
    """The spectra of a layer from those of its parts, which are in the order of their heads."""
    by_kind: dict[tuple[Circuit, Convention], list[LayerSpectra]] = {}
    for part in parts:
        for spectra in part:
            by_kind.setdefault((spectra.circuit, spectra.convention), []).append(spectra)
    return [
        found[0]
        if len(found) == 1
        else replace(
            found[0],
            singular_values=np.concatenate([part.singular_values for part in found]),
            eigenvalues=np.concatenate([part.eigenvalues for part in found]),
            statistics=np.concatenate([part.statistics for part in found]),
            n_recomputed=sum(part.n_recomputed for part in found),
        )
        for found in by_kind.values()
    ]


def _place(plan: LayerPlan) -> str:
    return f"{plan.stack} layer {plan.layer}".strip()


def _not_finite(plan: LayerPlan, tensors: Mapping[str, torch.Tensor], side: str) -> SpectrumError:
    """The error that names the tensors of a layer that are not finite."""
    broken = [
        plan.tensors[role].name
        for role, tensor in tensors.items()
        if not torch.isfinite(tensor).all()
    ]
    what = f"{', '.join(broken)} holds" if broken else "products of the weights overflow to"
    return SpectrumError(
        f"{_place(plan)}: {what} values that are not finite (NaN or infinity), so its heads "
        "have no spectrum. The file may be damaged: compare it with the original.",
        side,
    )
