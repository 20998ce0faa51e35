"""Heads to be sorted into classes together: those of one model, or of many.

A head is described by λ over its mean, so neither the size of its weights nor the attention scale
matters, only the shape of its spectrum. Its histogram is a density of λ/mean, so heads that differ
in d_head can stand in one pool; one of few λ has the noisier histogram.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import TaxonomyError
from qk_taxonomy.records import Circuit, Convention, LayerSpectra, ModelSpectra
from qk_taxonomy.statistics.densities import histogram_densities, mean_normalised, pool_edges

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HeadPool:
    """Heads of one circuit in one convention.

    ``normalised``: λ over the head's mean, one array (heads, d_head) a layer. By head, all (n,):
    ``models``, its model's position among those handed in, ``stacks``, ``layers`` and ``heads``.
    """

    circuit: Circuit
    convention: Convention
    normalised: tuple[Array, ...]
    models: Integers
    stacks: NDArray[np.str_]
    layers: Integers
    heads: Integers

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def narrowest(self) -> int:
        """The smallest number of λ, d_head, that a head has."""
        return min(block.shape[1] for block in self.normalised)

    def edges(self, n_bins: int) -> Array:
        """Edges (n_bins + 1,) of equal bins on [0, q], q the 0.96 quantile of all λ/mean.

        Every λ of the pool counts once. Raises TaxonomyError where q is 0.
        """
        edges = pool_edges(np.concatenate([block.ravel() for block in self.normalised]), n_bins)
        if edges[-1] == 0:
            raise TaxonomyError(
                "At least 96 % of the λ of these heads are zero, so histograms up to the 0.96 "
                "quantile have no width. There is nothing to classify."
            )
        return edges

    def histograms(self, edges: Array) -> Array:
        """Density histograms (n, bins)."""
        return np.concatenate([histogram_densities(block, edges) for block in self.normalised])

    def share_beyond(self, edges: Array) -> Array:
        """Share (n,) of each head's Σλ in λ beyond the last edge."""
        return np.concatenate(
            [
                np.where(block > edges[-1], block, 0.0).sum(-1) / block.shape[-1]
                for block in self.normalised
            ]
        )


def pool_layers(layers: Sequence[LayerSpectra]) -> HeadPool:
    """The heads of one model's layers, in order of stack and layer. Raises TaxonomyError."""
    return _pool((0, layer) for layer in sorted(layers, key=lambda layer: layer.place))


def pool_models(
    models: Sequence[ModelSpectra],
    circuit: Circuit,
    convention: Convention,
    *,
    include_imported: bool = False,
) -> HeadPool:
    """The heads of many models in one circuit and convention, whatever the order of models.

    Of ``models``, :func:`chosen_models` are pooled. Raises TaxonomyError where one of them has no
    such spectra, and where nothing is left to pool.
    """
    chosen = chosen_models(models, include_imported=include_imported)
    selected: list[tuple[int, LayerSpectra]] = []
    for index in sorted(chosen, key=lambda i: _identity(models[i])):
        layers = models[index].select(circuit, convention)
        if not layers:
            raise TaxonomyError(
                f"{models[index].model_id} has no {circuit} {convention} spectra, and other "
                "circuits or conventions cannot be pooled with them. Leave it out, or add them "
                f"with `qk-taxonomy download ... --circuit {circuit} --convention {convention}`."
            )
        selected += [(index, x) for x in sorted(layers, key=lambda layer: layer.place)]
    return _pool(selected)


def chosen_models(models: Sequence[ModelSpectra], *, include_imported: bool = False) -> list[int]:
    """Positions of the models that are pooled.

    Controls are left out. Imported spectra, made by another formula, are left out where there are
    exact ones, unless they are asked for.
    """
    own = [i for i, model in enumerate(models) if not model.control]
    exact = [i for i in own if not models[i].is_imported]
    return own if include_imported else exact or own


def _identity(model: ModelSpectra) -> tuple[str, str, str]:
    return model.family, model.model_id, model.metadata["revision"]


def _pool(layers: Iterable[tuple[int, LayerSpectra]]) -> HeadPool:
    pairs = list(layers)
    if not pairs:
        raise TaxonomyError(
            "There are no spectra of this circuit and convention; `qk-taxonomy download` with "
            "--circuit and --convention makes them."
        )
    kinds = sorted({(layer.circuit, layer.convention) for _, layer in pairs})
    if len(kinds) > 1:
        raise TaxonomyError(
            "Heads of one circuit in one convention can be classified together, found "
            f"{', '.join(' '.join(kind) for kind in kinds)}. Select one with "
            "`load_spectra(path).select(circuit, convention)`."
        )
    normalised = tuple(
        mean_normalised(np.square(layer.singular_values.astype(np.float64))) for _, layer in pairs
    )
    if not any(block.any() for block in normalised):
        raise TaxonomyError("All heads have zero weights; there is nothing to classify.")
    sizes = [len(block) for block in normalised]
    return HeadPool(
        *kinds[0],
        normalised,
        models=np.repeat([model for model, _ in pairs], sizes),
        stacks=np.repeat([layer.stack for _, layer in pairs], sizes),
        layers=np.repeat([layer.layer for _, layer in pairs], sizes),
        heads=np.concatenate([np.arange(size) for size in sizes]),
    )
