# SPDX-License-Identifier: Apache-2.0
"""The few-step student: a diffusion policy that reaches a chunk in 1, 2, 4 or 8 evaluations, by the walk it was trained for.

    euler     the plain denoiser on a coarse grid (progressive distillation)
    renoise   clean estimate, fresh noise, clean estimate ... (CD, LCM, DMD2)
    jump      straight from level to level (CTM)
    posterior a Gaussian policy over the levels, whose step sizes are trained (DxMI)

Sources: those of `ros_vdd.diffusion.consistency` and `ros_vdd.diffusion.walks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ros_vdd.bundle import RENOISED
from ros_vdd.diffusion import walks
from ros_vdd.diffusion.consistency import ConsistencyDenoiser, JumpDenoiser
from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.sampling import Known, inpainted
from ros_vdd.errors import ConfigError
from ros_vdd.networks.critic import Critic
from ros_vdd.networks.mlp import DenoiserMLP, JumpMLP
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy, SamplerConfig
from ros_vdd.policies.policy import check_network
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class CriticConfig:
    """Sizes of the network that tells a chunk's energy."""

    width: int = 256
    depth: int = 3

    def __post_init__(self):
        check_network(self.width, self.depth, 0.0)


class Energies(NamedTuple):
    """What a critic says of a chunk."""

    energy: Tensor
    """E(o, a) `(B,)`: low where likely, in a unit that is another for each observation."""
    samples: Tensor
    """E of the policy's own chunks at that observation `(B, M)`: what to compare it with."""


@dataclass(frozen=True)
class FewStepConfig(DiffusionConfig):
    """A diffusion policy's configuration, with the walk of its few steps.

    `grid`: how many levels training divides the range into; `sampler.steps` of them, equally far apart on the grid, are walked.
    `boundary`: a renoising student is the identity at `sampler.sigma_min`, as a consistency function must be.
    `sigma_bound`: the noise of a posterior walk's step stays within this factor of the diffusion's own; 1 keeps it.
    `critic`: its network's sizes, of a student that is trained with one. `guidance`: how far each noised state of a posterior
    walk goes down the critic's value, per unit of the step's noise; a trained student's choice, training never walks by it.
    """

    walk: Literal["euler", "renoise", "jump", "posterior"] = "renoise"
    grid: int = 40
    boundary: bool = True
    sampler: SamplerConfig = SamplerConfig(steps=1)
    sigma_bound: float = 3.0
    critic: CriticConfig | None = None
    guidance: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.process != "ve" or self.sampler.solver != "euler":
            raise ConfigError(
                f"'process' is '{self.process}', 'sampler.solver' '{self.sampler.solver}'; a few-step policy walks by 've' and "
                "'euler'"
            )
        if not self.sampler.steps <= self.grid:
            raise ConfigError(f"'sampler.steps' is {self.sampler.steps}; expected at most 'grid' {self.grid}")
        if self.walk == "posterior" and self.sampler.steps < 2:
            raise ConfigError("'sampler.steps' is 1; expected at least 2: the last step of a 'walk' by 'posterior' adds no noise")
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"'guidance' is {self.guidance}; expected at least 0 (off); above, energies are lowered")
        if self.guidance and (self.walk != "posterior" or self.critic is None):
            raise ConfigError(
                f"'guidance' is {self.guidance}, 'walk' '{self.walk}', 'critic' {'there' if self.critic else 'missing'}; only a "
                "student that walks by 'posterior' and has a critic is guided by it"
            )
        if not self.boundary and self.walk != "renoise":
            raise ConfigError(f"'boundary' is false, 'walk' '{self.walk}'; only a student that walks by 'renoise' has one, leave it out")
        if not self.sigma_bound >= 1:
            raise ConfigError(f"'sigma_bound' is {self.sigma_bound}; expected at least 1, which leaves the steps no freedom")
        if self.sigma_bound != 3.0 and self.walk != "posterior":
            raise ConfigError(
                f"'sigma_bound' is {self.sigma_bound:g}, 'walk' '{self.walk}', which has no noise of its own to bound; leave it out"
            )


def stops(grid: int, steps: int) -> list[int]:
    """Return which of so many levels a walk of so many steps stops at, the highest, 0, first."""
    return [round(i * grid / steps) for i in range(steps)]


