# SPDX-License-Identifier: Apache-2.0
"""Train a diffusion teacher by denoising score matching.

    VE: L = E w(sigma) || D(a + sigma n; sigma, s) - a ||^2,   w = (sigma^2 + sd^2) / (sigma sd)^2,   ln sigma normal
    VP: L = E || eps(sqrt(abar_t) a + sqrt(1 - abar_t) n, t, s) - n ||^2,                       t uniform on 0..T-1, or as VE

Both are one loss, with w = 1 / sigma_t^2 for VP. Padded steps don't count. Source: Karras et al. 2022 (EDM, arXiv 2206.00364),
equation 2 and table 1; Ho et al. 2020 (DDPM, arXiv 2006.11239), equation 14.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.schedule import log_normal_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.policy import flat_mask

KIND = "diffusion"
KINDS = ("diffusion", "window", "mode")
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """Training levels: ln sigma ~ N(log_sigma_mean, log_sigma_std), in normalised action units.

    `vp_levels`: the steps t of a VP policy are drawn `uniform`, as published, or `log_normal`, each level by its share of the law
    above: more than half of a cosine schedule's levels drown an action in noise, where there is little to learn.
    """

    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2
    vp_levels: Literal["uniform", "log_normal"] = "uniform"

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
        loss = (weight[:, None] * mask * (estimate - clean).square()).sum() / draws.process_mean(mask.sum())
        figures = {"loss": loss.item(), **self.policy.figures()}
        extra = self.policy.regularisation()
        return (loss if extra is None else loss + extra), figures

    def _levels(self, count: int, draws: Draws) -> Tensor:
        levels, sampler, options = self.policy.levels, self.policy.config.sampler, self.options
        if levels is not None and options.vp_levels == "uniform":
            return levels[draws.integers(len(levels), (count,))]
        low, high = (sampler.sigma_min, sampler.sigma_max) if levels is None else (levels[0].item(), levels[-1].item())
        return self.policy.nearest_level(
            log_normal_sigmas(count, options.log_sigma_mean, options.log_sigma_std, low, high, draws)
        )

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the root mean square error of the sampled chunk, both in normalised units."""
        _, figures = self.loss(batch, draws)
        clean = self.policy.from_chunk(batch["actions"])
        sampled = self.policy.generate(batch, draws.normal((len(clean), *self.policy.noise_shape)))
        mask = flat_mask(batch)
        return {**figures, "action_rmse": ((sampled - clean).square() * mask).sum().div(mask.sum()).sqrt().item()}
