# SPDX-License-Identifier: Apache-2.0
"""A diffusion policy whose denoiser is MoDE: a transformer with a mixture of experts, chosen by the noise level.

Source: Reuss et al. 2025 (MoDE, arXiv 2412.12953). The image encoder is the package's own unless a released one is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ros_vdd.errors import ConfigError
from ros_vdd.networks.mode import ModeNetwork, ModeSizes, check_sizes
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy, SamplerConfig
from ros_vdd.policies.mode_deployed import DeployedMode
from ros_vdd.policies.policy import check_heads


@dataclass(frozen=True)
class ModeConfig(DiffusionConfig):
    """Network, sampler and balance of a MoDE policy; the sizes are those of `ModeSizes`.

    `balance_weight` is the weight of the load-balance loss, 1 where all experts are used alike. A dense transformer of the same
    active size has experts 1, top_k 1, and expert_ratio times the top_k it replaces.
    """

    n_obs_steps: int = 1
    horizon: int = 10
    n_action_steps: int = 10
    width: int = 128
    depth: int = 4
    heads: int = 4
    experts: int = 4
    top_k: int = 2
    expert_ratio: float = 4.0
    router: Literal["noise", "token"] = "noise"
    shared_expert: bool = False
    sampled_routing: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    goal_dropout: float = 0.1
    balance_weight: float = 0.01
    sampler: SamplerConfig = SamplerConfig(sigma_min=0.001, sigma_max=80.0, spacing="exponential")

    def __post_init__(self):
        super().__post_init__()
        check_heads(self.width, self.heads)
        if self.balance_weight < 0:
            raise ConfigError(f"'balance_weight' is {self.balance_weight}; expected at least 0")
        if self.process != "ve":
            raise ConfigError(f"'process' is '{self.process}'; a MoDE policy denoises by 've'")
        try:
            check_sizes(self.sizes(action=1))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def sizes(self, **given: int) -> ModeSizes:
        """Return the network's sizes; `given` are those that the robot decides."""
        names = ("horizon", "width", "depth", "heads", "experts", "top_k", "expert_ratio", "router", "shared_expert")
        names += ("sampled_routing",)
        names += ("dropout", "attention_dropout", "goal_dropout")
        return ModeSizes(ticks=self.n_obs_steps, **{n: getattr(self, n) for n in names}, **given)


class ModePolicy(DiffusionPolicy):
    """Denoises a chunk with MoDE; sees the goal where the robot file has one."""

    kind = "mode"

    @property
    def network(self) -> ModeNetwork:
        """Return the network inside the denoiser."""
        return self.denoiser.network

    def _network(self) -> nn.Module:
        robot, vision = self.robot, self.config.vision
        state = robot.state_size + len(robot.angles)
        cameras = len(self.encoders)
        sizes = self.config.sizes(
            action=robot.action_size,
            goal=robot.goal_size,
            cameras=cameras,
            features=vision.features if cameras else 0,
            state=state,
        )
        return ModeNetwork(sizes)

    def condition(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Turn an observation into features `(B, O)`: the goal, then tick by tick the cameras' features and the state."""
        ticks = self.observed_ticks(observation).flatten(1)
        return torch.cat([observation["goal"], ticks], dim=1) if self.robot.goal_size else ticks

    def deployed(self) -> nn.Module:
        """Return the sampler as a straight line, fused where noise alone chooses experts; see `ros_vdd.networks.mode_fused`."""
        return DeployedMode(self).eval()

    def regularisation(self) -> Tensor | None:
        """Return balance_weight times the balance loss of the last training pass; None for a dense network."""
        balance = self.network.balance()
        return None if balance is None else self.config.balance_weight * balance

    def figures(self) -> dict[str, float]:
        """Return the balance and how seldom the least used expert of any layer was chosen, as a share of an even one."""
        balance, usage = self.network.balance(), self.network.usage()
        if balance is None or usage is None:
            return {}
        return {"balance": balance.item(), "least_used": usage.min().item() * usage.shape[1]}
