"""Where the wanted tokens of texts are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.models.tokens import TokenRow


@dataclass(frozen=True)
class Goals:
    """Every target token of some rows: where it is predicted and what it is.

    Attributes:
        row, position: (m,) row, and index in the row's part from the subject's last token on.
        token: (m,) wanted id.
        share: (m,) float64, 1 / number of target tokens of the row.
    """

    row: Tensor
    position: Tensor
    token: Tensor
    share: Tensor

    @staticmethod
    def of(rows: Sequence[TokenRow], device: torch.device) -> Goals:
        """The target tokens of token rows."""
        found = [
            (number, index - 1 - row.lookup, row.ids[index], 1 / (len(row.ids) - row.target))
            for number, row in enumerate(rows)
            for index in range(row.target, len(row.ids))
        ]
        row, position, token, share = zip(*found, strict=True)
        return Goals(
            row=torch.tensor(row, device=device),
            position=torch.tensor(position, device=device),
            token=torch.tensor(token, device=device),
            share=torch.tensor(share, dtype=torch.float64, device=device),
        )

    def select(self, rows: Tensor, n_rows: int) -> Goals:
        """Those of some of `n_rows` rows, which are numbered anew."""
        rows = rows.to(self.row.device)
        place = torch.full((n_rows,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.row] >= 0
        return Goals(place[self.row[kept]], self.position[kept], self.token[kept], self.share[kept])
