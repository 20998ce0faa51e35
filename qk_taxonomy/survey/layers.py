"""One part of a survey's work: read the tensors of a layer, compute its heads' spectra.

It runs in a thread or in a process of a cluster; what it is given and what it returns are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.circuits.conventions import circuit_factors
from qk_taxonomy.circuits.factors import Factor, FactorPair
from qk_taxonomy.circuits.gram import with_mean
from qk_taxonomy.circuits.spectra import CircuitSpectra, layer_spectra, streamed_spectra
from qk_taxonomy.errors import QKTaxonomyError, SpectrumError
from qk_taxonomy.records import (
    Circuit,
    Convention,
    LayerPart,
    LayerPlan,
    LayerSpectra,
    TensorInfo,
)
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
    target = resolve_device(device)
    read = checkpoint.read_all(part.plan.tensors)
    tensors = {role: tensor.to(target) for role, tensor in read.items()}
    results = []
    for circuit in part.circuits:
        try:
            if circuit == "ov" and part.o_blocks:
                found = _streamed(checkpoint, part, tensors, conventions, target)
            else:
                found = layer_spectra(circuit_factors(part.plan, tensors, circuit, conventions))
        except SpectrumError as err:
            raise _not_finite(part, tensors, err.role) from err
        sigma = np.stack([spectra.singular_values.numpy() for spectra in found])
        if not sigma.max() ** 2 < np.finfo(np.float32).max:
            raise SpectrumError(
                f"{_place(part.plan)}: the {circuit} circuit has σ up to {sigma.max():.3g}, "
                "whose square no spectra file holds. The weights may be damaged: compare the "
                "file with the original.",
                "left",
            )
        # At once: many small steps, during which no other thread runs Python.
        statistics = describe(sigma**2)
        for i, (convention, spectra) in enumerate(zip(conventions, found, strict=True)):
            assert spectra.eigenvalues is not None
            results.append(
                LayerSpectra(
                    layer=part.plan.layer,
                    circuit=circuit,
                    convention=convention,
                    singular_values=sigma[i],
                    eigenvalues=spectra.eigenvalues.numpy(),
                    statistics=statistics[i],
                    n_recomputed=spectra.n_recomputed,
                    stack=part.plan.stack,
                )
            )
    return results


def _streamed(
    checkpoint: Checkpoint,
    part: LayerPart,
    tensors: Mapping[str, torch.Tensor],
    conventions: Sequence[Convention],
    device: torch.device,
) -> list[CircuitSpectra]:
    """OV spectra under each convention, with W_O read block by block of its rows."""

    def pairs_of(block: TensorInfo) -> list[FactorPair]:
        with_o = {**tensors, "o": checkpoint.read(block).to(device)}
        return circuit_factors(part.plan, with_o, "ov", conventions)

    first = pairs_of(part.o_blocks[0])
    rights = [with_mean(pair.right) for pair in first]

    def blocks() -> Iterator[list[FactorPair]]:
        start = 0
        for number, block in enumerate(part.o_blocks):
            pairs = pairs_of(block) if number else first
            columns = slice(start, start + pairs[0].left.d_model)
            start = columns.stop
            yield [
                FactorPair(pair.left, right.cut(columns), pair.scale)
                for pair, right in zip(pairs, rights, strict=True)
            ]

    def whole(heads: Sequence[int]) -> list[FactorPair]:
        chosen = list(heads)
        blocks = [pairs_of(block)[0].left.weights[chosen] for block in part.o_blocks]
        left = Factor(torch.cat(blocks, dim=-1))
        group = part.plan.geometry.group_size
        of_keys = [head // group for head in chosen]
        return [FactorPair(left, right.select(of_keys)) for right in rights]

    return streamed_spectra(blocks(), whole)


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


def _not_finite(part: LayerPart, tensors: Mapping[str, torch.Tensor], side: str) -> SpectrumError:
    """The error that names the tensors of a layer that are not finite."""
    broken = [
        part.plan.tensors[role].name
        for role, tensor in tensors.items()
        if not torch.isfinite(tensor).all()
    ]
    if part.o_blocks and side == "left":
        broken.append(part.o_blocks[0].name)
    what = f"{', '.join(broken)} holds" if broken else "products of the weights overflow to"
    return SpectrumError(
        f"{_place(part.plan)}: {what} values that are not finite (NaN or infinity), so its heads "
        "have no spectrum. The file may be damaged: compare it with the original.",
        side,
    )
