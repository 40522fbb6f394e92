# SPDX-License-Identifier: Apache-2.0
"""A ResNet-18 that says where it sees what: the image encoder that robot learning takes by default.

    stem: 7x7 convolution, stride 2; largest of 3x3, stride 2.   4 stages of 2 basic blocks, 64, 128, 256, 512 wide.
    head: P maps (1x1 convolution), of each the mean place under a softmax over the cells, (x, y) in [-1, 1]; a linear layer.

Batch norm goes by kept statistics: it is a scale and a shift per channel, that a compiled graph folds into the convolution before it,
and a picture's features don't depend on its batch. Every block begins as its skip alone, so that it trains from random numbers without
statistics. Parameters up to the head are named as torchvision's.

Source: He et al. 2016 (arXiv 1512.03385), table 1; spatial softmax: Levine et al. 2016 (arXiv 1504.00702), section 5.1; the two together:
Chi et al. 2023 (Diffusion Policy, arXiv 2303.04137), section III-B. Differs: kept statistics where they have group norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ros_vdd.errors import ConfigError

STRIDE = 32
"""Pixels a cell of the last stage, each way."""
POINTS = 32
"""How many places the head reads."""


class KeptBatchNorm(nn.Module):
    """y = weight (x - mean) / sqrt(variance + 1e-5) + bias per channel, with the statistics that came with the weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to the same shape."""
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


class SpatialSoftmax(nn.Module):
    """(x, y) = sum over cells of softmax(map) * place, for each of P maps: `(N, P, h, w)` to `(N, 2 P)`, in [-1, 1].

    A side of one cell has its place at 0.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return all x, then all y."""
        height, width = maps.shape[-2:]
        share = maps.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
        x = (share.sum(dim=2) * _places(width, maps)).sum(dim=-1)
        y = (share.sum(dim=3) * _places(height, maps)).sum(dim=-1)
        return torch.cat([x, y], dim=1)


class ResNet18(nn.Module):
    """Maps images `(N, 3, H, W)` with values in [-1, 1] to features `(N, output)`.

    The trunk sees (images - mean) / std of each colour: 0 and 1, or what published weights learnt from.

    Raises:
        ConfigError: the last stage would have a single cell, so that there is no place to tell.
    """

    def __init__(self, height: int, width: int, output: int):
        super().__init__()
        if min(height, width) <= STRIDE:
            raise ConfigError(
                f"pictures of {width}x{height}: both sides must be more than {STRIDE} px for 'vision.encoder' resnet18; give the camera "
                "another 'resize' or 'crop' in the robot file, or write encoder: small"
            )
        widths = (64, 128, 256, 512)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), KeptBatchNorm(64)
        for stage, (before, after) in enumerate(zip((64, *widths), widths), start=1):
            blocks = (_Block(before, after, 1 if stage == 1 else 2), _Block(after, after, 1))
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.points, self.places = nn.Conv2d(512, POINTS, 1), SpatialSoftmax()
        self.head = nn.Linear(2 * POINTS, output)

    def forward(self, images: Tensor) -> Tensor:
        """Encode `(N, 3, H, W)` to `(N, output)`."""
        x = (images - self.mean[:, None, None]) / self.std[:, None, None]
        x = pooled(self.bn1(self.conv1(x)).relu())
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.head(self.places(self.points(x)))


class _Block(nn.Module):
    """x = relu(skip(x) + bn2(conv2(relu(bn1(conv1(x)))))); the branch is silent at the start."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 3, stride), KeptBatchNorm(width)
        self.conv2, self.bn2 = convolution(width, width, 3, 1), KeptBatchNorm(width)
        self.downsample = skip(inputs, width, stride)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (branch + (x if self.downsample is None else self.downsample(x))).relu()


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    """Return a convolution without bias, begun after He et al. 2015 (arXiv 1502.01852), equation 14."""
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def skip(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return the skip of a block that changes the shape, None for one that doesn't."""
    return None if inputs == outputs and stride == 1 else nn.Sequential(convolution(inputs, outputs, 1, stride), KeptBatchNorm(outputs))


def pooled(x: Tensor) -> Tensor:
    """Return the largest of 3x3, stride 2."""
    return nn.functional.max_pool2d(x, 3, stride=2, padding=1)


def _places(cells: int, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, cells, dtype=like.dtype, device=like.device) if cells > 1 else like.new_zeros(1)
