# SPDX-License-Identifier: Apache-2.0
"""Where the noised chunks come from that a few-step student is trained on: the one source for every such method.

    forward    a + sigma n of the recorded chunk
    teacher    from noise, by the teacher's Euler steps along the grid
    student    from noise, by the student's own walk, with the sampler that will be deployed
    buffer     an earlier state of one of the last two, with the observation that it belongs to

A share of student states is DDIL: the student is labelled where its own steps lead, not only where demonstrations lie. Drawn per
row, never differentiable. At the highest level all sources are pure noise and the same. Source: Garrepalli et al. 2024 (DDIL,
arXiv 2410.11971); the shares, their warm-up and the buffer are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import euler_step, rows
from ros_vdd.errors import ConfigError
from ros_vdd.methods._ring import Ring
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

FORWARD, TEACHER, STUDENT, BUFFER = range(4)
_KEPT = ("x", "context", "teacher_context", "index")


@dataclass(frozen=True)
class Shares:
    """Shares of the four sources, which add up to 1; the last three grow linearly over the first `warmup` of the training.

    `capacity`: states that the buffer keeps, the oldest make room.
    """

    forward: float = 1.0
    teacher: float = 0.0
    student: float = 0.0
    buffer: float = 0.0
    warmup: float = 0.2
    capacity: int = 4096

    def __post_init__(self):
        shares = (self.forward, self.teacher, self.student, self.buffer)
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # of NaN nothing is true
            raise ConfigError(
                f"'forward' {self.forward}, 'teacher' {self.teacher}, 'student' {self.student}, 'buffer' {self.buffer}: "
                "expected shares of at least 0 that add up to 1"
            )
        if not 0 <= self.warmup <= 1 or self.capacity < 1:
            raise ConfigError(f"'warmup' is {self.warmup}, 'capacity' {self.capacity}; expected 0 to 1, and at least 1")
        if self.buffer and not self.teacher + self.student:
            raise ConfigError("'buffer' keeps states of 'teacher' and 'student', whose shares are 0")


class States(NamedTuple):
    """Noised chunks: `x` (B, D), where they are on the grid `index` (B,), their `context` (B, C) of the student's and of the
    teacher's observation, and which `source` each is from (B,)."""

    x: Tensor
    index: Tensor
    context: Tensor
    teacher_context: Tensor
    source: Tensor


