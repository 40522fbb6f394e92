# SPDX-License-Identifier: Apache-2.0
"""The few-step student: a diffusion policy that reaches a chunk in 1, 2, 4 or 8 evaluations, by the walk it was trained for.

    euler     the plain denoiser on a coarse grid (progressive distillation)
    renoise   clean estimate, fresh noise, clean estimate ... (CD, LCM, DMD2)
    jump      straight from level to level (CTM)

Sources: those of `ros_vdd.diffusion.consistency` and `ros_vdd.diffusion.walks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ros_vdd.diffusion import walks
from ros_vdd.diffusion.consistency import ConsistencyDenoiser, JumpDenoiser
from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.errors import ConfigError
from ros_vdd.networks.mlp import DenoiserMLP, JumpMLP
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy, SamplerConfig


@dataclass(frozen=True)
class FewStepConfig(DiffusionConfig):
    """A diffusion policy's configuration, with the walk of its few steps.

    `grid`: how many levels training divides the range into; `sampler.steps` of them, equally far apart on the grid, are walked.
    `boundary`: a renoising student is the identity at `sampler.sigma_min`, as a consistency function must be.
    """

    walk: Literal["euler", "renoise", "jump"] = "renoise"
    grid: int = 40
    boundary: bool = True
    sampler: SamplerConfig = SamplerConfig(steps=1)

    def __post_init__(self):
        super().__post_init__()
        if self.process != "ve" or self.sampler.solver != "euler":
            raise ConfigError(
                f"'process' is '{self.process}', 'sampler.solver' '{self.sampler.solver}'; a few-step policy walks by 've' and 'euler'"
            )
        if not self.sampler.steps <= self.grid:
            raise ConfigError(f"'sampler.steps' is {self.sampler.steps}; expected at most 'grid' {self.grid}")


class FewStepPolicy(DiffusionPolicy):
    """Denoises a chunk in `sampler.steps` evaluations from unit noise: `(N, H, A)` where it renoises, else `(1, H, A)`."""

    kind = "few_step"

    def _network(self) -> nn.Module:
        config = self.config
        network = JumpMLP if config.walk == "jump" else DenoiserMLP
        return network(self.chunk_size, self.condition_size, config.width, config.depth, config.dropout)

    def _denoiser(self, network: nn.Module) -> nn.Module:
        config = self.config
        if config.walk == "jump":
            return JumpDenoiser(network, config.sigma_data)
        if config.walk == "renoise" and config.boundary:
            return ConsistencyDenoiser(network, config.sigma_data, config.sampler.sigma_min)
        return Denoiser(network, config.sigma_data)

    @property
    def nfe(self) -> int:  # type: ignore[override]
        """Return network evaluations a chunk."""
        return self.config.sampler.steps

    @property
    def grid(self) -> list[float]:
        """Return the levels of training, highest first, then 0: `grid + 1` numbers."""
        sampler = self.config.sampler
        return type(sampler)(**{**vars(sampler), "steps": self.config.grid}).levels()

    @property
    def stops(self) -> list[int]:
        """Return which levels of the grid are walked, `steps` indices from 0."""
        steps = self.config.sampler.steps
        return [round(i * self.config.grid / steps) for i in range(steps)]

    @property
    def noise_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Return (N, H, A) of the unit noise: the start, then one for each renoising."""
        count = self.config.sampler.steps if self.config.walk == "renoise" else 1
        return count, self.config.horizon, self.robot.action_size

    def walk(self, context: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the state `(B, D)` at each of `stops`, and the chunk `(B, D)`.

        Args:
            context: (B, C), from `context`.
            noise: (B, *noise_shape) or (B, N, D), unit.
        """
        config, grid = self.config, self.grid
        sigmas = [grid[i] for i in self.stops] + [0.0]
        noise, bound = noise.flatten(2), 1.0 if config.sampler.clip else None
        ask = lambda x, sigma: self.denoiser(x, sigma, context)  # noqa: E731
        if config.walk == "euler":
            return walks.euler(ask, noise, sigmas, bound)
        if config.walk == "renoise":
            return walks.renoise(ask, noise, sigmas, config.sampler.sigma_min, bound)
        leap = lambda x, sigma, stop: self.denoiser.jump(x, sigma, stop, context)  # noqa: E731
        return walks.jump(leap, noise, sigmas, config.sampler.sigma_min, bound)

    def sample(self, context: Tensor, noise: Tensor, sampler: SamplerConfig | None = None) -> Tensor:
        """Return a normalised flat chunk `(B, D)` from unit noise `(B, *noise_shape)`, by its own walk whatever `sampler` says."""
        return self.walk(context, noise)[1]

    def generate(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return a normalised flat chunk `(B, D)` from an observation and unit noise `(B, *noise_shape)`."""
        return self.sample(self.context(observation), noise)

    @torch.no_grad()
    def warm_start(self, teacher: DiffusionPolicy) -> bool:
        """Copy the network of a teacher, where it is of the same shape but for the stop; return whether it is."""
        mine = self.denoiser.network.state_dict()
        theirs = getattr(teacher.denoiser, "network", nn.Module()).state_dict()
        shared = {k: v for k, v in mine.items() if not k.startswith("stop.")}
        if {k: v.shape for k, v in shared.items()} != {k: v.shape for k, v in theirs.items() if not k.startswith("stop.")}:
            return False
        self.denoiser.network.load_state_dict({**mine, **theirs})
        return True
