# SPDX-License-Identifier: Apache-2.0
"""The EDM-preconditioned denoiser D(x; sigma, condition) around any network F, and its score.

    D = c_skip x + c_out F(c_in x, c_noise, condition)
    c_skip = sd^2 / (s^2 + sd^2)    c_out = s sd / sqrt(s^2 + sd^2)    c_in = 1 / sqrt(s^2 + sd^2)    c_noise = ln(s) / 4

Source: Karras et al. 2022 (EDM, arXiv 2206.00364), table 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """Estimates the clean chunk from a noised one.

    Args:
        network: maps (x `(B, D)`, c_noise `(B,)`, condition `(B, O)`) to `(B, D)`.
        sigma_data: standard deviation of normalised actions.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return the clean estimate `(B, D)` of x `(B, D)` at levels sigma `(B,)`."""
        s, sd = sigma[:, None], self.sigma_data
        total = (s.square() + sd**2).sqrt()
        estimate = self.network(x / total, sigma.log() / 4, condition)
        return (sd / total).square() * x + (s * sd / total) * estimate

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma) = (s^2 + sd^2) / (s sd)^2 `(B,)`, which makes every level count alike (EDM section 5)."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()

    @torch.no_grad()
    def score(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return grad_x log p(x; sigma) = (D(x; sigma) - x) / sigma^2 `(B, D)`, detached (EDM equation 3)."""
        return (self(x, sigma, condition) - x) / sigma[:, None].square()
