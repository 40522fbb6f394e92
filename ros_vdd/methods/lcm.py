# SPDX-License-Identifier: Apache-2.0
"""Latent consistency distillation: consistency distillation over coarse steps, k levels of the grid at a time.

    x' = one Euler (DDIM) step of the teacher from x_t to t'      t' is k levels lower
    L  = E d(f(x_t; t, s), sg[f-(x'; t', s)])                     f- = decay f- + (1 - decay) f, after each step

Half the teacher's evaluations of `consistency`, and labels reach the top in k times fewer hops; but the student can't become
better than the teacher walking by steps of that size. Source: Luo et al. 2023 (LCM, arXiv 2310.04378), algorithm 1, without
guidance; here for the variance-exploding process, at all levels of the grid unless `levels` says otherwise, and for actions,
which need no latent space (as in ManiCM, arXiv 2406.01586).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import euler_step
from ros_vdd.errors import ConfigError
from ros_vdd.methods import consistency
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

KIND = "few_step"
NEEDS_TEACHER = True


@dataclass(frozen=True)
class Options(consistency.Options):
    """`skip`: k, levels of the grid in one step of the teacher. `levels`: train at all levels of the `grid`, or, as published, at
    those of the `solver` alone: the highest and every k-th below. The others are those of `consistency`."""

    skip: int = 4
    levels: Literal["grid", "solver"] = "grid"

    def __post_init__(self):
        super().__post_init__()
        if self.skip < 1:
            raise ConfigError(f"'skip' is {self.skip}; expected at least 1")


class Method(consistency.Method):
    """Latent consistency distillation of a student that renoises."""

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy):
        if options.skip >= policy.config.grid:
            raise ConfigError(
                f"'options.skip' is {options.skip}, 'policy.grid' {policy.config.grid}: every step of the teacher would "
                "go to the end; expected fewer levels than the grid has"
            )
        self.skip = options.skip
        super().__init__(options, policy, teacher)
        if options.levels == "solver" and (off := [i for i in policy.stops if i % options.skip]):
            raise ConfigError(
                f"'options.levels' is 'solver', 'options.skip' {options.skip}: a walk of 'policy.sampler.steps' "
                f"{policy.config.sampler.steps} over 'policy.grid' {policy.config.grid} also stops at level {off[0]}, which "
                "isn't trained; expected a skip that divides all stops, or levels: grid"
            )

    def drawn(self, count: int, draws: Draws) -> Tensor:
        """Return which levels of the grid to train at, `(count,)`."""
        if self.options.levels == "grid":
            return super().drawn(count, draws)
        return self.skip * draws.integers(-(-(self.policy.config.grid - 1) // self.skip), (count,))

    def step(self, x: Tensor, now: Tensor, then: Tensor, context: Tensor) -> Tensor:
        """Return states x `(B, D)` carried by the teacher from levels `now` to `then`, each `(B,)`."""
        return euler_step(lambda y, s: self.teacher.clean(y, s, context), x, now, then)
