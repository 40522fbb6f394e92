# SPDX-License-Identifier: Apache-2.0
"""The samplers of few-step students: noise in, the states on the way and the chunk at the end out; randomness is an input.

    renoise   a = f(x, s_i),   x = a + sqrt(s_{i+1}^2 - s_min^2) n_{i+1}
    jump      x = G(x, s_i -> s_{i+1}), at the end the clean estimate
    posterior x = a + (s_{i+1}/s_i)^2 (x - a) + sigma_i n_{i+1},   a = f(x, s_i), at the end a

Source: Song et al. 2023 (consistency models, arXiv 2303.01469), algorithm 1; Kim et al. 2024 (CTM, arXiv 2310.02279), algorithm 3
with gamma 0; Ho et al. 2020 (DDPM, arXiv 2006.11239), equation 7, here for the variance-exploding process; guidance by a value:
Yoon et al. 2024 (DxMI, arXiv 2407.00626), whose code adds the slope and so goes downhill for negative scales only. Euler's rule
is in `ros_vdd.diffusion.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ros_vdd.diffusion.sampling import Denoise, Known, reflected, rows

Jump = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x (B, D), sigma (B,), stop (B,)) -> (B, D)
Slope = Callable[[Tensor, int], Tensor]  # (x (B, D), number of the level that it is at) -> dV/dx (B, D)


def euler(denoise: Denoise, noise: Tensor, sigmas: Sequence[float], bound: float | None = None) -> tuple[list[Tensor], Tensor]:
    """Return the states `(B, D)` at the levels above 0 and the chunk `(B, D)`, from unit noise `(B, 1, D)`."""
    states = [noise[:, 0] * sigmas[0]]
    for now, then in zip(sigmas[:-1], sigmas[1:]):
        x = states[-1]
        estimate = reflected(denoise(x, rows(x, now)), bound)
        states.append(estimate + then / now * (x - estimate))
    return states[:-1], states[-1]


def renoise(
    denoise: Denoise, noise: Tensor, sigmas: Sequence[float], sigma_min: float, bound: float | None = None
) -> tuple[list[Tensor], Tensor]:
    """Return the states `(B, D)` and the chunk `(B, D)`, from unit noise `(B, N, D)`: fresh noise for each of N steps."""
    states = [noise[:, 0] * sigmas[0]]
    for i, now in enumerate(sigmas[:-1]):
        clean = reflected(denoise(states[-1], rows(states[-1], now)), bound)
        if sigmas[i + 1] == 0:
            return states, clean
        states.append(clean + max(sigmas[i + 1] ** 2 - sigma_min**2, 0.0) ** 0.5 * noise[:, i + 1])
    raise ValueError(f"sigmas={list(sigmas)}: need 0 at the end")


def inpainted_jump(jump: Jump, known: Known | None) -> Jump:
    """Return jumps that lead what is known straight to where it is known to end; see `ros_vdd.diffusion.sampling.inpainted`."""
    if known is None:
        return jump

    def straight(x: Tensor, sigma: Tensor, stop: Tensor) -> Tensor:
        there = known.chunk + (stop / sigma)[:, None] * (x - known.chunk)
        return torch.where(known.mask > 0, there, jump(x, sigma, stop))

    return straight


def jump(
    jump: Jump, noise: Tensor, sigmas: Sequence[float], sigma_min: float, bound: float | None = None
) -> tuple[list[Tensor], Tensor]:
    """Return the states `(B, D)` and the chunk `(B, D)`, from unit noise `(B, 1, D)`; the last jump ends at sigma_min."""
    states = [noise[:, 0] * sigmas[0]]
    for now, then in zip(sigmas[:-1], sigmas[1:]):
        x = states[-1]
        states.append(jump(x, rows(x, now), rows(x, then or sigma_min)))
    return states[:-1], reflected(states[-1], bound)


def posterior(
    denoise: Denoise,
    noise: Tensor,
    sigmas: Sequence[float],
    stds: Tensor,
    bound: float | None = None,
    slope: Slope | None = None,
    guidance: float = 0.0,
) -> tuple[list[Tensor], Tensor]:
    """Return the states `(B, D)` and the chunk `(B, D)`, from unit noise `(B, N, D)`: a Gaussian policy of N steps.

    stds `(N - 1,)` are those of its steps; the last step adds no noise. With a `slope` every noised state x_{i+1} is moved by
    -guidance sigma_i dV/dx, downhill.
    """
    states = [noise[:, 0] * sigmas[0]]
    for i, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        x = states[-1]
        mean = posterior_mean(x, reflected(denoise(x, rows(x, now)), bound), rows(x, then / now))
        following = mean + stds[i] * noise[:, i + 1] if then else mean
        if then and slope is not None:
            following = following - guidance * stds[i] * slope(following, i + 1)
        states.append(following)
    return states[:-1], states[-1]


def posterior_mean(x: Tensor, clean: Tensor, ratio: Tensor) -> Tensor:
    """Return the mean `(B, D)` of the state at level s_{i+1} that led to x `(B, D)` at s_i; ratio `(B,)` is s_{i+1} / s_i."""
    return clean + ratio.square()[:, None] * (x - clean)


def posterior_std(now: float, then: float) -> float:
    """Return the standard deviation of that state, s_{i+1} sqrt(1 - (s_{i+1}/s_i)^2)."""
    return then * (1 - (then / now) ** 2) ** 0.5


class _Box(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(-bound, bound)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        outward = ((x > ctx.bound) & (gradient < 0)) | ((x < -ctx.bound) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0), None


def boxed(x: Tensor, bound: float | None) -> Tensor:
    """Return x cut to [-bound, bound]; descent along its gradient may lead back into the box, never further out.

    `clamp` has no gradient out there, so what once lies outside would stay. None leaves x.
    """
    return x if bound is None else _Box.apply(x, bound)
