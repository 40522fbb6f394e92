# SPDX-License-Identifier: Apache-2.0
"""A small convolutional image encoder without batch statistics: the same at any batch size, in training and on the robot.

Our own layout: a patch stem, one residual convolution a stage, and a flattened head that keeps where things are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ros_vdd.errors import ConfigError


class ImageEncoder(nn.Module):
    """Maps images `(N, 3, H, W)` with values in [-1, 1] to features `(N, output)`.

    Args:
        height, width: image size [px]; multiples of 4 * 2^(stages - 1).
        output: features a picture.
        channels: one entry a stage; each stage after the first halves the resolution.
        hidden: width of the head.

    Raises:
        ConfigError: the picture size doesn't divide into the stages.
    """

    def __init__(self, height: int, width: int, output: int, channels: Sequence[int] = (32, 64, 96), hidden: int = 256):
        super().__init__()
        stride = 4 * 2 ** (len(channels) - 1)
        if height % stride or width % stride:
            raise ConfigError(
                f"pictures of {width}x{height}: both sides must be multiples of {stride} for {len(channels)} entries in "
                "'vision.channels'; give the camera another 'resize' or 'crop' in the robot file"
            )
        self.stem = nn.Conv2d(3, channels[0], 4, stride=4)
        stages = [_Stage(channels[0], channels[0], stride=1)]
        stages += [_Stage(a, b, stride=2) for a, b in zip(channels[:-1], channels[1:])]
        self.stages = nn.Sequential(*stages)
        cells = (height // stride) * (width // stride)
        self.head = nn.Sequential(nn.Linear(channels[-1] * cells, hidden), nn.ReLU(), nn.Linear(hidden, output))

    def forward(self, images: Tensor) -> Tensor:
        """Encode `(N, 3, H, W)` to `(N, output)`."""
        return self.head(self.stages(self.stem(images).relu()).flatten(1))


class _Stage(nn.Module):
    """A convolution that may halve the resolution, then a residual convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.enter = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.residual = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        return x + self.residual(x).relu()
