"""Clipping and Gaussian noise for MKVs; `mkv.privacy` says what they are worth.

The clip norms are those of the base model on ordinary text, so they tell of no request. The noise
comes from the operating system's entropy and not from the run's seed: nobody can draw it again,
this node included.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Privacy:
    """How far the vectors of MKVs are clipped, and how much noise they get.

    Attributes:
        clip: largest norm of a vector, in usual norms; 0: as it is.
        noise: deviation of the noise in each element, in clip norms; 0: none. Needs a clip.
    """

    clip: float = 0.0
    noise: float = 0.0

    def applied(self, vectors: Vectors, usual: Vectors) -> Vectors:
        """The vectors of n MKVs as they may leave the node.

        Args:
            vectors: keys (n, n_layers, d_ff), shifts (n, n_layers, d_model), v* and h0
                (n, d_model); the value is clipped as v* - h0.
            usual: norms of the base model that these are measured in: (n_layers,) of keys,
                (n_layers,) of shifts, and two scalars, of v* - h0 and of h0.

        Returns:
            The same, changed.
        """
        generator = np.random.default_rng(secrets.randbits(256))
        keys, shifts, v_star, h0 = (part.astype(np.float64) for part in vectors)
        parts = (keys, shifts, v_star - h0, h0)
        limits = (self.clip * np.asarray(norm, np.float64) for norm in usual)
        keys, shifts, change, h0 = (
            self._one(part, limit, generator) for part, limit in zip(parts, limits, strict=True)
        )
        return keys, shifts, h0 + change, h0

    def _one(
        self, values: np.ndarray, limit: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        norms = np.linalg.norm(values, axis=-1)
        share = np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit)
        clipped = values * share[..., None]
        noise = generator.standard_normal(values.shape) * (self.noise * limit)[..., None]
        private: np.ndarray = clipped + noise
        return private
