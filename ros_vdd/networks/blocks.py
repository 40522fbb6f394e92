# SPDX-License-Identifier: Apache-2.0
"""Small parts shared by the networks: the noise-level embedding and residual blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierEmbedding(nn.Module):
    """Sines and cosines of a scalar at fixed geometric frequencies, so that export holds no random numbers.

    Args:
        width: output size, even.
        low, high: lowest and highest frequency [cycles per unit].
    """

    def __init__(self, width: int, low: float = 0.25, high: float = 16.0):
        super().__init__()
        frequencies = torch.logspace(math.log10(low), math.log10(high), width // 2)
        self.register_buffer("frequencies", 2 * math.pi * frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B,)` to `(B, width)`."""
        angles = x[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """Pre-norm two-layer block, x + W2 silu(W1 norm(x)); starts as the identity."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(hidden, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, width)` to `(B, width)`."""
        return x + self.project(self.dropout(nn.functional.silu(self.expand(self.norm(x)))))


class ConditionedBlock(ResidualBlock):
    """A residual block whose normalised input is scaled and shifted by a condition (adaLN; FiLM).

    Source: Peebles & Xie 2023 (DiT, arXiv 2212.09748), section 3.2, without the output gate.
    """

    def __init__(self, width: int, hidden: int, condition: int, dropout: float = 0.0):
        super().__init__(width, hidden, dropout)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        """Map x `(B, width)` under condition `(B, C)` to `(B, width)`."""
        scale, shift = self.modulate(condition).chunk(2, dim=1)
        hidden = self.expand(self.norm(x) * (1 + scale) + shift)
        return x + self.project(self.dropout(nn.functional.silu(hidden)))
