# SPDX-License-Identifier: Apache-2.0
"""The student: a mixture of Gaussian experts over whole chunks; one evaluation gives every expert's plan and the gate.

    q(a|s) = sum_z q(z|s) N(a; mu_z(s), diag(std_z(s)^2))        one expert = one coherent chunk

Source: Zhou et al. 2024 (VDD, arXiv 2406.12538), section 3; chunks instead of single actions are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ros_vdd.errors import ConfigError
from ros_vdd.networks.mlp import Trunk
from ros_vdd.policies.policy import Policy, PolicyConfig, check_network
from ros_vdd.streams.spec import RobotSpec


class Mixture(NamedTuple):
    """Parameters of a diagonal Gaussian mixture over flat chunks."""

    means: Tensor  # (B, K, D)
    stds: Tensor  # (B, K, D)
    log_gate: Tensor  # (B, K), log-softmax


@dataclass(frozen=True)
class MixtureConfig(PolicyConfig):
    """Sizes of the student; `spread` is the half width of the experts' starting means, `min_std` the narrowest expert."""

    experts: int = 4
    width: int = 512
    depth: int = 3
    dropout: float = 0.0
    gate_width: int = 128
    spread: float = 0.5
    initial_std: float = 0.3
    min_std: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_network(self.width, self.depth, self.dropout)
        if self.experts < 1 or self.gate_width < 1 or not 0 < self.min_std < self.initial_std:
            raise ConfigError("'experts' and 'gate_width' must be at least 1 and 0 < 'min_std' < 'initial_std'")


class MixturePolicy(Policy):
    """Returns all experts' chunks and the log-gate; choosing an expert happens outside, so no random number is inside."""

    kind = "mixture"

    def __init__(self, robot: RobotSpec, config: MixtureConfig):
        super().__init__(robot, config)
        outputs = config.experts * self.chunk_size
        self.trunk = Trunk(self.condition_size, config.width, config.depth, config.dropout)
        self.mean_head = nn.Linear(config.width, outputs)
        self.std_head = nn.Linear(config.width, outputs)
        self.gate = nn.Sequential(
            nn.Linear(config.width, config.gate_width), nn.SiLU(), nn.Linear(config.gate_width, config.experts)
        )
        self._start_spread()

    def _start_spread(self) -> None:
        """Experts start as different constant poses, equally likely, `initial_std` wide (VDD code: bias U[-b, b])."""
        config = self.config
        for layer in (self.mean_head, self.std_head, self.gate[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        pose = torch.rand(config.experts, 1, self.robot.action_size) * 2 - 1
        chunk = pose.expand(-1, config.horizon, -1) * config.spread
        with torch.no_grad():
            self.mean_head.bias.copy_(chunk.reshape(-1))
            self.std_head.bias.fill_(math.log(math.expm1(config.initial_std - config.min_std)))

    def mixture(self, condition: Tensor) -> Mixture:
        """Return the mixture in normalised units for features `(B, O)`; the gate never trains the trunk."""
        hidden = self.trunk(condition)
        shape = (-1, self.config.experts, self.chunk_size)
        stds = nn.functional.softplus(self.std_head(hidden)) + self.config.min_std
        log_gate = self.gate(hidden.detach()).log_softmax(dim=1)
        return Mixture(self.mean_head(hidden).reshape(shape), stds.reshape(shape), log_gate)

    def forward(self, observation: Mapping[str, Tensor], noise: None = None) -> tuple[Tensor, Tensor]:
        """Return every expert's chunk `(B, K, H, A)` in the robot's units and the log-gate `(B, K)`."""
        hidden = self.trunk(self.condition(observation))
        means = self.mean_head(hidden).reshape(-1, self.config.experts, self.chunk_size)
        return self.to_chunk(means), self.gate(hidden).log_softmax(dim=1)


def expert_log_probs(chunk: Tensor, means: Tensor, stds: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ln N(a; mu_z, diag(std_z^2)).

    Args:
        chunk: (B, 1, D) or (B, M, D), normalised.
        means, stds: broadcast against chunk.
        mask: (B, 1, D) with 1 for numbers that count, 0 for padding; None counts all.
    """
    terms = -0.5 * ((chunk - means) / stds).square() - stds.log() - 0.5 * math.log(2 * math.pi)
    return (terms if mask is None else terms * mask).sum(dim=-1)


def responsibilities(log_gate: Tensor, log_probs: Tensor) -> Tensor:
    """Return ln q(z|a,s) = l_z - logsumexp_j l_j with l_j = ln q(j|s) + ln q(a|s,j), over the last axis (VDD equation 7)."""
    return (log_gate + log_probs).log_softmax(dim=-1)
