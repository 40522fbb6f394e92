# SPDX-License-Identifier: Apache-2.0
"""Train a mixture on demonstrations alone by maximum likelihood (generalised EM), the baseline and the start of VDD.

    L = -E log sum_z q(z|s) q(a|s,z)

Its gradient is the responsibility-weighted one of EM's M-step: grad log sum_z e^{l_z} = sum_z q(z|a,s) grad l_z (Dempster et al.
1977). The trunk isn't trained by the gate, as in VDD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.methods._start import start_experts
from ros_vdd.policies.mixture import Mixture, MixturePolicy
from ros_vdd.policies.policy import flat_mask

KIND = "mixture"
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """`temperature` > 1 softens responsibilities at the start and falls to 1 by `anneal`, so that no expert dies early.

    `initialise`: the experts begin as `spread` poses, or at the `kmeans` centres of recorded chunks.
    """

    temperature: float = 30.0
    anneal: float = 0.3
    initialise: Literal["spread", "kmeans"] = "spread"

    def __post_init__(self):
        if self.temperature < 1 or self.anneal <= 0:
            raise ConfigError(f"'temperature' {self.temperature} must be at least 1, 'anneal' {self.anneal} above 0")


class Method:
    """Maximum likelihood of recorded chunks under the mixture."""

    def __init__(self, options: Options, policy: MixturePolicy, teacher: None = None):
        self.options, self.policy = options, policy

    def prepare(self, data, draws: Draws) -> None:
        """Put the experts where `initialise` says, before the first step."""
        start_experts(self.policy, self.options.initialise, data, draws)

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 1.0) -> tuple[Tensor, dict]:
        """Return EM's surrogate [nats], which has the gradient of the negative log-likelihood once the temperature is 1."""
        joint, mixture = self._joint(batch)
        heat = 1 + (self.options.temperature - 1) * max(0.0, 1 - progress / self.options.anneal)
        shares = (joint.detach() / heat).softmax(dim=1)
        loss = -(shares * joint).sum(dim=1).mean()
        likelihood = joint.detach().logsumexp(dim=1).mean().item()
        return loss, {"loss": loss.item(), "log_likelihood": likelihood, **usage(mixture.log_gate)}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the exact negative log-likelihood [nats] and the root mean square error of the likeliest expert's mean."""
        joint, mixture = self._joint(batch)
        loss = -joint.logsumexp(dim=1).mean().item()
        return {"loss": loss, "action_rmse": best_expert_rmse(self.policy, batch), **usage(mixture.log_gate)}

    def _joint(self, batch: dict[str, Tensor]) -> tuple[Tensor, Mixture]:
        mixture = self.policy.mixture(self.policy.condition(batch))
        return mixture.joint(self.policy.from_chunk(batch["actions"])[:, None], flat_mask(batch))[:, 0], mixture


def usage(log_gate: Tensor) -> dict[str, float]:
    """Return how the gate uses the experts: mean entropy [nats], the least used one's share, and how many are dead.

    An expert counts as dead when its mean share is below a twentieth of an even share.
    """
    gate = log_gate.detach().exp()
    entropy = -(gate * log_gate.detach()).sum(dim=1).mean().item()
    shares = gate.mean(dim=0)
    dead = (shares < 0.05 / len(shares)).sum().item()
    return {"gate_entropy": entropy, "least_used": shares.min().item(), "dead_experts": float(dead)}


def best_expert_rmse(policy: MixturePolicy, batch: dict[str, Tensor]) -> float:
    """Return the root mean square error of the gate's favourite expert, in normalised units."""
    mixture = policy.mixture(policy.condition(batch))
    favourite = mixture.means[torch.arange(len(mixture.means)), mixture.log_gate.argmax(dim=1)]
    mask = flat_mask(batch)
    error = (favourite - policy.from_chunk(batch["actions"])).square() * mask
    return error.sum().div(mask.sum()).sqrt().item()
