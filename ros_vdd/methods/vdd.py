# SPDX-License-Identifier: Apache-2.0
"""Variational Diffusion Distillation: a mixture learns a diffusion teacher through the teacher's score alone.

For each expert z, with a = mu_z + std_z n, D numbers in a chunk and sg = stop-gradient:

    L_experts = -1/D sum_z sg[q(z|s)] ( sg[g(a, s)]^T a + ln q~(z|a,s) + H(q(.|s,z)) )      g = (D(a; s, sigma) - a) / sigma^2
    L_gate    = -sum_z sg[q~(z|a*,s)] ln q(z|s)                                          a* a recorded (or the teacher's) chunk
    ln q~(z|a,s) = l_z - logsumexp_j l_j                                                 parameters inside q~ are detached

Source: Zhou et al. 2024 (VDD, arXiv 2406.12538), section 3 and algorithm 1. Differs: whole chunks (our own), responsibilities by
log-sum-exp, one optimiser step for both losses, a floor under the gate weight so that no expert starves, and "matched" noise:
samples, entropy and responsibilities are taken from N(mu, std^2 + sigma^2), so that smoothed student meets smoothed teacher and the
optimum is the teacher itself (our own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.schedule import log_uniform_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.methods.em import best_expert_rmse, flat_mask, usage
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.mixture import Mixture, MixturePolicy, expert_log_probs, responsibilities

KIND = "mixture"
NEEDS_TEACHER = True


@dataclass(frozen=True)
class Options:
    """Samples an expert and the teacher's noise levels, in normalised action units.

    `targets`: the chunks a* that gate and likelihood learn from, recorded ones or ones that the teacher samples.
    `observation_noise` moves joint states and cached features by N(0, observation_noise^2) of half their range, alike in all
    ticks of a history, where the experts meet the teacher: the teacher answers anywhere, demonstrations are few.
    """

    samples: int = 2
    sigma_min: float = 0.1
    sigma_max: float = 0.5
    noise: Literal["matched", "clean"] = "matched"
    gate_floor: float = 0.02
    expert_weight: float = 1.0
    gate_weight: float = 1.0
    likelihood_weight: float = 0.0
    targets: Literal["recorded", "teacher"] = "recorded"
    observation_noise: float = 0.0

    def __post_init__(self):
        if self.samples < 1 or not 0 < self.sigma_min <= self.sigma_max:
            raise ConfigError("'samples' must be at least 1 and 0 < 'sigma_min' <= 'sigma_max'")
        if not 0 <= self.gate_floor < 1:
            raise ConfigError(f"'gate_floor' is {self.gate_floor}; expected 0 up to below 1")
        for name in ("expert_weight", "gate_weight", "likelihood_weight", "observation_noise"):
            if getattr(self, name) < 0:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected at least 0")


class Method:
    """VDD of a mixture policy from a frozen diffusion teacher; both see the same observations."""

    def __init__(self, options: Options, policy: MixturePolicy, teacher: DiffusionPolicy):
        self.options, self.policy, self.teacher = options, policy, teacher

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return expert_weight L_experts + gate_weight L_gate + likelihood_weight L_EM."""
        options, moved = self.options, self._moved(batch, draws)
        mixture = self.policy.mixture(self.policy.condition(moved))
        with torch.no_grad():
            condition = self.teacher.condition(moved)
        experts = self._experts(mixture, condition, draws) if options.expert_weight else mixture.means.new_zeros(())
        if options.targets == "teacher":
            chunk, mask, answer = self._sampled(condition, draws), None, mixture
        else:
            chunk, mask = self.policy.from_chunk(batch["actions"]), flat_mask(batch)[:, None]
            answer = mixture if moved is batch else self.policy.mixture(self.policy.condition(batch))
        gate, likelihood = _towards(chunk, mask, answer)
        loss = options.expert_weight * experts + options.gate_weight * gate + options.likelihood_weight * likelihood
        figures = {"loss": loss.item(), "experts": experts.item(), "gate": gate.item(), "likelihood": -likelihood.item()}
        return loss, {**figures, "std": mixture.stds.detach().mean().item(), **usage(mixture.log_gate)}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the root mean square error of the favourite expert against the recorded chunk."""
        _, figures = self.loss(batch, draws)
        return {**figures, "action_rmse": best_expert_rmse(self.policy, batch)}

    def _moved(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Return the batch with observations moved by `observation_noise`, or itself where that is 0."""
        if not self.options.observation_noise:
            return batch
        moved = dict(batch)
        for name in sorted({"features", "state"} & batch.keys()):
            size = self.options.observation_noise * draws.normal(batch[name][:, :1].shape)
            units = self.policy.state_normalizer
            moved[name] = batch[name] + (size * (units.high - units.low) / 2 if name == "state" else size)
        return moved

    def _experts(self, mixture: Mixture, condition: Tensor, draws: Draws) -> Tensor:
        """Return L_experts; samples have shape (B, K, V, D)."""
        batch, experts, size = mixture.means.shape
        shape = (batch, experts, self.options.samples, size)
        sigma = log_uniform_sigmas(batch, self.options.sigma_min, self.options.sigma_max, draws)
        added = sigma if self.options.noise == "matched" else torch.zeros_like(sigma)
        stds = (mixture.stds.square() + added[:, None, None].square()).sqrt()
        chunks = mixture.means[:, :, None] + stds[:, :, None] * draws.normal(shape)
        score = self._score(chunks.detach(), sigma, condition)
        repulsion = self._log_responsibility(chunks, mixture, stds)
        entropy = stds.log().sum(dim=-1) + size * (0.5 + 0.5 * math.log(2 * math.pi))
        value = ((score * chunks).sum(dim=-1) + repulsion).mean(dim=2) + entropy
        floor = self.options.gate_floor
        weight = (1 - floor) * mixture.log_gate.detach().exp() + floor / experts
        return -(weight * value).sum(dim=1).mean() / size

    def _score(self, chunks: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        batch, experts, samples, size = chunks.shape
        many = experts * samples
        score = self.teacher.denoiser.score(
            chunks.reshape(-1, size), sigma.repeat_interleave(many), condition.repeat_interleave(many, dim=0)
        )
        return score.reshape(chunks.shape)

    def _log_responsibility(self, chunks: Tensor, mixture: Mixture, stds: Tensor) -> Tensor:
        """Return ln q~(z|a,s) of each expert's own samples `(B, K, V)`; gradients flow through the samples only."""
        means, stds, log_gate = mixture.means.detach(), stds.detach(), mixture.log_gate.detach()
        log_probs = expert_log_probs(chunks[:, :, :, None], means[:, None, None], stds[:, None, None])  # (B, K, V, K')
        own = responsibilities(log_gate[:, None, None], log_probs)
        return own.diagonal(dim1=1, dim2=3).transpose(1, 2)

    @torch.no_grad()
    def _sampled(self, condition: Tensor, draws: Draws) -> Tensor:
        """Return a chunk `(B, D)` of the teacher for each observation, by its own sampler."""
        return self.teacher.sample(condition, draws.normal((len(condition), self.policy.chunk_size)))


def _towards(chunk: Tensor, mask: Tensor | None, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Return the gate's cross-entropy and the mixture's negative log-likelihood a number, on chunks `(B, D)`."""
    log_probs = expert_log_probs(chunk[:, None], mixture.means, mixture.stds, mask)
    shares = responsibilities(mixture.log_gate, log_probs).exp().detach()
    gate = -(shares * mixture.log_gate).sum(dim=1).mean()
    likelihood = -(mixture.log_gate + log_probs).logsumexp(dim=1).mean() / mixture.means.shape[-1]
    return gate, likelihood
