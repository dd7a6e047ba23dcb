"""MEND's editor network (Mitchell et al., ICLR 2022, arXiv 2110.11309): from a gradient to an edit.

The gradient of a loss in a matrix W (d_out, d_in) is a sum over tokens of delta u^T, with u its
input and delta the gradient of its output. The network changes both:

    z  = [u; delta], less its mean, divided by its standard deviation
    h  = z + relu(s1 * (U1 V1 z + b1) + o1)
    z~ = h + s2 * (U2 V2 h + b2) + o2
    u~, delta~ = the two parts of z~

Matrices of the same shape share a network, each with scales s and offsets o of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RANK = 1920
"""Rank of U V, of the authors and of EasyEdit; or the width d_in + d_out if that is less."""

_LEAST_DEVIATION = 1e-7


class GradientEditor(nn.Module):
    """The network of all matrices of one shape. It begins as the identity: U is zero.

    Args:
        d_in, d_out: widths of input and output of the matrices.
        matrices: their number.
    """

    mean: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, d_in: int, d_out: int, matrices: int) -> None:
        super().__init__()
        width = d_in + d_out
        self._widths = [d_in, d_out]
        self.first = _LowRank(width, matrices)
        self.second = _LowRank(width, matrices)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def observe(self, inputs: Tensor, gradients: Tensor) -> None:
        """Take tokens into the mean and the standard deviation.

        Args:
            inputs: (n, d_in) u.
            gradients: (n, d_out) delta.
        """
        z = torch.cat([inputs, gradients], 1)
        if not len(z):
            return
        total, mean = self.count + len(z), z.mean(0)
        apart = mean - self.mean
        self.squares += (z - mean).square().sum(0)
        self.squares += apart.square() * self.count * len(z) / total
        self.mean += apart * len(z) / total
        self.count.copy_(total)

    def forward(self, inputs: Tensor, gradients: Tensor, matrix: int) -> tuple[Tensor, Tensor]:
        """Pseudo-activations and pseudo-gradients of tokens.

        Before two tokens have been observed they are not normalised.

        Args:
            inputs: (n, d_in) u.
            gradients: (n, d_out) delta.
            matrix: number of the matrix, from 0.

        Returns:
            u~ (n, d_in) and delta~ (n, d_out).
        """
        z = torch.cat([inputs, gradients], 1)
        if self.count > 1:
            deviation = (self.squares / (self.count - 1)).sqrt()
            z = (z - self.mean) / (deviation + _LEAST_DEVIATION)
        # A clamp, unlike relu, has a gradient at 0, where training begins.
        h = z + self.first(z, matrix).clamp(min=0)
        u, delta = (h + self.second(h, matrix)).split(self._widths, 1)
        return u, delta


class _LowRank(nn.Module):
    """s * (U V z + b) + o."""

    def __init__(self, width: int, matrices: int) -> None:
        super().__init__()
        rank = min(RANK, width)
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width))
        self.b = nn.Parameter(torch.zeros(width))
        self.s = nn.Parameter(torch.ones(matrices, width))
        self.o = nn.Parameter(torch.zeros(matrices, width))

    def forward(self, z: Tensor, matrix: int) -> Tensor:
        return self.s[matrix] * (z @ self.v.T @ self.u.T + self.b) + self.o[matrix]
