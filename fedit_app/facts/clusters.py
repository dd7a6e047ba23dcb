"""Groups of similar vectors."""

from __future__ import annotations

import warnings

import numpy as np

from fedit_app.support.errors import FedEditError

_NEIGHBOURS = 20


def spectral_clusters(vectors: np.ndarray, count: int, seed: int) -> list[int]:
    """Spectral clustering of vectors by their directions, as FLEKE (arXiv 2502.15677) uses it.

    Two vectors are connected if one is among the 20 nearest neighbours of the other. Memory
    therefore grows with the number of vectors and not with its square.

    Args:
        vectors: (n, width).
        count: number of clusters, at most n.
        seed: seed of the eigensolver and of k-means; equal vectors and seeds give equal clusters.

    Returns:
        n labels in 0 .. count - 1.

    Raises:
        FedEditError: the vectors form fewer clusters than `count`.
    """
    from sklearn.cluster import SpectralClustering  # takes a second, and few processes need it

    if count == 1:
        return [0] * len(vectors)
    if count == len(vectors):
        return list(range(count))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors.astype(np.float64) / np.maximum(norms, 1e-12)
    clustering = SpectralClustering(
        count,
        affinity="nearest_neighbors",
        n_neighbors=min(_NEIGHBOURS, len(vectors)),
        assign_labels="kmeans",
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Unconnected parts are separate clusters.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        labels: list[int] = clustering.fit_predict(directions).tolist()
    found = len(set(labels))
    if found < count:
        raise FedEditError(
            f"partition: the texts form {found} clusters, too few for {count} nodes; use fewer "
            "nodes, or another partition"
        )
    return labels
