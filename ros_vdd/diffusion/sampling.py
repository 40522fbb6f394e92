# SPDX-License-Identifier: Apache-2.0
"""Deterministic samplers on one Karras grid: noise in, chunk out; no random operator inside.

`bound` clips the clean estimate to the box that normalised actions live in, and the slope is formed from the clipped
estimate, so the solver step stays consistent. Source: EDM algorithm 1 (arXiv 2206.00364) without stochasticity; for the
variance-exploding process used here Euler's method is DDIM (Song et al. 2020, arXiv 2010.02502).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x (B, D), sigma (B,)) -> clean estimate (B, D)


class Known(NamedTuple):
    """Numbers of a clean chunk that are certain before it is sampled: `chunk` (B, D), normalised, and `mask` (B, D), 1 for those."""

    chunk: Tensor
    mask: Tensor


def inpainted(denoise: Denoise, known: Known | None) -> Denoise:
    """Return a denoiser that answers what is known where it is known, so that a sampler ends there and the rest follows it.

    Each step leads a number towards its clean estimate, so a known one passes the levels as its own noised copy would, but for the
    start, which lies off by the number itself against sigma_max. None changes nothing. An approximation of the conditional law: what is
    known pulls at the rest too weakly, as it is noised as well (Song et al. 2021, arXiv 2011.13456, appendix I.2; Lugmayr et al. 2022,
    RePaint, arXiv 2201.09865).
    """
    if known is None:
        return denoise
    return lambda x, sigma: torch.where(known.mask > 0, known.chunk, denoise(x, sigma))


def euler(denoise: Denoise, noise: Tensor, sigmas: Sequence[float], bound: float | None = None) -> Tensor:
    """Return `(B, D)` from unit noise `(B, D)`: one network evaluation for each of the `len(sigmas) - 1` steps."""
    x = noise * sigmas[0]
    for now, then in zip(sigmas[:-1], sigmas[1:]):
        x = x + (then - now) * _slope(denoise, x, now, bound)
    return x


def heun(denoise: Denoise, noise: Tensor, sigmas: Sequence[float], bound: float | None = None) -> Tensor:
    """Return `(B, D)` by Heun's second-order rule: two evaluations a step, one in the last step to zero."""
    x = noise * sigmas[0]
    for now, then in zip(sigmas[:-1], sigmas[1:]):
        first = _slope(denoise, x, now, bound)
        ahead = x + (then - now) * first
        if then == 0:
            return ahead
        x = x + (then - now) * (first + _slope(denoise, ahead, then, bound)) / 2
    return x


SOLVERS = {"euler": euler, "heun": heun}


def evaluations(solver: str, steps: int) -> int:
    """Return how many network evaluations (NFE) a solver spends on `steps` steps."""
    return 2 * steps - 1 if solver == "heun" else steps


def reflected(estimate: Tensor, bound: float | None) -> Tensor:
    """Return a clean estimate cut to [-bound, bound], where normalised actions live; None leaves it.

    What is formed from it afterwards, a slope or the noise in x, agrees with the cut estimate: the practical form of a diffusion
    that is reflected at the box (Lou & Ermon 2023, arXiv 2304.04740).
    """
    return estimate if bound is None else estimate.clamp(-bound, bound)


def euler_step(denoise: Denoise, x: Tensor, now: Tensor, then: Tensor, bound: float | None = None) -> Tensor:
    """Return x `(B, D)` carried from levels `now` to levels `then`, each `(B,)`, by one Euler (DDIM) step; `then` may be 0."""
    estimate = reflected(denoise(x, now), bound)
    return estimate + (then / now)[:, None] * (x - estimate)


def heun_step(denoise: Denoise, x: Tensor, now: Tensor, then: Tensor, bound: float | None = None) -> Tensor:
    """Return x `(B, D)` carried from levels `now` to levels `then` above 0, each `(B,)`, by one Heun step."""
    slope = (x - reflected(denoise(x, now), bound)) / now[:, None]
    step = (then - now)[:, None]
    ahead = x + step * slope
    return x + step / 2 * (slope + (ahead - reflected(denoise(ahead, then), bound)) / then[:, None])


def rows(x: Tensor, sigma: float) -> Tensor:
    """Return a level for each row of x `(B, D)`, `(B,)`."""
    return torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)


def _slope(denoise: Denoise, x: Tensor, sigma: float, bound: float | None) -> Tensor:
    return (x - reflected(denoise(x, rows(x, sigma)), bound)) / sigma
