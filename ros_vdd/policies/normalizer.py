# SPDX-License-Identifier: Apache-2.0
"""Min-max normalisation to [-1, 1], inside the policy, so that nothing can be forgotten at deployment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """x -> 2 (x - low) / (high - low) - 1 per dimension; `low` and `high` travel with the weights.

    Args:
        size: number of dimensions.
    """

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))

    def fit(self, values: np.ndarray) -> None:
        """Take the range of values `(N, size)`; a dimension that never moves gets a range of 1 around its value."""
        low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
        still = high - low < 1e-6
        low[still], high[still] = low[still] - 0.5, high[still] + 0.5
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., size)` in given units to [-1, 1]."""
        return 2 * (x - self.low) / (self.high - self.low) - 1

    def inverse(self, x: Tensor) -> Tensor:
        """Map `(..., size)` from [-1, 1] back to given units."""
        return (x + 1) / 2 * (self.high - self.low) + self.low
