# SPDX-License-Identifier: Apache-2.0
"""What the methods with an averaged target share: how far a student is from its label, and the dropout both see.

    l2             ||e||^2 / n                           e the error of a chunk, n its recorded numbers
    pseudo_huber   sqrt(||e||^2 / n + c^2) - c           c = 0.00054: near 0 a square, beyond it the distance itself

Source: Song & Dhariwal 2024 (arXiv 2310.14189), section 3.3, here divided by sqrt(n), so that the horizon doesn't set the scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.methods._few_step import masked_mean

Distance = Literal["l2", "pseudo_huber"]
_C = 0.00054


def measured(distance: Distance, error: Tensor, mask: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the mean distance over the batch, and each row's `(B,)`, of errors `(B, D)` where mask `(B, D)` is 1."""
    squares = error.square()
    rows = (squares * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    if distance == "l2":
        return masked_mean(squares, mask, draws), rows
    rows = (rows + _C**2).sqrt() - _C
    return rows.mean(), rows


@contextmanager
def replayed(device: torch.device) -> Iterator[None]:
    """Let what follows this block drop the same units as what is in it: dropout draws from the global generators."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
