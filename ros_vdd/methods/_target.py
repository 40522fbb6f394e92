# SPDX-License-Identifier: Apache-2.0
"""What the methods with an averaged target share: the target, how far a student is from its label, and the dropout both see.

    l2             ||e||^2 / n                           e the error of a chunk, n its recorded numbers
    pseudo_huber   sqrt(||e||^2 / n + c^2) - c           c = 0.00054: near 0 a square, beyond it the distance itself

Source: Song & Dhariwal 2024 (arXiv 2310.14189), section 3.3, here divided by sqrt(n), so that the horizon doesn't set the scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.methods._few_step import follow, masked_mean, require_frozen_encoders, require_no_critic, validated
from ros_vdd.methods._states import StateSource
from ros_vdd.methods._teacher import require_any_level
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

Distance = Literal["l2", "pseudo_huber"]
_C = 0.00054


def measured(
    distance: Distance, error: Tensor, mask: Tensor, draws: Draws, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean distance over the batch, and each row's `(B,)`, of errors `(B, D)` where mask `(B, D)` is 1.

    The mean counts each row by its weight `(B,)`; the rows themselves are returned without it.
    """
    squares = error.square()
    rows = (squares * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    if distance == "l2":
        return masked_mean(squares if weight is None else weight[:, None] * squares, mask, draws), rows
    rows = (rows + _C**2).sqrt() - _C
    return (rows if weight is None else weight * rows).mean(), rows


@contextmanager
def replayed(device: torch.device) -> Iterator[None]:
    """Let what follows this block drop the same units as what is in it: dropout draws from the global generators."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


class TargetMethod:
    """A method whose labels come from an average of its student; subclasses add the loss.

    Args:
        options: with `target_decay`, `states` and `warm_start`.
        policy, teacher: the student and its frozen teacher.
    """

    def __init__(self, options, policy: FewStepPolicy, teacher: DiffusionPolicy):
        name = type(self).__module__.rpartition(".")[2]
        require_any_level(teacher, name)
        require_no_critic(policy, name)
        require_frozen_encoders(policy)
        self.options, self.policy, self.teacher = options, policy, teacher
        self.source = StateSource(options.states, policy, teacher)
        self.target = deepcopy(policy.denoiser).requires_grad_(False).eval()
        self.companions = {"target": self.target, **({} if self.source.buffer is None else {"buffer": self.source.buffer})}

    def prepare(self, data, draws: Draws) -> None:
        """Begin as the teacher, where the networks agree; the target begins as the student."""
        if self.options.warm_start:
            self.policy.warm_start(self.teacher)
        follow(self.target, self.policy.denoiser, 0.0)

    def after(self) -> None:
        """Move the target towards the student."""
        follow(self.target, self.policy.denoiser, self.options.target_decay)

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss, the error against the recorded chunk, and that against the teacher's chunk from the same noise."""
        return validated(self, batch, draws)
