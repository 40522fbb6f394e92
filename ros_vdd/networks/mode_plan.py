# SPDX-License-Identifier: Apache-2.0
"""What a MoDE network does at each level of a fixed schedule, worked out ahead: experts, noise embedding, sampler coefficients.

    D = c_skip x + c_out F(c_in x, c)            the clean estimate
    x <- A x + B F,  A = r + (1 - r) c_skip,  B = (1 - r) c_out,  r = sigma_next / sigma        one step of Euler's rule

Source: Reuss et al. 2025 (MoDE, arXiv 2412.12953), section 3.3.1: the noise router sees the level alone,
so a schedule fixes its choices.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ros_vdd.networks.mode import ModeBlock, ModeNetwork, chosen_experts


@dataclass(frozen=True)
class Level:
    """One level of a schedule.

    Attributes:
        sigma, following: this level and the next one.
        c_in, c_skip, c_out: the denoiser's coefficients.
        noise: c, the noise embedding `(width,)`.
        experts, weights: of each layer, the experts that act and their shares.
    """

    sigma: float
    following: float
    c_in: float
    c_skip: float
    c_out: float
    noise: Tensor
    experts: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def ratio(self) -> float:
        """Return r = following / sigma."""
        return self.following / self.sigma

    @property
    def keep(self) -> float:
        """Return A."""
        return self.ratio + (1 - self.ratio) * self.c_skip

    @property
    def gain(self) -> float:
        """Return B."""
        return (1 - self.ratio) * self.c_out


@torch.no_grad()
def plan(network: ModeNetwork, sigmas: Sequence[float], sigma_data: float) -> list[Level]:
    """Return what happens at each level; routers are asked in float32, whatever the precision of the network.

    Args:
        sigmas: the levels, highest first, then 0.
        sigma_data: of the denoiser.

    Raises:
        ValueError: a router reads tokens, so that no schedule fixes its choices.
    """
    require_noise_router(network)
    levels = []
    for now, then in zip(sigmas[:-1], sigmas[1:]):  # one by one, as at batch 1: float32 depends on the order of sums
        noise = network.noise(network.positions.new_tensor([now]).log() / 4)
        routes = [_route(block, noise) for block in network.blocks]
        total = math.hypot(now, sigma_data)
        coefficients = 1 / total, (sigma_data / total) ** 2, now * sigma_data / total
        levels.append(Level(now, then, *coefficients, noise[0], *map(tuple, zip(*routes))))
    return levels


def require_noise_router(network: ModeNetwork) -> None:
    """Refuse a network whose router reads tokens.

    Raises:
        ValueError: it does.
    """
    if network.sizes.routes_tokens:
        raise ValueError(
            "'router' is 'token'; only a router that reads the noise can be resolved ahead of the observation. Evaluate all "
            "experts instead"
        )


def _route(block: ModeBlock, noise: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return experts and shares of a layer at a noise embedding `(1, width)`."""
    if block.router is None:
        return (0,), (1.0,)
    chosen, weights = chosen_experts(copy.deepcopy(block.router).float()(noise), block.top_k)
    return tuple(chosen[0].tolist()), tuple(weights[0].tolist())


def expert_gates(network: ModeNetwork, level: Level) -> Tensor:
    """Return the share of every expert `(layers, E)` at a level, 0 where it doesn't act."""
    gates = torch.zeros(len(network.blocks), network.sizes.experts)
    for row, chosen, weights in zip(gates, level.experts, level.weights):
        row[list(chosen)] = torch.tensor(weights)
    return gates
