# SPDX-License-Identifier: Apache-2.0
"""Consistency trajectory models: the student jumps from any level to any lower one, along the teacher's trajectory.

    x'    = 1 to M Heun steps of the teacher from x_t to u          m steps with probability m / (1 + ... + M)
    s     anywhere on the grid's range between u and sigma_min
    L_ctm = E d(G-(G(x_t; t -> s); s -> sigma_min), sg[G-(G(x'; u -> s); s -> sigma_min)])
    L_dsm = E w(t) ||g(a + t n; t, t) - a||^2                       a recorded; w as of the teacher's training
    L     = L_ctm + dsm_weight r L_dsm,                             r = |grad L_ctm| / |grad L_dsm| at the last layer, or 1

G- is the average of G's weights: it carries both ends to where they can be compared. On the student's side the gradient passes
through its input. Source: Kim et al. 2024 (CTM, arXiv 2310.02279), sections 3 and 4, without the adversarial term; levels of
L_dsm as in Prasad et al. 2024 (Consistency Policy, arXiv 2405.07503), which has `teacher_steps: 1` and `balance: fixed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import heun_step, reflected
from ros_vdd.diffusion.schedule import log_normal_sigmas
from ros_vdd.errors import ConfigError
from ros_vdd.methods._few_step import masked_mean
from ros_vdd.methods._states import Shares
from ros_vdd.methods._target import Distance, TargetMethod, measured, replayed
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

KIND = "few_step"
NEEDS_TEACHER = True

_LOG_SIGMA_MEAN, _LOG_SIGMA_STD, _UPPER = -1.2, 1.2, 0.7  # L_dsm: half by this law, half on the upper part of the grid


@dataclass(frozen=True)
class Options:
    """How far the teacher steps, and how the two losses are weighed.

    `teacher_steps`: M, the most Heun steps of the teacher in a label. `balance`: scales L_dsm by the ratio of `gradients`, or
    leaves it `fixed`. `dsm_weight`: of L_dsm, after that. The others are those of `consistency`.
    """

    teacher_steps: int = 4
    balance: Literal["gradients", "fixed"] = "gradients"
    dsm_weight: float = 1.0
    target_decay: float = 0.95
    distance: Distance = "l2"
    states: Shares = field(default_factory=Shares)
    warm_start: bool = True

    def __post_init__(self):
        if self.teacher_steps < 1:
            raise ConfigError(f"'teacher_steps' is {self.teacher_steps}; expected at least 1")
        if not 0 <= self.dsm_weight < math.inf:
            raise ConfigError(f"'dsm_weight' is {self.dsm_weight}; expected at least 0")
        if not 0 <= self.target_decay < 1:
            raise ConfigError(f"'target_decay' is {self.target_decay}; expected 0 (the last step's student) up to below 1")


class Method(TargetMethod):
    """Distillation of a student that jumps."""

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy):
        config = policy.config
        if config.walk != "jump":
            raise ConfigError(f"'policy.walk' is '{config.walk}'; a consistency trajectory model walks by 'jump'")
        if config.grid < 2:
            raise ConfigError(f"'policy.grid' is {config.grid}; expected at least 2 levels, between which the teacher steps")
        super().__init__(options, policy, teacher)

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return L_ctm + dsm_weight r L_dsm."""
        clean, mask = self.policy.targets(batch)
        index = draws.integers(self.policy.config.grid - 1, (len(clean),))
        steps, place = self._steps(draws.uniform((len(clean),))), draws.uniform((len(clean),))
        states = self.source.draw(batch, index, clean, draws, progress)
        now, stop, label = self.label(states.x, states.index, steps, place, states.context, states.teacher_context)
        landed = self.policy.denoiser.jump(states.x, now, stop, states.context)
        ctm, rows = measured(self.options.distance, self.end(landed, stop, states.context) - label, mask, draws)
        dsm = self._restoring(clean, mask, batch, draws)
        weight = self.options.dsm_weight * self._ratio(ctm, dsm, draws)
        loss = ctm + weight * dsm
        figures = {"loss": loss.item(), "ctm": ctm.item(), "dsm": dsm.item(), "weight": weight.item()}
        return loss, {**figures, **self.source.figures(states, rows)}

    @torch.no_grad()
    def label(
        self, x: Tensor, index: Tensor, steps: Tensor, place: Tensor, context: Tensor, teacher_context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the levels `(B,)` of states x `(B, D)` at `index` of the grid, the levels to stop at `(B,)`, and the end
        `(B, D)` that a jump to there must lead to.

        Args:
            steps: (B,), of the teacher, to u; fewer where the grid ends.
            place: (B,) in [0, 1], of the level to stop at between u and the lowest, by index of the grid.
        """
        grid = torch.tensor(self.policy.grid[:-1], device=x.device)
        below = (index + steps).clamp(max=len(grid) - 1)
        ask, lower = lambda y, s: self.teacher.clean(y, s, teacher_context), x  # noqa: E731
        for i in range(min(self.options.teacher_steps, len(grid) - 1)):  # a step to where a row already is leaves it there
            lower = heun_step(ask, lower, grid[torch.minimum(index + i, below)], grid[torch.minimum(index + i + 1, below)])
        stop = between(grid, below + place * (len(grid) - 1 - below))
        with replayed(x.device):
            landed = self.policy.denoiser.jump(lower, grid[below], stop, context)
        end = self.end(landed, stop, context)
        return grid[index], stop, reflected(end, 1.0 if self.teacher.config.sampler.clip else None)

    def end(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return x `(B, D)` at levels sigma `(B,)` carried to the lowest level by the average; differentiable in x."""
        return self.target.jump(x, sigma, torch.full_like(sigma, self.policy.config.sampler.sigma_min), context)

    def _steps(self, uniform: Tensor) -> Tensor:
        """Return the teacher's steps of each row `(B,)`, m with probability m / (1 + ... + M)."""
        counts = torch.arange(1.0, self.options.teacher_steps + 1, device=uniform.device)
        return torch.bucketize(uniform, counts.cumsum(0) / counts.sum(), right=True) + 1

    def _restoring(self, clean: Tensor, mask: Tensor, batch: dict[str, Tensor], draws: Draws) -> Tensor:
        """Return L_dsm: of forward states, whatever the shares are, since it needs the recorded chunk of the observation."""
        policy, sampler, count = self.policy, self.policy.config.sampler, len(clean)
        grid = torch.tensor(policy.grid[:-1], device=clean.device)
        drawn = log_normal_sigmas(count, _LOG_SIGMA_MEAN, _LOG_SIGMA_STD, sampler.sigma_min, sampler.sigma_max, draws)
        upper = between(grid, _UPPER * (len(grid) - 1) * draws.uniform((count,)))
        sigma = torch.where(draws.uniform((count,)) < 0.5, drawn, upper)
        noised = clean + sigma[:, None] * draws.normal(clean.shape)
        with torch.no_grad():
            context = policy.context(batch)
        errors = (policy.denoiser(noised, sigma, context) - clean).square()
        return masked_mean(policy.denoiser.loss_weight(sigma)[:, None] * errors, mask, draws)

    def _ratio(self, ctm: Tensor, dsm: Tensor, draws: Draws) -> Tensor:
        """Return r; 1 where `balance` is fixed, and in validation, which has no gradients."""
        if self.options.balance == "fixed" or not torch.is_grad_enabled():
            return torch.ones((), device=ctm.device)
        last = self.policy.denoiser.network.leave[-1].weight
        norms = [draws.process_mean(torch.autograd.grad(term, last, retain_graph=True)[0]).norm() for term in (ctm, dsm)]
        return norms[0] / norms[1].clamp(min=1e-8)


def between(grid: Tensor, place: Tensor) -> Tensor:
    """Return the levels `(B,)` at places `(B,)` from 0 to N - 1 of a grid `(N,)`, in equal ratios between two neighbours."""
    lower = place.long().clamp(max=len(grid) - 2)
    return grid[lower] * (grid[lower + 1] / grid[lower]) ** (place - lower)
