# SPDX-License-Identifier: Apache-2.0
"""The student: a mixture of Gaussian experts over whole chunks; one evaluation gives every expert's plan and the gate.

    q(a|s) = sum_z q(z|s) N(a; mu_z(s), Sigma_z(s))        one expert = one coherent chunk

Source: Zhou et al. 2024 (VDD, arXiv 2406.12538), section 3; chunks instead of single actions are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ros_vdd.errors import ConfigError
from ros_vdd.networks.mlp import Trunk
from ros_vdd.networks.transformer import WindowTrunk
from ros_vdd.policies.gaussians import Diagonal, Full, Gaussians, LowRank
from ros_vdd.policies.policy import Policy, PolicyConfig, check_heads, check_network
from ros_vdd.streams.spec import RobotSpec


class Mixture(NamedTuple):
    """A mixture over flat chunks in normalised units."""

    experts: Gaussians
    log_gate: Tensor  # (B, K), log-softmax

    @property
    def means(self) -> Tensor:
        """Return the experts' chunks `(B, K, D)`."""
        return self.experts.mean

    @property
    def stds(self) -> Tensor:
        """Return the experts' standard deviations `(B, K, D)`."""
        return self.experts.stds

    def detach(self) -> Mixture:
        """Return the mixture cut off from the gradient."""
        return Mixture(self.experts.detach(), self.log_gate.detach())

    def joint(self, chunks: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return l_z = ln q(z|s) + ln q(a|s,z) `(B, M, K)` of chunks `(B, M, D)`; `mask` `(B, D)` is 0 for padding."""
        return self.log_gate[:, None] + self.experts.log_prob(chunks, mask)

    def responsibilities(self, chunks: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ln q(z|a,s) = l_z - logsumexp_j l_j `(B, M, K)`, exact however small the densities are (VDD equation 7)."""
        return self.joint(chunks, mask).log_softmax(dim=-1)

    def log_prob(self, chunks: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ln q(a|s) `(B, M)` [nats]."""
        return self.joint(chunks, mask).logsumexp(dim=-1)


class Likelihood(NamedTuple):
    """What a mixture says of a chunk, in the robot's units."""

    log_prob: Tensor  # (B,) [nats], the density of the chunk
    log_responsibilities: Tensor  # (B, K) [nats]
    gate_entropy: Tensor  # (B,) [nats]
    means: Tensor  # (B, K, H, A)
    stds: Tensor  # (B, K, H, A)
    continued: Tensor  # (B, K, H, A), the experts' chunks that begin with the actions that count


@dataclass(frozen=True)
class MixtureConfig(PolicyConfig):
    """Sizes of the student.

    `covariance` of an expert's chunk: independent numbers, `rank` shared directions beside them, or full. `gate` learned, or
    every expert alike. `spread` is the half width of the experts' starting means, `min_std` the narrowest expert. `backbone`: a
    residual MLP over all observations at once, or a causal transformer over the ticks, of `heads` attention heads, read out at
    the newest.
    """

    experts: int = 4
    covariance: Literal["diagonal", "low_rank", "full"] = "diagonal"
    rank: int = 4
    gate: Literal["learned", "uniform"] = "learned"
    backbone: Literal["mlp", "transformer"] = "mlp"
    width: int = 512
    depth: int = 3
    heads: int = 4
    dropout: float = 0.0
    gate_width: int = 128
    spread: float = 0.5
    initial_std: float = 0.3
    min_std: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_network(self.width, self.depth, self.dropout)
        if self.backbone == "transformer":
            check_heads(self.width, self.heads)
        if self.experts < 1 or self.gate_width < 1 or not 0 < self.min_std < self.initial_std:
            raise ConfigError("'experts' and 'gate_width' must be at least 1 and 0 < 'min_std' < 'initial_std'")
        if self.rank < 1:
            raise ConfigError(f"'rank' is {self.rank}; expected at least 1 (covariance: diagonal has no shared directions)")


class MixturePolicy(Policy):
    """Returns all experts' chunks and the log-gate; choosing an expert happens outside, so no random number is inside."""

    kind = "mixture"

    def __init__(self, robot: RobotSpec, config: MixtureConfig):
        super().__init__(robot, config)
        size, experts = self.chunk_size, config.experts
        self.trunk = self._trunk()
        self.mean_head = nn.Linear(config.width, experts * size)
        self.std_head = nn.Linear(config.width, experts * size)
        if config.gate == "learned":
            self.gate = nn.Sequential(
                nn.Linear(config.width, config.gate_width), nn.SiLU(), nn.Linear(config.gate_width, experts)
            )
        coupled = {"diagonal": 0, "low_rank": size * config.rank, "full": size * (size - 1) // 2}[config.covariance]
        if coupled:
            self.coupling_head = nn.Linear(config.width, experts * coupled)
        if config.covariance == "full":
            self.register_buffer("_below", torch.tril_indices(size, size, -1), persistent=False)
        self._start_spread()

    def _trunk(self) -> nn.Module:
        config = self.config
        if config.backbone == "mlp":
            return Trunk(self.condition_size, config.width, config.depth, config.dropout)
        frame = self.tick_size + self.robot.goal_size
        return WindowTrunk(config.n_obs_steps, frame, config.width, config.depth, config.heads, config.dropout)

    @property
    def condition_size(self) -> int:
        """Return O; for a transformer T * (F + G), as each tick has the goal."""
        if self.config.backbone == "mlp":
            return super().condition_size
        return self.config.n_obs_steps * (self.tick_size + self.robot.goal_size)

    def condition(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Turn an observation into features `(B, O)`; for a transformer tick by tick."""
        if self.config.backbone == "mlp":
            return super().condition(observation)
        return self.ticks(observation).flatten(1)

    def _start_spread(self) -> None:
        """Experts start as different constant poses, equally likely, `initial_std` wide (VDD code: bias U[-b, b])."""
        config = self.config
        for layer in (self.mean_head, self.std_head, *([self.gate[-1]] if config.gate == "learned" else [])):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        pose = torch.rand(config.experts, 1, self.robot.action_size) * 2 - 1
        chunk = pose.expand(-1, config.horizon, -1) * config.spread
        with torch.no_grad():
            self.mean_head.bias.copy_(chunk.reshape(-1))
            self.std_head.bias.fill_(math.log(math.expm1(config.initial_std - config.min_std)))
            if config.covariance != "diagonal":
                nn.init.zeros_(self.coupling_head.weight)
                scale = 0.1 * config.initial_std if config.covariance == "low_rank" else 0.0  # U = 0 would be a saddle point
                self.coupling_head.bias.copy_(scale * torch.randn(self.coupling_head.bias.shape))

    def begin_at(self, chunks: Tensor) -> None:
        """Let the experts start at given chunks `(K, D)`, normalised, whatever is observed.

        Raises:
            ConfigError: the experts were trained before, so that a new start would throw them away.
        """
        if self.mean_head.weight.abs().max() > 0:
            raise ConfigError("'initialise' would overwrite the experts that 'start' brings; leave one of the two out")
        with torch.no_grad():
            self.mean_head.bias.copy_(chunks.reshape(-1))

    def mixture(self, condition: Tensor) -> Mixture:
        """Return the mixture in normalised units for features `(B, O)`; the gate never trains the trunk."""
        hidden = self.trunk(condition)
        return Mixture(self._experts(hidden), self._log_gate(hidden.detach()))

    def steady(self, condition: Tensor, mixture: Mixture) -> Mixture:
        """Return the mixture without dropout, of which only the gate can be trained; `mixture` itself where there is no dropout.

        Gate and responsibilities compare experts: dropout would compare them through noise.
        """
        if not self.config.dropout:
            return mixture
        training = self.training
        self.eval()
        with torch.no_grad():
            hidden = self.trunk(condition)
            experts = self._experts(hidden)
        self.train(training)
        return Mixture(experts, self._log_gate(hidden))

    def forward(self, observation: Mapping[str, Tensor], noise: None = None) -> tuple[Tensor, Tensor]:
        """Return every expert's chunk `(B, K, H, A)` in the robot's units and the log-gate `(B, K)`."""
        hidden = self.trunk(self.condition(observation))
        means = self.mean_head(hidden).reshape(-1, self.config.experts, self.chunk_size)
        return self.to_chunk(means), self._log_gate(hidden)

    def likelihood(self, observation: Mapping[str, Tensor], chunk: Tensor, mask: Tensor | None = None) -> Likelihood:
        """Return what the mixture says of a chunk `(B, H, A)` in the robot's units.

        The density in the robot's units is that of the normalised chunk times the Jacobian: ln q(a) - sum_i ln(span_i / 2), span
        high - low. `means` are cut to the data's range, as the robot gets them; the density isn't: it is that of the experts' own
        means, and the chunk may lie anywhere. `mask` `(B, H)` is 1 for the actions that count and 0 for those at the end that are
        integrated out; None counts all.
        """
        mixture = self.mixture(self.condition(observation))
        counts = torch.ones_like(chunk[..., 0]) if mask is None else mask
        flat, given = counts[..., None].expand(chunk.shape).flatten(1), self.from_chunk(chunk)
        joint = mixture.joint(given[:, None], flat)[:, 0]
        half = (self.action_normalizer.high - self.action_normalizer.low) / 2
        shape = (*mixture.means.shape[:2], self.config.horizon, self.robot.action_size)
        return Likelihood(
            joint.logsumexp(dim=1) - counts.sum(dim=1) * half.log().sum(),
            joint.log_softmax(dim=1),
            -(mixture.log_gate.exp() * mixture.log_gate).sum(dim=1),
            self.to_chunk(mixture.means),
            mixture.stds.reshape(shape) * half,
            self.to_chunk(mixture.experts.continued(given, flat)),
        )

    def _experts(self, hidden: Tensor) -> Gaussians:
        config, size = self.config, self.chunk_size
        shape = (-1, config.experts, size)
        means = self.mean_head(hidden).reshape(shape)
        stds = (nn.functional.softplus(self.std_head(hidden)) + config.min_std).reshape(shape)
        if config.covariance == "diagonal":
            return Diagonal(means, stds)
        coupling = self.coupling_head(hidden)
        if config.covariance == "low_rank":
            return LowRank(means, stds, coupling.reshape(*means.shape, config.rank))
        below = torch.zeros(*means.shape, size, dtype=means.dtype, device=means.device)
        below[..., self._below[0], self._below[1]] = coupling.reshape(*means.shape[:2], -1)
        return Full(means, stds.diag_embed() + below)

    def _log_gate(self, hidden: Tensor) -> Tensor:
        if self.config.gate == "uniform":
            return hidden.new_full((len(hidden), self.config.experts), -math.log(self.config.experts))
        return self.gate(hidden).log_softmax(dim=1)