class FewStepPolicy(DiffusionPolicy):
    """Denoises a chunk in `sampler.steps` evaluations from unit noise: `(N, H, A)` where it adds noise, else `(1, H, A)`.

    `log_sigma` `(N - 1,)` of a posterior walk is trained beside the network; `critic` isn't asked for a chunk.
    """

    kind = "few_step"

    def __init__(self, robot: RobotSpec, config: FewStepConfig):
        super().__init__(robot, config)
        if config.walk == "posterior":
            levels = self.levels_walked
            own = torch.tensor([walks.posterior_std(now, then) for now, then in zip(levels, levels[1:-1])])
            self.log_sigma = nn.Parameter(own.log())
            self.register_buffer("_own_log_sigma", own.log(), persistent=False)
        if config.critic is not None:
            sizes = config.critic
            self.critic = Critic(
                self.chunk_size, self.condition_size, self.levels_walked, sizes.width, sizes.depth, config.sigma_data
            ).requires_grad_(False)  # a method that trains it has an optimiser for it

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
    def reading(self) -> dict[str, object]:
        config, more = self.config, {}
        if config.walk == "renoise" and config.boundary:
            more = {"boundary": True, "sampler.sigma_min": config.sampler.sigma_min}
        elif config.walk == "jump":
            more = {"walk": "jump"}
        elif config.walk == "posterior":
            more = {"sigma_bound": config.sigma_bound, "sampler": " ".join(f"{level:.4g}" for level in self.levels_walked)}
        return {**super().reading, **more}

    @property
    def grid(self) -> list[float]:
        """Return the levels of training, highest first, then 0: `grid + 1` numbers."""
        return replace(self.config.sampler, steps=self.config.grid).levels()

    @property
    def stops(self) -> list[int]:
        """Return which levels of the grid are walked, `steps` indices from 0."""
        return stops(self.config.grid, self.config.sampler.steps)

    @property
    def levels_walked(self) -> list[float]:
        """Return the levels at `stops`, highest first, then 0: `steps + 1` numbers."""
        return [self.grid[i] for i in self.stops] + [0.0]

    def bounded(self, log_sigma: Tensor) -> Tensor:
        """Return ln sigma `(N - 1,)` of a posterior walk's steps within `sigma_bound` of the diffusion's own."""
        free = math.log(self.config.sigma_bound)
        return torch.clamp(log_sigma, self._own_log_sigma - free, self._own_log_sigma + free)

    @property
    def noise_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Return (N, H, A) of the unit noise: the start, then one for each time that noise is added."""
        count = self.config.sampler.steps if self.config.walk in RENOISED else 1
        return count, self.config.horizon, self.robot.action_size

    def walk(self, context: Tensor, noise: Tensor, guidance: float = 0.0, known: Known | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the state `(B, D)` at each of `stops`, and the chunk `(B, D)`.

        Args:
            context: (B, C), from `context`.
            noise: (B, *noise_shape) or (B, N, D), unit.
            guidance: of a posterior walk by the critic.
            known: what the chunk is to be where it is certain.
        """
        config, sigmas = self.config, self.levels_walked
        noise, bound = noise.flatten(2), 1.0 if config.sampler.clip else None
        ask = inpainted(lambda x, sigma: self.denoiser(x, sigma, context), known)
        if config.walk == "euler":
            return walks.euler(ask, noise, sigmas, bound)
        if config.walk == "renoise":
            return walks.renoise(ask, noise, sigmas, config.sampler.sigma_min, bound)
        if config.walk == "posterior":
            downhill = self._slope(context) if guidance else None
            return walks.posterior(ask, noise, sigmas, self.bounded(self.log_sigma).exp(), bound, downhill, guidance)
        leap = walks.inpainted_jump(lambda x, sigma, stop: self.denoiser.jump(x, sigma, stop, context), known)
        return walks.jump(leap, noise, sigmas, config.sampler.sigma_min, bound)

    def _slope(self, context: Tensor) -> walks.Slope:
        counts = torch.ones_like(context[:, :1]).expand(-1, self.chunk_size)
        return lambda x, step: self.critic.slope(x, torch.full_like(x[:, 0], step, dtype=torch.long), context, counts)

    def sample(
        self, context: Tensor, noise: Tensor, sampler: SamplerConfig | None = None, known: Known | None = None
    ) -> Tensor:
        """Return a normalised flat chunk `(B, D)` from unit noise `(B, *noise_shape)`, in which `known` stands.

        By its own walk whatever `sampler` says, with its `guidance`.
        """
        chunk = self.walk(context, noise, self.config.guidance, known)[1]
        return chunk if known is None else torch.where(known.mask > 0, known.chunk, chunk)

    def generate(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return a normalised flat chunk `(B, D)` from an observation and unit noise `(B, *noise_shape)`."""
        return self.sample(self.context(observation), noise, known=self.known(observation))

    def energy(self, observation: Mapping[str, Tensor], chunk: Tensor, mask: Tensor, noise: Tensor) -> Energies:
        """Return the energies of chunks `(B, H, A)` in the robot's units and of M chunks of its own at each observation.

        Args:
            mask: (B, H), 1 for the actions that count.
            noise: (B, M, *noise_shape), unit.
        """
        context, count = self.context(observation), noise.shape[1]
        counts = mask[:, :, None].expand(chunk.shape).flatten(1)
        wide, counted = (v[:, None].expand(-1, count, -1).flatten(0, 1) for v in (context, counts))
        own = self.sample(wide, noise.flatten(0, 1)).clamp(-1, 1)
        samples = self.critic.energy(own, wide, counted).unflatten(0, (-1, count))
        return Energies(self.critic.energy(self.from_chunk(chunk), context, counts), samples)

    @torch.no_grad()
    def resembles(self, teacher: DiffusionPolicy) -> bool:
        """Return whether the network of a teacher means the same and is of the same shape but for the stop.

        That of a VP teacher tells the noise instead of the chunk.
        """
        if type(teacher.denoiser) is not Denoiser or teacher.denoiser.sigma_data != self.config.sigma_data:
            return False
        mine, theirs = ({k: v.shape for k, v in p.denoiser.network.state_dict().items() if not k.startswith("stop.")} for p in (self, teacher))
        return mine == theirs

    def warm_start(self, teacher: DiffusionPolicy) -> bool:
        """Copy the network of a teacher that it resembles; return whether it does."""
        if not self.resembles(teacher):
            return False
        self.denoiser.network.load_state_dict({**self.denoiser.network.state_dict(), **teacher.denoiser.network.state_dict()})
        return True
