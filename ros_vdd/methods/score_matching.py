# SPDX-License-Identifier: Apache-2.0
"""Train a diffusion teacher by denoising score matching.

    L = E w(sigma) || D(a + sigma n; sigma, s) - a ||^2,   w = (sigma^2 + sd^2) / (sigma sd)^2

Source: Karras et al. 2022 (EDM, arXiv 2206.00364), equation 2 and table 1. Padded steps don't count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.schedule import log_normal_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.policies.diffusion import DiffusionPolicy

KIND = "diffusion"
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """Training levels: ln sigma ~ N(log_sigma_mean, log_sigma_std), in normalised action units."""

    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2

    def __post_init__(self):
        if self.log_sigma_std <= 0:
            raise ConfigError(f"'log_sigma_std' is {self.log_sigma_std}; expected above 0")


class Method:
    """Denoising score matching on demonstrations."""

    def __init__(self, options: Options, policy: DiffusionPolicy, teacher: None = None):
        self.options, self.policy = options, policy

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return the weighted squared error of the clean estimate."""
        clean = self.policy.from_chunk(batch["actions"])
        sampler, options = self.policy.config.sampler, self.options
        sigma = log_normal_sigmas(
            len(clean), options.log_sigma_mean, options.log_sigma_std, sampler.sigma_min, sampler.sigma_max, draws
        )
        noisy = clean + sigma[:, None] * draws.normal(clean.shape)
        estimate = self.policy.denoiser(noisy, sigma, self.policy.condition(batch))
        mask = batch["mask"][:, :, None].expand(batch["actions"].shape).flatten(1)
        weight = self.policy.denoiser.loss_weight(sigma)[:, None] * mask
        loss = (weight * (estimate - clean).square()).sum() / draws.total(mask.sum())
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the root mean square error of the sampled chunk, both in normalised units."""
        _, figures = self.loss(batch, draws)
        clean = self.policy.from_chunk(batch["actions"])
        sampled = self.policy.sample(self.policy.condition(batch), draws.normal(clean.shape))
        mask = batch["mask"][:, :, None].expand(batch["actions"].shape).flatten(1)
        return {**figures, "action_rmse": ((sampled - clean).square() * mask).sum().div(mask.sum()).sqrt().item()}
