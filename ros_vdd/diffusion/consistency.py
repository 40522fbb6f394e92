# SPDX-License-Identifier: Apache-2.0
"""Denoisers that answer in few steps: the consistency function, and the jump to any lower level.

    consistency   f(x, s) = c_skip x + c_out F(c_in x, ln(s)/4)    c_skip = sd^2 / ((s - s_min)^2 + sd^2)
                                                                   c_out = (s - s_min) sd / sqrt(s^2 + sd^2)
    jump          G(x, t -> s) = (s/t) x + (1 - s/t) g(x, t, s),   g preconditioned as EDM, told s beside t

f(x, s_min) = x and G(x, t -> t) = x whatever the network says. Source: Song et al. 2023 (consistency models, arXiv 2303.01469),
appendix C; Kim et al. 2024 (CTM, arXiv 2310.02279), equation 6.
"""

from __future__ import annotations

from torch import Tensor, nn

from ros_vdd.diffusion.denoiser import Denoiser


class ConsistencyDenoiser(Denoiser):
    """Estimates where the trajectory through x ends; the identity at the lowest level.

    Args:
        network: as of `Denoiser`.
        sigma_data: standard deviation of normalised actions.
        sigma_min: the lowest level.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5, sigma_min: float = 0.01):
        super().__init__(network, sigma_data)
        self.sigma_min = sigma_min

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return f(x, sigma) `(B, D)` of x `(B, D)` at levels sigma `(B,)`."""
        s, sd = sigma[:, None], self.sigma_data
        above, total = s - self.sigma_min, (s.square() + sd**2).sqrt()
        estimate = self.network(x / total, sigma.log() / 4, condition)
        return sd**2 / (above.square() + sd**2) * x + above * sd / total * estimate


class JumpDenoiser(Denoiser):
    """Carries x from its level to any lower one; its network takes ln(s) / 4 of the level to stop at as a fourth argument."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor, stop: Tensor | None = None) -> Tensor:
        """Return g(x, sigma, stop) `(B, D)`; without `stop`, g(x, sigma, sigma), which is the clean estimate."""
        s, sd = sigma[:, None], self.sigma_data
        total = (s.square() + sd**2).sqrt()
        there = sigma if stop is None else stop
        estimate = self.network(x / total, sigma.log() / 4, condition, there.log() / 4)
        return (sd / total).square() * x + (s * sd / total) * estimate

    def jump(self, x: Tensor, sigma: Tensor, stop: Tensor, condition: Tensor) -> Tensor:
        """Return G(x, sigma -> stop) `(B, D)`; stop `(B,)` is above 0 and at most sigma."""
        ratio = (stop / sigma)[:, None]
        return ratio * x + (1 - ratio) * self(x, sigma, condition, stop)