class StateSource:
    """Draws the states of a training step.

    Args:
        shares: of the four sources.
        policy, teacher: the student and its frozen teacher.
        stride: levels of the grid in one step of the teacher; where a state of its is wanted must be a multiple.
    """

    def __init__(self, shares: Shares, policy: FewStepPolicy, teacher: DiffusionPolicy, stride: int = 1):
        self.shares, self.policy, self.teacher, self.stride = shares, policy, teacher, stride
        self.grid = policy.grid
        self.buffer = Ring(shares.capacity) if shares.buffer else None

    @torch.no_grad()
    def draw(self, batch: Mapping[str, Tensor], index: Tensor, clean: Tensor, draws: Draws, progress: float) -> States:
        """Return the states of a batch.

        Args:
            batch: observations.
            index: (B,), which level of the grid is wanted in each row; rows of the student get the nearest of its walk.
            clean: (B, D), recorded chunks, normalised.
            progress: 0 to 1 over the training.
        """
        context = self.policy.context(batch)
        teacher_context = self.teacher.context(batch, draws)
        noise = draws.normal((len(clean), *self.policy.noise_shape)).flatten(2)
        levels = torch.tensor(self.grid, device=clean.device)
        source = self._sources(len(clean), draws, progress)
        if self.shares.student:
            stops = torch.tensor(self.policy.stops, device=clean.device)
            nearest = stops[(index[:, None] - stops).abs().argmin(dim=1)]
            index = torch.where(source == STUDENT, nearest, index)
        x = clean + levels[index][:, None] * noise[:, 0]
        for number, share, walk in (
            (TEACHER, self.shares.teacher, self._teacher_walk),
            (STUDENT, self.shares.student, self._student_walk),
        ):
            mine = (source == number).nonzero()[:, 0] if share else ()
            if len(mine):
                own = teacher_context if number == TEACHER else context
                x[mine] = walk(own[mine], noise[mine], index[mine])
        return self._remembered(States(x, index, context, teacher_context, source), draws)

    def figures(self, states: States, errors: Tensor) -> dict[str, float]:
        """Return the share of each source that is in use, and its mean error, of errors `(B,)`."""
        made = {}
        for number, name in enumerate(("forward", "teacher", "student", "buffer")):
            if getattr(self.shares, name):
                mine = (states.source == number).to(errors.dtype)
                made[f"share_{name}"] = mine.mean().item()
                made[f"error_{name}"] = ((errors.detach() * mine).sum() / mine.sum().clamp(min=1)).item()
        return made

    def _sources(self, count: int, draws: Draws, progress: float) -> Tensor:
        shares = self.shares
        if shares.forward == 1:
            return torch.zeros(count, dtype=torch.long, device=draws.device)
        grown = min(1.0, progress / shares.warmup) if shares.warmup else 1.0
        bounds = torch.tensor([shares.teacher, shares.student, shares.buffer], device=draws.device).mul(grown).cumsum(0)
        chosen = torch.bucketize(draws.uniform((count,)), bounds, right=True)  # 0, 1, 2: a grown share; 3: forward
        return torch.tensor([TEACHER, STUDENT, BUFFER, FORWARD], device=draws.device)[chosen]

    def _teacher_walk(self, context: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        x = noise[:, 0] * self.grid[0]
        ask = lambda x, sigma: self.teacher.clean(x, sigma, context)  # noqa: E731
        for i in range(0, int(index.max()), self.stride):
            ahead = euler_step(ask, x, rows(x, self.grid[i]), rows(x, self.grid[i + self.stride]))
            x = torch.where((index > i)[:, None], ahead, x)
        return x

    def _student_walk(self, context: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        if not int(index.max()):  # all of them at the start: no step to walk
            return noise[:, 0] * self.grid[0]
        training = self.policy.training
        self.policy.eval()
        states, _ = self.policy.walk(context, noise)
        self.policy.train(training)
        stops = torch.tensor(self.policy.stops, device=index.device)
        reached = (index[:, None] == stops).float().argmax(dim=1)
        return torch.stack(states, dim=1)[torch.arange(len(index), device=index.device), reached]

    def _remembered(self, states: States, draws: Draws) -> States:
        """Keep what was rolled out, and exchange the rows of the buffer's share for earlier ones."""
        if self.buffer is None:
            return states
        if draws.world > 1:
            raise ConfigError(
                f"'states.buffer' is {self.shares.buffer}, for {draws.world} processes; each would remember its own rows only, and "
                "a checkpoint those of one. Leave the buffer out, or start it without torchrun"
            )
        recalled = self._recalled(states, draws)
        if self.policy.training:  # validation leaves nothing behind
            mine = ((states.source == TEACHER) | (states.source == STUDENT)).nonzero()[:, 0]
            if len(mine):
                self.buffer.add({name: getattr(states, name)[mine] for name in _KEPT})
        return recalled

    def _recalled(self, states: States, draws: Draws) -> States:
        """Return states whose rows of the buffer's share are earlier ones; while there are none they stay forward states."""
        mine = states.source == BUFFER
        if self.buffer.empty:
            return states._replace(source=torch.where(mine, FORWARD, states.source))
        rows = self.buffer.draw(len(mine), draws)
        flat = {"index": mine}  # the others are (B, ...)
        return states._replace(**{n: torch.where(flat.get(n, mine[:, None]), rows[n], getattr(states, n)) for n in _KEPT})
