# SPDX-License-Identifier: Apache-2.0
"""Train a diffusion teacher by denoising score matching.

    VE: L = E w(sigma) || D(a + sigma n; sigma, s) - a ||^2,   w = (sigma^2 + sd^2) / (sigma sd)^2,   ln sigma normal
    VP: L = E || eps(sqrt(abar_t) a + sqrt(1 - abar_t) n, t, s) - n ||^2,                             t uniform on 0..T-1

Both are one loss, with w = 1 / sigma_t^2 for VP. Padded steps don't count. Source: Karras et al. 2022 (EDM, arXiv 2206.00364),
equation 2 and table 1; Ho et al. 2020 (DDPM, arXiv 2006.11239), equation 14.
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
KINDS = ("diffusion", "window")
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """Training levels of a VE policy: ln sigma ~ N(log_sigma_mean, log_sigma_std), in normalised action units."""

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
        clean, mask = self.policy.targets(batch)
        sigma = self._levels(len(clean), draws)
        noised = clean + sigma[:, None] * draws.normal(clean.shape)
        estimate, weight = self.policy.restore(noised, sigma, batch)
        loss = (weight[:, None] * mask * (estimate - clean).square()).sum() / draws.total(mask.sum())
        return loss, {"loss": loss.item()}

    def _levels(self, count: int, draws: Draws) -> Tensor:
        levels, sampler, options = self.policy.levels, self.policy.config.sampler, self.options
        if levels is not None:
            return levels[draws.integers(len(levels), (count,))]
        return log_normal_sigmas(
            count, options.log_sigma_mean, options.log_sigma_std, sampler.sigma_min, sampler.sigma_max, draws
        )

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the root mean square error of the sampled chunk, both in normalised units."""
        _, figures = self.loss(batch, draws)
        clean = self.policy.from_chunk(batch["actions"])
        sampled = self.policy.generate(batch, draws.normal((len(clean), *self.policy.noise_shape)))
        mask = batch["mask"][:, :, None].expand(batch["actions"].shape).flatten(1)
        return {**figures, "action_rmse": ((sampled - clean).square() * mask).sum().div(mask.sum()).sqrt().item()}
