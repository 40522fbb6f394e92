# SPDX-License-Identifier: Apache-2.0
"""Variational Diffusion Distillation: a mixture learns a diffusion teacher through the teacher's score alone.

For each expert z, with a = mu_z + L_z n, D numbers in a chunk and sg = stop-gradient:

    L_experts = -1/D sum_z sg[q(z|s)] ( sg[g(a, s)]^T a + ln q~(z|a,s) + H(q(.|s,z)) )   teacher: g = grad_a ln p(a; sigma | s)
    L_gate    = -sum_z sg[q~(z|a*,s)] ln q(z|s)                                          a* a recorded (or the teacher's) chunk
    ln q~(z|a,s) = l_z - logsumexp_j l_j                                                 parameters inside q~ are detached

Source: Zhou et al. 2024 (VDD, arXiv 2406.12538), section 3 and algorithm 1. Differs: whole chunks (our own), responsibilities by
log-sum-exp, one optimiser step for both losses, a floor under the gate weight so that no expert starves, and "matched" noise:
samples, entropy and responsibilities are taken from N(mu, Sigma + sigma^2 I), so that smoothed student meets smoothed teacher and
the optimum is the teacher itself (our own).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.schedule import log_uniform_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.methods._start import start_experts
from ros_vdd.methods._teacher import require_any_level
from ros_vdd.methods.em import best_expert_rmse, usage
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.mixture import Mixture, MixturePolicy
from ros_vdd.policies.policy import flat_mask

KIND = "mixture"
NEEDS_TEACHER = True


@dataclass(frozen=True)
class Options:
    """Samples an expert and the teacher's noise levels, in normalised action units.

    `levels`: how the level is drawn between `sigma_min` and `sigma_max`: `log_uniform`, `uniform`, `fixed` (at `sigma_min`) or
    `anneal` (falling linearly from `sigma_max` to `sigma_min`); of a VP teacher, which knows some levels only, those between.
    `noise`: `matched` compares the smoothed student with the smoothed teacher, `clean` asks about clean samples, as published.
    `score_rule`: `released` is the official code's rule for VP teachers, which is biased; for comparison.
    `initialise`: where the experts begin: `spread` poses, `kmeans` of recorded chunks, or of chunks of the `teacher`.
    `targets`: the chunks a* that gate and likelihood learn from, recorded ones or ones that the teacher samples.
    `observation_noise` moves joint states and cached features by N(0, observation_noise^2) of half their range, alike in all
    ticks of a history, where the experts meet the teacher: the teacher answers anywhere, demonstrations are few.
    """

    samples: int = 2
    sigma_min: float = 0.1
    sigma_max: float = 0.5
    levels: Literal["log_uniform", "uniform", "fixed", "anneal"] = "log_uniform"
    noise: Literal["matched", "clean"] = "matched"
    score_rule: Literal["corrected", "released"] = "corrected"
    initialise: Literal["spread", "kmeans", "teacher"] = "spread"
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
        require_any_level(teacher, "vdd")
        self.options, self.policy, self.teacher = options, policy, teacher
        self._grid = None if teacher.levels is None else _between(teacher.levels, options.sigma_min, options.sigma_max)
        self._score = teacher.score if options.score_rule == "corrected" else teacher.released_score

    def prepare(self, data, draws: Draws) -> None:
        """Put the experts where `initialise` says, before the first step."""

        def sampled(batch: dict[str, Tensor]) -> Tensor:
            return self._sampled(self.teacher.context(batch, draws), draws)

        chunks = sampled if self.options.initialise == "teacher" else None
        start_experts(self.policy, self.options.initialise, data, draws, chunks)

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return expert_weight L_experts + gate_weight L_gate + likelihood_weight L_EM."""
        options, moved = self.options, self._moved(batch, draws)
        mixture, steady = self._mixtures(moved)
        with torch.no_grad():
            context = self.teacher.context(moved, draws)
        experts = mixture.means.new_zeros(())
        if options.expert_weight:
            experts = self._experts(mixture, steady.detach(), context, draws, progress)
        mask = None
        if options.targets == "teacher":
            chunk = self._sampled(context, draws)
        else:
            chunk, mask = self.policy.from_chunk(batch["actions"]), flat_mask(batch)
            if moved is not batch:
                mixture, steady = self._mixtures(batch)
        gate, likelihood = _towards(chunk, mask, mixture, steady)
        loss = options.expert_weight * experts + options.gate_weight * gate + options.likelihood_weight * likelihood
        figures = {"loss": loss.item(), "experts": experts.item(), "gate": gate.item(), "likelihood": -likelihood.item()}
        return loss, {**figures, "std": mixture.stds.detach().mean().item(), **usage(steady.log_gate)}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the root mean square error of the favourite expert against the recorded chunk."""
        _, figures = self.loss(batch, draws, 1.0)
        return {**figures, "action_rmse": best_expert_rmse(self.policy, batch)}

    def _mixtures(self, batch: dict[str, Tensor]) -> tuple[Mixture, Mixture]:
        """Return the mixture and the one that gate and responsibilities are formed by, which knows no dropout."""
        condition = self.policy.condition(batch)
        mixture = self.policy.mixture(condition)
        return mixture, self.policy.steady(condition, mixture)

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

    def _experts(self, mixture: Mixture, frozen: Mixture, context: Tensor, draws: Draws, progress: float) -> Tensor:
        """Return L_experts; of each expert V samples `(B, K, V, D)` are drawn, and the teacher is asked about all at once."""
        options, experts = self.options, mixture.experts
        batch, count, size = experts.mean.shape
        if options.noise == "matched":  # one level a row: the experts of one responsibility must be equally smoothed
            level = self._levels((batch,), progress, draws)
            experts, frozen = experts.widened(level), Mixture(frozen.experts.widened(level), frozen.log_gate)
            levels = level[:, None, None].expand(batch, count, options.samples)
        else:
            levels = self._levels((batch, count, options.samples), progress, draws)
        chunks = experts.sample(draws.normal((batch, count, options.samples, experts.noise_size)))
        flat = chunks.detach().reshape(-1, size)
        many = context.repeat_interleave(count * options.samples, dim=0)
        score = self._score(flat, levels.reshape(-1), many).reshape(chunks.shape)
        value = ((score * chunks).sum(dim=-1) + _own_responsibility(chunks, frozen)).mean(dim=2) + experts.entropy()
        floor = options.gate_floor
        weight = (1 - floor) * frozen.log_gate.exp() + floor / count
        return -(weight * value).sum(dim=1).mean() / size

    def _levels(self, shape: tuple[int, ...], progress: float, draws: Draws) -> Tensor:
        """Return the noise levels of a step."""
        options, grid = self.options, self._grid
        low, high = options.sigma_min, options.sigma_max
        if options.levels in ("fixed", "anneal"):
            level = low if options.levels == "fixed" else high + (low - high) * min(progress, 1.0)
            if grid is not None:
                level = grid[(grid - level).abs().argmin()].item()
            return torch.full(shape, level, device=draws.device)
        if grid is not None:  # both ends included
            return grid.to(draws.device)[draws.integers(len(grid), shape)]
        if options.levels == "uniform":
            return low + (high - low) * draws.uniform(shape)
        return log_uniform_sigmas(shape, low, high, draws)

    @torch.no_grad()
    def _sampled(self, context: Tensor, draws: Draws) -> Tensor:
        """Return a chunk `(B, D)` of the teacher for each observation, by its own sampler."""
        return self.teacher.sample(context, draws.normal((len(context), self.policy.chunk_size)))


def _own_responsibility(chunks: Tensor, frozen: Mixture) -> Tensor:
    """Return ln q~(z|a,s) of each expert's own samples `(B, K, V)`; gradients flow through the samples only."""
    batch, count, samples, size = chunks.shape
    shares = frozen.responsibilities(chunks.reshape(batch, -1, size)).reshape(batch, count, samples, count)
    return shares.diagonal(dim1=1, dim2=3).transpose(1, 2)


def _towards(chunk: Tensor, mask: Tensor | None, mixture: Mixture, steady: Mixture) -> tuple[Tensor, Tensor]:
    """Return the gate's cross-entropy and the mixture's negative log-likelihood a number, on chunks `(B, D)`."""
    shares = steady.responsibilities(chunk[:, None], mask)[:, 0].exp().detach()
    gate = -(shares * steady.log_gate).sum(dim=1).mean()
    return gate, -mixture.log_prob(chunk[:, None], mask).mean() / mixture.means.shape[-1]


def _between(levels: Tensor, low: float, high: float) -> Tensor:
    """Return the teacher's levels from low to high, both ends included.

    Raises:
        ConfigError: there is none.
    """
    chosen = levels[(levels >= low * (1 - 1e-3)) & (levels <= high * (1 + 1e-3))]
    if not len(chosen):
        known = ", ".join(f"{v:.3g}" for v in levels)
        raise ConfigError(f"'sigma_min' {low} to 'sigma_max' {high} holds none of the levels that the VP teacher knows: {known}")
    return chosen
