# SPDX-License-Identifier: Apache-2.0
"""Consistency distillation: wherever the student is asked on a trajectory of the teacher, it tells where that trajectory ends.

    x' = one Heun step of the teacher from x_t to t'        t' the next lower level of the grid
    L  = E w(t) d(f(x_t; t, s), sg[f-(x'; t', s)])          f- = decay f- + (1 - decay) f, after each step

f(x; sigma_min) = x holds whatever the network says, so the labels are anchored at the lowest level and spread upwards from there,
an error with each hop. With `doublings` the two levels begin further apart and come nearer during the training: the labels reach the
top in few hops first, and become exact afterwards. With w = 1, as published, low levels hardly count: c_out is small there, so an
error that the network makes at neighbouring levels alike isn't seen, and what the high levels ask drags the low ones along; of
the longer training the student walks worse. w = "edm" is the teacher's own, 1/s^2 + 1/sd^2, divided by its mean over the grid.
The target's average is another than the one that is deployed (`loop.ema`).

Source: Song et al. 2023 (consistency models, arXiv 2303.01469), algorithm 2; Song & Dhariwal 2024 (arXiv 2310.14189), section 3.4,
for levels whose number doubles in equal spans of the training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import heun_step, reflected
from ros_vdd.errors import ConfigError
from ros_vdd.methods._states import Shares
from ros_vdd.methods._target import Distance, TargetMethod, measured, replayed
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

KIND = "few_step"
NEEDS_TEACHER = True


@dataclass(frozen=True)
class Options:
    """What student and label are compared by.

    `doublings`: the compared levels begin 2^doublings times as far apart, and come half as near in as many equal spans.
    `weighting`: w(t), see the module. `target_decay`: of the target's average. `distance`: of the student from its label. `states`: where the noised chunks
    come from. `warm_start`: begin as the teacher's network where the shapes agree; false for a run with `start`.
    """

    doublings: int = 0
    weighting: Literal["uniform", "edm"] = "uniform"
    target_decay: float = 0.95
    distance: Distance = "l2"
    states: Shares = field(default_factory=Shares)
    warm_start: bool = True

    def __post_init__(self):
        if not 0 <= self.target_decay < 1:
            raise ConfigError(f"'target_decay' is {self.target_decay}; expected 0 (the last step's student) up to below 1")
        if self.doublings < 0:
            raise ConfigError(f"'doublings' is {self.doublings}; expected 0 (the levels stay as near as they end) or more")


class Method(TargetMethod):
    """Consistency distillation of a student that renoises."""

    skip = 1  # levels of the grid between the two that are compared in the end

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy):
        config = policy.config
        if config.walk != "renoise" or not config.boundary:
            raise ConfigError(
                f"'policy.walk' is '{config.walk}', 'policy.boundary' {config.boundary}; a consistency function walks by "
                "'renoise' and is the identity at its lowest level: expected 'renoise' and true"
            )
        if config.grid < 2:
            raise ConfigError(f"'policy.grid' is {config.grid}; expected at least 2 levels, which are compared")
        if self.skip << options.doublings >= config.grid:
            raise ConfigError(
                f"'options.doublings' is {options.doublings}, 'policy.grid' {config.grid}: levels {self.skip << options.doublings} apart "
                "would be compared, so every step of the teacher would go to the end; expected fewer doublings"
            )
        super().__init__(options, policy, teacher)

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return the distance of the student's end of a trajectory from the target's, asked further down the same one."""
        clean, mask = self.policy.targets(batch)
        index = self.drawn(len(clean), draws)
        states = self.source.draw(batch, index, clean, draws, progress)
        sigma, label = self.label(states.x, states.index, states.context, states.teacher_context, progress)
        error = self.policy.denoiser(states.x, sigma, states.context) - label
        loss, rows = measured(self.options.distance, error, mask, draws, self.weight(sigma))
        return loss, {"loss": loss.item(), **self.source.figures(states, rows)}

    def weight(self, sigma: Tensor) -> Tensor | None:
        """Return w `(B,)` at levels sigma `(B,)`; None where all count alike."""
        if self.options.weighting == "uniform":
            return None
        grid = torch.tensor(self.policy.grid[:-2], device=sigma.device)  # all that are trained at
        return self.policy.denoiser.loss_weight(sigma) / self.policy.denoiser.loss_weight(grid).mean()

    def drawn(self, count: int, draws: Draws) -> Tensor:
        """Return which levels of the grid to train at, `(count,)`."""
        return draws.integers(self.policy.config.grid - 1, (count,))

    def stride(self, progress: float) -> int:
        """Return how many levels of the grid lie between the two that are compared, at 0 to 1 of the training."""
        done = int(progress * (self.options.doublings + 1))
        return self.skip << max(self.options.doublings - done, 0)

    @torch.no_grad()
    def label(
        self, x: Tensor, index: Tensor, context: Tensor, teacher_context: Tensor, progress: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the levels `(B,)` of states x `(B, D)` at `index` of the grid, and where the target says that they end `(B, D)`.

        At the lowest level there is nothing below: the label of x is x, cut as the teacher's sampler says.
        """
        grid = torch.tensor(self.policy.grid[:-1], device=x.device)
        now, then = grid[index], grid[(index + self.stride(progress)).clamp(max=len(grid) - 1)]
        lower = self.step(x, now, then, teacher_context)
        with replayed(x.device):
            end = self.target.train(self.policy.training)(lower, then, context)
        return now, reflected(end, 1.0 if self.teacher.config.sampler.clip else None)

    def step(self, x: Tensor, now: Tensor, then: Tensor, context: Tensor) -> Tensor:
        """Return states x `(B, D)` carried by the teacher from levels `now` to `then`, each `(B,)`."""
        return heun_step(lambda y, s: self.teacher.clean(y, s, context), x, now, then)
