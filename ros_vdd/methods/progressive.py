# SPDX-License-Identifier: Apache-2.0
"""Progressive distillation: one step of the student lands where several steps of its teacher land.

    x''    = the teacher's Euler steps from x_t to x_t''     t'' the next level of the student's walk
    target = (x'' - (t''/t) x_t) / (1 - t''/t)
    L      = E w(t) || D(x_t; t, s) - target ||^2            w = max(1 / t^2, 1) in units of sigma_data

One stage is one training; give its student as `--teacher` to the next for half the steps, and let all stages have the first one's
grid: a student answers only at the levels it was trained on, and of another grid those are others. Source: Salimans & Ho 2022
(arXiv 2202.00512), algorithm 2, here for the variance-exploding process; more than two sub-steps, and a grid's end at 0, are our
own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import euler_step
from ros_vdd.errors import ConfigError
from ros_vdd.methods._few_step import masked_mean, require_frozen_encoders, require_no_critic, validated
from ros_vdd.methods._states import Shares, StateSource
from ros_vdd.methods._teacher import require_levels
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

KIND = "few_step"
NEEDS_TEACHER = True


@dataclass(frozen=True)
class Options:
    """`substeps`: steps of the teacher in one of the student. `states`: where the noised chunks come from. `warm_start`: begin as
    the teacher's network where the shapes agree."""

    substeps: int = 2
    states: Shares = field(default_factory=Shares)
    warm_start: bool = True

    def __post_init__(self):
        if self.substeps < 1:
            raise ConfigError(f"'substeps' is {self.substeps}; expected at least 1")


class Method:
    """One stage of progressive distillation."""

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy):
        config = policy.config
        if config.walk != "euler":
            raise ConfigError(
                f"'policy.walk' is '{config.walk}'; progressive distillation trains a student that walks by 'euler'"
            )
        self.stride, rest = divmod(config.grid, config.sampler.steps * options.substeps)
        if rest or not self.stride:
            raise ConfigError(
                f"'policy.grid' is {config.grid}; expected 'sampler.steps' {config.sampler.steps} times 'options.substeps' "
                f"{options.substeps}, or a multiple: the levels that the teacher steps on"
            )
        require_levels(teacher, policy.grid[: -1 : self.stride])
        require_no_critic(policy, "progressive")
        require_frozen_encoders(policy)
        self.options, self.policy, self.teacher = options, policy, teacher
        self.source = StateSource(options.states, policy, teacher, self.stride)
        self.companions = {} if self.source.buffer is None else {"buffer": self.source.buffer}

    def prepare(self, data, draws: Draws) -> None:
        """Begin as the teacher, where the networks agree."""
        if self.options.warm_start:
            self.policy.warm_start(self.teacher)

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return the weighted squared distance from the teacher's landing, as a clean estimate."""
        policy = self.policy
        stops = torch.tensor(policy.stops, device=draws.device)
        index = stops[draws.integers(len(stops), (len(batch["actions"]),))]
        clean, mask = policy.targets(batch)
        states = self.source.draw(batch, index, clean, draws, progress)
        sigma, target = self.label(states.x, states.index, states.teacher_context)
        errors = (policy.denoiser(states.x, sigma, states.context) - target).square()
        weight = (policy.config.sigma_data / sigma).square().clamp(min=1.0)
        loss = masked_mean(weight[:, None] * errors, mask, draws)
        rows = (errors * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return loss, {"loss": loss.item(), **self.source.figures(states, rows)}

    @torch.no_grad()
    def label(self, x: Tensor, index: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels `(B,)` of states x `(B, D)` at `index` of the grid, and the clean estimate `(B, D)` whose one step
        lands where the teacher's `substeps` do."""
        grid = torch.tensor(self.policy.grid, device=x.device)
        ask = lambda y, s: self.teacher.clean(y, s, context)  # noqa: E731
        landed = x
        ends = [index + i * self.stride for i in range(self.options.substeps + 1)]
        for now, then in zip(ends[:-1], ends[1:]):
            landed = euler_step(ask, landed, grid[now], grid[then])
        ratio = (grid[ends[-1]] / grid[index])[:, None]
        return grid[index], (landed - ratio * x) / (1 - ratio)

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss, the error against the recorded chunk, and the distance from the teacher's end from the same noise."""
        return validated(self, batch, draws)
