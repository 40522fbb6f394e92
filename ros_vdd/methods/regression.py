# SPDX-License-Identifier: Apache-2.0
"""Train an image encoder to predict a labelled signal, such as an object's pose, from single pictures.

The labels come from demonstrations that recorded it and from a simulator's renderings; neither is needed on the robot.
Our own choice for training image policies on a CPU; the loss is smooth L1 (Girshick 2015, arXiv 1504.08083, equation 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ros_vdd.data.frames import Target
from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.policies.encoder import EncoderPolicy

KIND = "encoder"
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """What to predict; the features of the encoder are these targets in order. `beta`: where the loss turns linear."""

    targets: tuple[Target, ...] = ()
    beta: float = 0.02


class Method:
    """Regression of labels from pictures."""

    def __init__(self, options: Options, policy: EncoderPolicy, teacher: None = None):
        labels, features = sum(t.size for t in options.targets), policy.config.vision.features
        if labels != features:
            raise ConfigError(f"'policy.vision.features' is {features}; 'options.targets' have {labels} numbers (2 for an angle)")
        self.options, self.policy = options, policy

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return the smooth L1 distance of features and labels."""
        predicted = self.policy(batch)[:, 0].float()
        loss = torch.nn.functional.smooth_l1_loss(predicted, batch["labels"], beta=self.options.beta)
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the mean absolute error of each target, in the units of its array."""
        _, figures = self.loss(batch, draws)
        predicted, labels, at = self.policy(batch)[:, 0], batch["labels"], 0
        for target in self.options.targets:
            mine, theirs = predicted[:, at : at + target.size], labels[:, at : at + target.size]
            if target.angle:
                half = len(target.columns)
                turn = torch.atan2(mine[:, half:], mine[:, :half]) - torch.atan2(theirs[:, half:], theirs[:, :half])
                error = torch.atan2(turn.sin(), turn.cos()).abs()
            else:
                error = (mine - theirs).abs() * (target.high - target.low) / 2
            figures[f"error_{target.array.split('.')[-1]}_{'_'.join(map(str, target.columns))}"] = error.mean().item()
            at += target.size
        return figures
