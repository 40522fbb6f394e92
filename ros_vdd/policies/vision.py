# SPDX-License-Identifier: Apache-2.0
"""How camera pictures become features: which encoder, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ros_vdd.errors import ConfigError
from ros_vdd.networks.film_resnet import ENCODERS
from ros_vdd.networks.resnet import ResNet18
from ros_vdd.networks.vision import ImageEncoder


@dataclass(frozen=True)
class VisionConfig:
    """How one camera picture becomes features; all cameras share the layout, each has its own weights.

    `encoder`: "small" has `channels` and `hidden`; "resnet18" neither of them; "film_resnet18" and "film_resnet50" look at a picture
    for the goal, as in released MoDE policies (`features` 512, or anything; 2048).
    """

    features: int = 32
    channels: tuple[int, ...] = (32, 64, 96)
    hidden: int = 256
    encoder: Literal["small", "resnet18", "film_resnet18", "film_resnet50"] = "small"

    def __post_init__(self):
        if self.features < 1 or self.hidden < 1 or not self.channels or min(self.channels) < 1:
            raise ConfigError("'features', 'hidden' and each of 'channels' must be at least 1")
        if self.encoder == "film_resnet50" and self.features != 2048:
            raise ConfigError(f"'features' is {self.features}; film_resnet50 gives 2048, write features: 2048")

    @property
    def conditioned(self) -> bool:
        """Return whether the encoder is told the goal."""
        return self.encoder in ENCODERS

    def build(self, height: int, width: int, goal: int) -> nn.Module:
        """Return the encoder of one camera: pictures `(N, 3, height, width)` in [-1, 1], goals `(N, goal)` if it is told them.

        Raises:
            ConfigError: the pictures' size doesn't divide into the stages, or there is no goal to be told.
        """
        if self.encoder == "resnet18":
            return ResNet18(height, width, self.features)
        if not self.conditioned:
            return ImageEncoder(height, width, self.features, self.channels, self.hidden)
        if not goal:
            raise ConfigError(
                f"'vision.encoder' is '{self.encoder}', which looks at pictures for a goal, but the robot file has none; "
                "add a section 'goal' to it, or write encoder: resnet18"
            )
        return ENCODERS[self.encoder](goal, self.features)
