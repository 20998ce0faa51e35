"""Heads of other models sorted into the classes of a taxonomy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import NoSuchSpectraError, TaxonomyError
from qk_taxonomy.records import ModelSpectra
from qk_taxonomy.taxonomy.pool import Array, HeadPool, Integers, pool_layers
from qk_taxonomy.taxonomy.saved import SavedTaxonomy
from qk_taxonomy.taxonomy.spaces import space_of


@dataclass(frozen=True, eq=False)
class Assignment:
    """Heads of one model in the classes of a taxonomy; all (n,), in the order of ``pool``.

    ``distances`` to the class's centre; ``beyond``: whether a head lies farther from it than 99 %
    of the heads that made the class, so that it may be of a kind the taxonomy does not have. The
    histogram of few λ is a noisy one: heads of a smaller d_head than the taxonomy's ``narrowest``
    are beyond more often, whatever their kind.
    """

    pool: HeadPool
    labels: Integers
    distances: Array
    beyond: NDArray[np.bool_]


def assign_heads(taxonomy: SavedTaxonomy, spectra: ModelSpectra) -> Assignment:
    """Each head's nearest class, by the taxonomy's own bins and distance.

    Takes the layers of the taxonomy's circuit and convention. The models that a taxonomy was made
    of get their classes back. Raises NoSuchSpectraError where the spectra have no such layers,
    or are of a formula that the taxonomy was not made with.
    """
    if taxonomy.formulas and spectra.formula not in taxonomy.formulas:
        raise NoSuchSpectraError(
            f"The spectra of {spectra.model_id} are by another formula ({spectra.formula}) than "
            f"those the taxonomy was made of ({', '.join(taxonomy.formulas)}), and are not to be "
            "compared with them. Survey the model with `qk-taxonomy download`, or make a "
            "taxonomy of spectra like its own."
        )
    layers = spectra.select(taxonomy.circuit, taxonomy.convention)
    if not layers:
        found = sorted({f"{layer.circuit} {layer.convention}" for layer in spectra.layers})
        raise NoSuchSpectraError(
            f"The taxonomy is of {taxonomy.circuit} {taxonomy.convention} spectra, "
            f"{spectra.model_id} has {', '.join(found) or 'none'}. Add them with `qk-taxonomy "
            f"download ... --circuit {taxonomy.circuit} --convention {taxonomy.convention}`."
        )
    pool = pool_layers(layers)
    labels, distances = nearest_classes(taxonomy, pool.histograms(taxonomy.edges))
    return Assignment(pool, labels, distances, distances > taxonomy.radii[labels])


def nearest_classes(taxonomy: SavedTaxonomy, histograms: Array) -> tuple[Integers, Array]:
    """The nearest class (n,) of density histograms (n, bins) on the taxonomy's edges, and the
    distance (n,) to its centre. Raises TaxonomyError for another number of bins.
    """
    n_bins = taxonomy.centres.shape[1]
    if histograms.ndim != 2 or histograms.shape[1] != n_bins:
        raise TaxonomyError(
            f"The taxonomy wants histograms (heads, {n_bins}) on its own edges, found "
            f"{histograms.shape}."
        )
    distances = space_of(histograms, taxonomy.distance).to(taxonomy.centres)
    labels = distances.argmin(-1)
    return labels, distances[np.arange(len(labels)), labels]
