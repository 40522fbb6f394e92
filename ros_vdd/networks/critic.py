# SPDX-License-Identifier: Apache-2.0
"""The critic of a denoising walk: how much it will have cost when the chunk is there, and at the end the chunk's energy.

    V(x_t, t | o),   t = 0 (noise) .. T (the chunk),   V(., T) = E

One network is both, so an energy can be told at run time by the value that a student was trained with. Its slope is written out,
as a graph holds no autograd. Source: Yoon et al. 2024 (DxMI, arXiv 2407.00626); that it sees which numbers count is our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ros_vdd.networks.blocks import ConditionedBlock


class Critic(nn.Module):
    """Maps a state of a walk, its step and the observation to one number; 0 everywhere before it is trained.

    Args:
        size: D, numbers in a flattened chunk.
        condition: O, numbers in the observation features.
        levels: T + 1 noise levels of the walk, the highest first, 0 last: what states are scaled by.
        width, depth: hidden width and number of blocks.
        sigma_data: standard deviation of normalised actions.
    """

    def __init__(self, size: int, condition: int, levels: Sequence[float], width: int, depth: int, sigma_data: float = 0.5):
        super().__init__()
        self.steps = len(levels) - 1
        self.step = nn.Embedding(len(levels), 64)
        self.condition = nn.Sequential(nn.Linear(64 + condition, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.enter = nn.Linear(2 * size + condition, width)
        self.blocks = nn.ModuleList(ConditionedBlock(width, width, width) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)
        scale = (torch.tensor(levels).square() + sigma_data**2).rsqrt()
        self.register_buffer("scale", scale, persistent=False)

    @property
    def trained(self) -> bool:
        """Return whether it tells anything apart; before its first training step it doesn't."""
        return bool(self.leave[1].weight.any())

    def forward(self, x: Tensor, step: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """Return V `(B,)` of states x `(B, D)` at step `(B,)` from 0 to T, under condition `(B, O)`.

        mask `(B, D)`: 1 for the numbers that count; the others may be anything.
        """
        hidden, embedding = self._entered(x, step, condition, mask)
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.leave(hidden)[:, 0]

    def slope(self, x: Tensor, step: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """Return dV/dx `(B, D)`, as autograd would, by forward operations alone: it exports, and runs in inference mode."""
        hidden, embedding = self._entered(x, step, condition, mask)
        passed = [hidden]
        for block in self.blocks:
            passed.append(block(passed[-1], embedding))
        norm, leave = self.leave
        gradient = _through_norm(passed[-1], (norm.weight * leave.weight[0]).expand_as(hidden), norm.eps)
        for block, hidden in zip(reversed(self.blocks), reversed(passed[:-1])):
            gradient = gradient + _through_branch(block, hidden, embedding, gradient)
        return gradient @ self.enter.weight[:, : x.shape[1]] * self.scale[step][:, None] * mask

    def _entered(self, x: Tensor, step: Tensor, condition: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        scaled = x * self.scale[step][:, None] * mask
        embedding = self.condition(torch.cat([self.step(step), condition], dim=1))
        return self.enter(torch.cat([scaled, mask, condition], dim=1)), embedding

    def energy(self, chunk: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """Return E = V(., T) `(B,)` of normalised flat chunks `(B, D)`."""
        return self(chunk, torch.full((len(chunk),), self.steps, device=chunk.device), condition, mask)


def _through_branch(block: ConditionedBlock, x: Tensor, condition: Tensor, gradient: Tensor) -> Tensor:
    """Return what a gradient `(B, width)` behind a block's residual branch is before it, at its input x `(B, width)`."""
    scale, shift = block.modulate(condition).chunk(2, dim=1)
    hidden = block.expand(block.norm(x) * (1 + scale) + shift)
    gate = hidden.sigmoid()
    gradient = gradient @ block.project.weight * gate * (1 + hidden * (1 - gate))  # SiLU
    return _through_norm(x, gradient @ block.expand.weight * (1 + scale), block.norm.eps)


def _through_norm(x: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """Return what a gradient behind a layer norm of x, each `(B, width)`, is before it."""
    normalised = functional.layer_norm(x, x.shape[1:], eps=eps)
    along = normalised * (gradient * normalised).mean(dim=1, keepdim=True)
    spread = (x.var(dim=1, correction=0, keepdim=True) + eps).sqrt()
    return (gradient - gradient.mean(dim=1, keepdim=True) - along) / spread
