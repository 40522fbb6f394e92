# SPDX-License-Identifier: Apache-2.0
"""An image encoder trained on its own; its weights start the encoders of teachers and students. It commands nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ros_vdd.policies.policy import Policy, PolicyConfig


@dataclass(frozen=True)
class EncoderConfig(PolicyConfig):
    """Only `vision` matters; the chunk sizes keep one manifest format for all folders."""


class EncoderPolicy(Policy):
    """Pictures of one tick to features."""

    kind = "encoder"

    def forward(self, observation: Mapping[str, Tensor], noise: None = None) -> Tensor:
        """Return features `(B, T, F)`."""
        flat = {name: observation[name].flatten(0, 1) for name in self.image_shapes}
        ticks = observation[next(iter(self.image_shapes))].shape[1]
        return self.encode_frames(flat).reshape(-1, ticks, self.frame_size)
