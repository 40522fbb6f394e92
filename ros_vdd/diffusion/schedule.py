# SPDX-License-Identifier: Apache-2.0
"""Noise levels: the Karras grid of the samplers and the level distributions of training.

Source: Karras et al. 2022 (EDM, arXiv 2206.00364), equation 5 and table 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from ros_vdd.diffusion.draws import Draws


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """Return the grid of `steps + 1` levels from sigma_max to sigma_min, then 0; plain numbers, so that export sees constants.

    sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Args:
        steps: network evaluations of an Euler sampler, at least 1.
        sigma_min, sigma_max: lowest and highest level, in normalised action units.
        rho: how strongly levels gather near sigma_min.

    Source: EDM equation 5.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}: need steps >= 1 and 0 < min < max")
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    between = [(top + i / (steps - 1) * (bottom - top)) ** rho for i in range(1, steps - 1)]
    return [sigma_max, *between, *([sigma_min] if steps > 1 else []), 0.0]


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Return the grid of `steps + 1` levels from sigma_max down to sigma_min in equal ratios, then 0.

    It is the limit of `karras_sigmas` for an endless rho. Source: Reuss et al. 2025 (MoDE, arXiv 2412.12953), as released.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}: need steps >= 1 and 0 < min < max")
    ratio = (sigma_min / sigma_max) ** (1 / max(steps - 1, 1))
    return [sigma_max, *(sigma_max * ratio**i for i in range(1, steps - 1)), *([sigma_min] if steps > 1 else []), 0.0]


def log_normal_sigmas(
    count: int, mean: float, std: float, sigma_min: float, sigma_max: float, draws: Draws
) -> Tensor:
    """Draw training levels `(count,)` with ln sigma ~ N(mean, std), clipped to the sampler's range.

    Source: EDM table 1 (training); the clipping to the range is our own.
    """
    log_sigma = mean + std * draws.normal((count,))
    return log_sigma.clamp(math.log(sigma_min), math.log(sigma_max)).exp()


def log_uniform_sigmas(shape: tuple[int, ...], sigma_min: float, sigma_max: float, draws: Draws) -> Tensor:
    """Draw levels of a shape `(B, ...)` uniform in ln sigma between sigma_min and sigma_max."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return (low + (high - low) * draws.uniform(shape)).exp()
