# SPDX-License-Identifier: Apache-2.0
"""A DDPM (variance-preserving) network seen as a variance-exploding denoiser, and its score.

    x_vp = sqrt(abar_t) x     sigma_t = sqrt((1 - abar_t) / abar_t)     D(x; sigma_t) = x - sigma_t eps(sqrt(abar_t) x, t)
    grad_x log p(x; sigma_t) = -eps(sqrt(abar_t) x, t) / sigma_t

Scaled like this, clean actions keep their size at every level, so samplers, losses and students are those of the VE teacher.

Source: Ho et al. 2020 (DDPM, arXiv 2006.11239) for epsilon prediction, Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17,
for the cosine schedule; the change of variables is that of Song et al. 2020 (DDIM, arXiv 2010.02502), equation 14.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_BETA = 0.999


def cosine_alpha_bars(steps: int) -> list[float]:
    """Return abar_t, t = 0..steps-1, of the cosine schedule with betas clipped at 0.999.

    beta_t = min(1 - f((t+1)/T) / f(t/T), 0.999), f(u) = cos^2((u + 0.008) / 1.008 * pi/2), abar_t = prod_(s<=t) (1 - beta_s)

    Source: Nichol & Dhariwal 2021, equation 17.
    """
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    bars, product = [], 1.0
    for now, then in zip(f[:-1], f[1:]):
        product *= 1 - min(1 - then / now, MAX_BETA)
        bars.append(product)
    return bars


def equivalent_sigmas(steps: int) -> list[float]:
    """Return the ascending VE levels sigma_t = sqrt((1 - abar_t) / abar_t) that a DDPM of `steps` steps knows."""
    return [math.sqrt((1 - bar) / bar) for bar in cosine_alpha_bars(steps)]


def ddim_sigmas(steps: int, train_steps: int, start: float = math.inf) -> list[float]:
    """Return the sampler's grid: `steps` of the levels up to `start`, evenly spread over t from the highest to t = 0, then 0.

    Euler's rule on this grid is DDIM with eta = 0. The top level of a cosine schedule is far above any data; an epsilon network's
    clean estimate there is junk, so starting lower, at several times the spread of the data, loses nothing.

    Raises:
        ValueError: steps below 1 or above the number of levels up to `start`.
    """
    levels = [sigma for sigma in equivalent_sigmas(train_steps) if sigma <= start]
    if not 1 <= steps <= len(levels):
        raise ValueError(f"steps={steps}: need 1 to {len(levels)}, the levels up to {start:g} that the network was trained at")
    last = len(levels) - 1
    chosen = [last - round(i * last / max(steps - 1, 1)) for i in range(steps)]
    return [*(levels[t] for t in chosen), 0.0]


class VpDenoiser(nn.Module):
    """Estimates the clean chunk by an epsilon network of T discrete steps; the same interface as `Denoiser`.

    The network knows only the levels of its grid: every `sigma` is taken as the nearest of `levels` (in ln sigma).

    With `sigma_data` the network F is preconditioned as in EDM, written for epsilon: what a Gaussian of that width would answer
    comes from a formula, F answers the rest. Without, F must copy its input to within 1 / sigma at high levels; an MLP doesn't.

        eps = sqrt(1 - abar) / v x_vp + sqrt(abar / v) sd F(x_vp / sqrt(v), t / T, s),     v = abar sd^2 + 1 - abar

    Args:
        network: maps (x_vp `(B, D)`, t / T `(B,)`, condition `(B, O)`) to epsilon `(B, D)`, or F's input to F.
        steps: T.
        sigma_data: standard deviation of normalised actions, sd; None where the network is epsilon itself.
    """

    def __init__(self, network: nn.Module, steps: int, sigma_data: float | None = None):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.register_buffer("levels", torch.tensor(equivalent_sigmas(steps)), persistent=False)
        self.register_buffer("alpha_bars", torch.tensor(cosine_alpha_bars(steps)), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return the clean estimate `(B, D)` of x `(B, D)`, in VE coordinates, at levels sigma `(B,)` of the grid."""
        t = self.step(sigma)
        return x - self.levels[t][:, None] * self._epsilon(self._to_vp(x, t), t, condition)

    def step(self, sigma: Tensor) -> Tensor:
        """Return t `(B,)` of the levels that lie nearest to sigma `(B,)`."""
        return (sigma.log()[:, None] - self.levels.log()).abs().argmin(dim=1)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return 1 / sigma_t^2 `(B,)`: times ||D - a||^2 it is DDPM's plain ||eps - n||^2 (DDPM equation 14)."""
        return self.levels[self.step(sigma)].square().reciprocal()

    @torch.no_grad()
    def score(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return grad_x log p(x; sigma_t) = -eps(sqrt(abar_t) x, t) / sigma_t `(B, D)`, detached."""
        t = self.step(sigma)
        return -self._epsilon(self._to_vp(x, t), t, condition) / self.levels[t][:, None]

    @torch.no_grad()
    def released_score(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return -eps(x, t) / sqrt(1 - abar_t) `(B, D)`, detached: the rule of the VDD authors' code, for comparison.

        It asks for the score of the shrunk data sqrt(abar_t) a at the unshrunk x, so its modes lie near sqrt(abar_t) times the
        true ones.
        """
        t = self.step(sigma)
        return -self._epsilon(x, t, condition) / (1 - self.alpha_bars[t]).sqrt()[:, None]

    def _to_vp(self, x: Tensor, t: Tensor) -> Tensor:
        return self.alpha_bars[t].sqrt()[:, None] * x

    def _epsilon(self, x_vp: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        time = t.to(x_vp.dtype) / len(self.levels)
        if self.sigma_data is None:
            return self.network(x_vp, time, condition)
        bar = self.alpha_bars[t][:, None]
        variance = bar * self.sigma_data**2 + 1 - bar
        rest = (bar / variance).sqrt() * self.sigma_data * self.network(x_vp / variance.sqrt(), time, condition)
        return (1 - bar).sqrt() / variance * x_vp + rest
