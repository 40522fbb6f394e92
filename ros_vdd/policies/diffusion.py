# SPDX-License-Identifier: Apache-2.0
"""The teacher: an EDM diffusion policy over whole action chunks.

Source: Chi et al. 2023 (Diffusion Policy, arXiv 2303.04137) for the chunks, Karras et al. 2022 (EDM, arXiv 2206.00364) for
the denoiser. Differs from the former: EDM preconditioning, an MLP over the flattened chunk, deterministic samplers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.sampling import SOLVERS, evaluations
from ros_vdd.diffusion.schedule import karras_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.networks.mlp import DenoiserMLP
from ros_vdd.policies.policy import Policy, PolicyConfig, check_network
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class SamplerConfig:
    """The deterministic sampler; levels in normalised action units."""

    solver: Literal["euler", "heun"] = "euler"
    steps: int = 10
    sigma_min: float = 0.01
    sigma_max: float = 20.0
    rho: float = 7.0

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise ConfigError("'steps' must be at least 1, 0 < 'sigma_min' < 'sigma_max' and 'rho' above 0")


@dataclass(frozen=True)
class DiffusionConfig(PolicyConfig):
    """Network and sampler of a diffusion policy."""

    width: int = 256
    depth: int = 4
    dropout: float = 0.0
    sigma_data: float = 0.5
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self):
        super().__post_init__()
        check_network(self.width, self.depth, self.dropout)
        if self.sigma_data <= 0:
            raise ConfigError(f"'sigma_data' is {self.sigma_data}; expected above 0")


class DiffusionPolicy(Policy):
    """Denoises a chunk from given unit noise; the same noise gives the same chunk on every engine."""

    kind = "diffusion"

    def __init__(self, robot: RobotSpec, config: DiffusionConfig):
        super().__init__(robot, config)
        network = DenoiserMLP(self.chunk_size, self.condition_size, config.width, config.depth, config.dropout)
        self.denoiser = Denoiser(network, config.sigma_data)

    @property
    def nfe(self) -> int:  # type: ignore[override]
        """Return network evaluations a chunk."""
        return evaluations(self.config.sampler.solver, self.config.sampler.steps)

    def sample(self, condition: Tensor, noise: Tensor, sampler: SamplerConfig | None = None) -> Tensor:
        """Denoise unit noise `(B, D)` under features `(B, O)` to a normalised flat chunk `(B, D)` in [-1, 1]."""
        how = sampler or self.config.sampler
        sigmas = karras_sigmas(how.steps, how.sigma_min, how.sigma_max, how.rho)
        return SOLVERS[how.solver](lambda x, s: self.denoiser(x, s, condition), noise, sigmas, bound=1.0)

    def forward(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return a chunk `(B, H, A)` in the robot's units from an observation and unit noise `(B, H, A)`."""
        return self.to_chunk(self.sample(self.condition(observation), noise.flatten(1)))
