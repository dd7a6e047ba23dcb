"""Sketches: short vectors that preserve the cosines of long vectors but not their values.

For a unit vector u (d,) and a matrix S (m, d) of independent random signs

    sketch(u) = S u / |S u|

the cosine of two sketches approximates that of the vectors with standard deviation
(1 - cos^2) / sqrt(m) (Johnson and Lindenstrauss 1984 with Achlioptas' signs, JCSS 2003), which is
smallest near 1, where it matters most. S is linear, so sketches can be centred like vectors.

The signs are derived from a secret. A party with the secret can sketch a guess and compare. A party
without it sees the cosines between sketches only; docs/security.md says what these reveal.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fedit_app.mkv.similarity import unit_rows

SMALLEST_WIDTH, LARGEST_WIDTH = 16, 4096


class Sketcher:
    """Makes the sketches of one secret.

    Args:
        secret: key from which the signs are derived.
        width: m, the number of elements of a sketch.
    """

    def __init__(self, secret: bytes, width: int) -> None:
        self._secret, self.width = secret, width
        self._signs: dict[tuple[str, int], np.ndarray] = {}

    def sketch(self, kind: str, vectors: np.ndarray) -> np.ndarray:
        """The sketches `(n, m)` float16 of vectors `(n, d)`, of unit length, or zero for zero.

        Args:
            kind: kind of the vectors; each kind has its own projection, so that sketches of
                different kinds cannot be compared.
            vectors: vectors of any length.
        """
        units = unit_rows(vectors).astype(np.float64)
        return unit_rows(units @ self._projection(kind, units.shape[1]).T)

    def _projection(self, kind: str, d: int) -> np.ndarray:
        """S `(m, d)`, the same on every machine: its signs are the bits of SHAKE-256."""
        if (kind, d) not in self._signs:
            seed = self._secret + f" {kind} {d}".encode()
            count = self.width * d
            stream = hashlib.shake_256(seed).digest(-(-count // 8))
            bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=count)
            self._signs[kind, d] = 2.0 * bits.reshape(self.width, d) - 1.0
        return self._signs[kind, d]
