# SPDX-License-Identifier: Apache-2.0
"""Train a mixture on demonstrations alone by maximum likelihood (generalised EM), the baseline and the start of VDD.

    L = -E log sum_z q(z|s) q(a|s,z)

Its gradient is the responsibility-weighted one of EM's M-step: grad log sum_z e^{l_z} = sum_z q(z|a,s) grad l_z (Dempster et al.
1977). The trunk isn't trained by the gate, as in VDD.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.policies.mixture import MixturePolicy, expert_log_probs

KIND = "mixture"
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """`temperature` > 1 softens responsibilities at the start and falls to 1 by `anneal`, so that no expert dies early."""

    temperature: float = 30.0
    anneal: float = 0.3

    def __post_init__(self):
        if self.temperature < 1 or self.anneal <= 0:
            raise ConfigError(f"'temperature' {self.temperature} must be at least 1, 'anneal' {self.anneal} above 0")


class Method:
    """Maximum likelihood of recorded chunks under the mixture."""

    def __init__(self, options: Options, policy: MixturePolicy, teacher: None = None):
        self.options, self.policy = options, policy

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 1.0) -> tuple[Tensor, dict]:
        """Return EM's surrogate [nats], which has the gradient of the negative log-likelihood once the temperature is 1."""
        log_gate, log_probs = self._joint(batch)
        heat = 1 + (self.options.temperature - 1) * max(0.0, 1 - progress / self.options.anneal)
        joint = log_gate + log_probs
        shares = (joint.detach() / heat).softmax(dim=1)
        loss = -(shares * joint).sum(dim=1).mean()
        likelihood = joint.detach().logsumexp(dim=1).mean().item()
        return loss, {"loss": loss.item(), "log_likelihood": likelihood, **usage(log_gate)}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the exact negative log-likelihood [nats] and the root mean square error of the likeliest expert's mean."""
        log_gate, log_probs = self._joint(batch)
        loss = -(log_gate + log_probs).logsumexp(dim=1).mean().item()
        return {"loss": loss, "action_rmse": best_expert_rmse(self.policy, batch), **usage(log_gate)}

    def _joint(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        mixture = self.policy.mixture(self.policy.condition(batch))
        chunk, mask = self.policy.from_chunk(batch["actions"]), flat_mask(batch)
        return mixture.log_gate, expert_log_probs(chunk[:, None], mixture.means, mixture.stds, mask[:, None])


def flat_mask(batch: dict[str, Tensor]) -> Tensor:
    """Return the padding mask `(B, D)` of flattened chunks."""
    return batch["mask"][:, :, None].expand(batch["actions"].shape).flatten(1)


def usage(log_gate: Tensor) -> dict[str, float]:
    """Return how the gate uses the experts: its mean entropy [nats] and the smallest expert's share."""
    gate = log_gate.detach().exp()
    entropy = -(gate * log_gate.detach()).sum(dim=1).mean().item()
    return {"gate_entropy": entropy, "least_used": gate.mean(dim=0).min().item()}


def best_expert_rmse(policy: MixturePolicy, batch: dict[str, Tensor]) -> float:
    """Return the root mean square error of the gate's favourite expert, in normalised units."""
    mixture = policy.mixture(policy.condition(batch))
    favourite = mixture.means[torch.arange(len(mixture.means)), mixture.log_gate.argmax(dim=1)]
    mask = flat_mask(batch)
    error = (favourite - policy.from_chunk(batch["actions"])).square() * mask
    return error.sum().div(mask.sum()).sqrt().item()
