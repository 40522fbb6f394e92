# SPDX-License-Identifier: Apache-2.0
"""The teacher: a diffusion policy over whole action chunks, EDM (variance exploding) or DDPM (variance preserving).

Source: Chi et al. 2023 (Diffusion Policy, arXiv 2303.04137) for the chunks, Karras et al. 2022 (EDM, arXiv 2206.00364) for
the denoiser, `ros_vdd.diffusion.vp` for DDPM. Differs from the first: an MLP over the flattened chunk, deterministic samplers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import SOLVERS, Known, evaluations, inpainted, reflected
from ros_vdd.diffusion.schedule import exponential_sigmas, karras_sigmas
from ros_vdd.diffusion.vp import VpDenoiser, ddim_sigmas, equivalent_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.networks.mlp import DenoiserMLP
from ros_vdd.policies.policy import Policy, PolicyConfig, check_network, flat_mask
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class SamplerConfig:
    """The deterministic sampler; levels in normalised action units.

    A VP policy takes `steps` of its own levels, beginning at the highest up to `start` (None: the top one); `sigma_min`,
    `sigma_max`, `spacing` and `rho` are for VE. `spacing`: "karras" with `rho`, or "exponential", in equal ratios. `clip` cuts
    every clean estimate to the range of the recorded actions.
    """

    solver: Literal["euler", "heun"] = "euler"
    steps: int = 10
    sigma_min: float = 0.01
    sigma_max: float = 20.0
    rho: float = 7.0
    start: float | None = None
    spacing: Literal["karras", "exponential"] = "karras"
    clip: bool = True

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise ConfigError("'steps' must be at least 1, 0 < 'sigma_min' < 'sigma_max' and 'rho' above 0")
        if self.spacing == "exponential" and self.rho != 7.0:
            raise ConfigError(f"'rho' is {self.rho:g}, 'spacing' 'exponential', which has no rho; leave it out, or take spacing: karras")

    def levels(self) -> list[float]:
        """Return the levels of a VE policy, highest first, then 0."""
        if self.spacing == "exponential":
            return exponential_sigmas(self.steps, self.sigma_min, self.sigma_max)
        return karras_sigmas(self.steps, self.sigma_min, self.sigma_max, self.rho)


@dataclass(frozen=True)
class DiffusionConfig(PolicyConfig):
    """Network, noise process and sampler of a diffusion policy.

    `process`: "ve" is EDM with any noise level; "vp" is DDPM with `vp_steps` (T) discrete levels. `sigma_data`: standard
    deviation of normalised actions.
    """

    width: int = 256
    depth: int = 4
    dropout: float = 0.0
    sigma_data: float = 0.5
    sampler: SamplerConfig = SamplerConfig()
    process: Literal["ve", "vp"] = "ve"
    vp_steps: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_network(self.width, self.depth, self.dropout)
        if self.sigma_data <= 0:
            raise ConfigError(f"'sigma_data' is {self.sigma_data}; expected above 0")
        if self.vp_steps < 2:
            raise ConfigError(f"'vp_steps' is {self.vp_steps}; expected at least 2")
        if self.process == "vp":
            check_vp_sampler(self.sampler, self.vp_steps)
        elif self.sampler.start is not None:
            raise ConfigError(
                f"'sampler.start' is {self.sampler.start:g}, 'process' 've', which begins at 'sampler.sigma_max' {self.sampler.sigma_max:g}; "
                "set that one instead"
            )


def check_vp_sampler(sampler: SamplerConfig, vp_steps: int) -> None:
    """Refuse a sampler that a VP policy can't follow.

    At the top level (sigma 325 of 16 steps) an epsilon network's clean estimate is all but noise. Euler's rule forgets it, Heun's
    carries it on, times half the ratio of the two highest levels.

    Raises:
        ConfigError: more steps than levels, or Heun's rule.
    """
    start = math.inf if sampler.start is None else sampler.start
    levels = sum(sigma <= start for sigma in equivalent_sigmas(vp_steps))
    if sampler.steps > levels:
        below = "" if sampler.start is None else f" up to 'sampler.start' {start:g}"
        raise ConfigError(
            f"'sampler.steps' is {sampler.steps}; a VP policy of 'vp_steps' {vp_steps} has no more than {levels} levels{below}"
        )
    if sampler.solver != "euler":
        raise ConfigError(f"'sampler.solver' is '{sampler.solver}'; a VP policy samples by 'euler', which is DDIM")


class DiffusionPolicy(Policy):
    """Denoises a chunk from given unit noise; the same noise gives the same chunk on every engine."""

    kind = "diffusion"

    def __init__(self, robot: RobotSpec, config: DiffusionConfig):
        super().__init__(robot, config)
        self.denoiser = self._denoiser(self._network())

    def _network(self) -> nn.Module:
        config = self.config
        return DenoiserMLP(self.chunk_size, self.condition_size, config.width, config.depth, config.dropout)

    def _denoiser(self, network: nn.Module) -> nn.Module:
        config = self.config
        if config.process == "vp":
            return VpDenoiser(network, config.vp_steps, config.sigma_data)
        return Denoiser(network, config.sigma_data)

    @property
    def nfe(self) -> int:  # type: ignore[override]
        """Return network evaluations a chunk."""
        return evaluations(self.config.sampler.solver, self.config.sampler.steps)

    @property
    def reading(self) -> dict[str, object]:
        config = self.config
        return {"process": config.process, "sigma_data": config.sigma_data, **({"vp_steps": config.vp_steps} if config.process == "vp" else {})}

    @property
    def levels(self) -> Tensor | None:
        """Return the ascending noise levels `(T,)` that a VP network knows; None where any level will do."""
        return self.denoiser.levels if self.config.process == "vp" else None

    def nearest_level(self, sigma: Tensor) -> Tensor:
        """Return the level that the network takes each of sigma `(B,)` for: the nearest of `levels` in ln sigma, or itself."""
        return sigma if self.levels is None else self.levels[self.denoiser.step(sigma)]

    def context(self, batch: Mapping[str, Tensor], draws: Draws | None = None) -> Tensor:
        """Return what a score depends on beside action and level, `(B, C)`: flat, to be repeated for each expert and sample.

        `draws` gives what a policy draws for a context, once a row; this kind draws nothing.
        """
        return self.condition(batch)

    @torch.no_grad()
    def score(self, a: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return grad_a log p(a; sigma | observation) `(B, D)` of the data smoothed by N(0, sigma^2), detached.

        Args:
            a: (B, D), clean or noised, normalised.
            sigma: (B,), in normalised units; a VP policy takes the nearest of its `levels`.
            context: (B, C), from `context`.
        """
        return self._ask(self.denoiser.score, a, sigma, context)

    @torch.no_grad()
    def clean(self, a: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return clean estimates `(B, D)` of chunks noised at levels sigma `(B,)`, cut to [-1, 1] where `sampler.clip`; detached.

        It is a + sigma^2 score(a), Tweedie's formula, so any policy with a score has one. Between the levels of a VP policy the score
        of the nearest one, s, is taken (sd^2 + s^2) / (sd^2 + sigma^2) times: exact where actions are N(0, sd^2).
        """
        known, spread = self.nearest_level(sigma), self.config.sigma_data**2
        step = sigma.square() * ((spread + known.square()) / (spread + sigma.square()))
        estimate = a + step[:, None] * self.score(a, sigma, context)
        return reflected(estimate, 1.0 if self.config.sampler.clip else None)

    @torch.no_grad()
    def released_score(self, a: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return the score by the rule of the VDD authors' code `(B, D)`: for VP biased, see `VpDenoiser`; for VE `score`."""
        rule = self.denoiser.released_score if self.config.process == "vp" else self.denoiser.score
        return self._ask(rule, a, sigma, context)

    def _ask(self, rule: Callable[..., Tensor], a: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return what a rule of the denoiser says about chunks `(B, D)` under a context."""
        return rule(a, sigma, context)

    def targets(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the denoiser learns to restore, normalised `(B, N)`, and 1 where it was recorded `(B, N)`."""
        return self.from_chunk(batch["actions"]), flat_mask(batch)

    def restore(self, noised: Tensor, sigma: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the clean estimate `(B, N)` of noised `targets` at levels sigma `(B,)`, and each level's loss weight `(B,)`."""
        return self.denoiser(noised, sigma, self.condition(batch)), self.denoiser.loss_weight(sigma)

    def regularisation(self) -> Tensor | None:
        """Return what a network adds to its loss for its own sake, after a training pass; None for nothing."""
        return None

    def figures(self) -> dict[str, float]:
        """Return what a network tells of its last training pass, for the log."""
        return {}

    def sample(
        self, context: Tensor, noise: Tensor, sampler: SamplerConfig | None = None, known: Known | None = None
    ) -> Tensor:
        """Denoise unit noise `(B, D)` under a context `(B, C)` to a normalised flat chunk `(B, D)` in [-1, 1], in which `known` stands."""
        how = sampler or self.config.sampler
        if self.config.process == "vp":
            check_vp_sampler(how, self.config.vp_steps)
            sigmas = ddim_sigmas(how.steps, self.config.vp_steps, math.inf if how.start is None else how.start)
        else:
            sigmas = how.levels()
        bound = 1.0 if how.clip else None
        ask = inpainted(lambda x, s: self._ask(self.denoiser, x, s, context), known)
        return SOLVERS[how.solver](ask, noise, sigmas, bound)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Return (H, A), what `generate` and `forward` take of unit noise."""
        return self.config.horizon, self.robot.action_size

    def generate(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return a normalised flat chunk `(B, D)` from an observation and unit noise `(B, *noise_shape)`."""
        return self.sample(self.context(observation), noise.flatten(1), known=self.known(observation))

    def known(self, observation: Mapping[str, Tensor]) -> Known | None:
        """Return the certain actions "prefix" `(B, H, A)`, in the robot's units, of "prefix_mask" `(B, H)`; None where none are given."""
        if "prefix" not in observation:
            return None
        prefix, mask = observation["prefix"], observation["prefix_mask"]
        return Known(self.from_chunk(prefix), mask[:, :, None].expand(prefix.shape).flatten(1))

    def forward(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return a chunk `(B, H, A)` in the robot's units from an observation and unit noise `(B, *noise_shape)`.

        With "prefix" and "prefix_mask" in the observation the chunk begins with what is certain and goes on from there.
        """
        return self.to_chunk(self.generate(observation, noise))
