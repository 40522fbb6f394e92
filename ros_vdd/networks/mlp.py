# SPDX-License-Identifier: Apache-2.0
"""Residual MLPs: the denoiser's network over flattened chunks and the student's trunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ros_vdd.networks.blocks import ConditionedBlock, FourierEmbedding, ResidualBlock


class DenoiserMLP(nn.Module):
    """Predicts F for flattened noised chunks, conditioned on the noise level and the observation.

    Args:
        size: D, numbers in a flattened chunk.
        condition: O, numbers in the observation features.
        width, depth: hidden width and number of blocks.
    """

    def __init__(self, size: int, condition: int, width: int, depth: int, dropout: float = 0.0):
        super().__init__()
        self.level = FourierEmbedding(64)
        self.condition = nn.Sequential(nn.Linear(64 + condition, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter = nn.Linear(size + condition, width)
        self.blocks = nn.ModuleList(ConditionedBlock(width, width, width, dropout) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """Map x `(B, D)`, c_noise `(B,)` and condition `(B, O)` to `(B, D)`."""
        return self._through(x, condition, self.condition(torch.cat([self.level(c_noise), condition], dim=1)))

    def _through(self, x: Tensor, condition: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.enter(torch.cat([x, condition], dim=1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.leave(hidden)


class JumpMLP(DenoiserMLP):
    """A `DenoiserMLP` that is told the level to stop at; begins as the network that isn't."""

    def __init__(self, size: int, condition: int, width: int, depth: int, dropout: float = 0.0):
        super().__init__(size, condition, width, depth, dropout)
        self.stop = nn.Linear(64, width)
        nn.init.zeros_(self.stop.weight)
        nn.init.zeros_(self.stop.bias)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor, c_stop: Tensor) -> Tensor:  # type: ignore[override]
        """Map x `(B, D)`, c_noise and c_stop `(B,)` and condition `(B, O)` to `(B, D)`."""
        embedding = self.condition(torch.cat([self.level(c_noise), condition], dim=1)) + self.stop(self.level(c_stop))
        return self._through(x, condition, embedding)


class Trunk(nn.Module):
    """Residual MLP `(B, O)` -> `(B, width)`: one evaluation of the student."""

    def __init__(self, size: int, width: int, depth: int, dropout: float = 0.0):
        super().__init__()
        self.enter = nn.Linear(size, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features `(B, O)` to `(B, width)`."""
        return self.norm(self.blocks(self.enter(x)))
