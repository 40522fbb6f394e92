# SPDX-License-Identifier: Apache-2.0
"""The image encoders of released MoDE policies: residual networks that are told the goal by scale and shift (FiLM).

    film_resnet18    in every block, after its second norm:  y = gamma bn2(...) + beta,  x = relu(y + skip);  last a linear layer
    film_resnet50    after each of the four stages:          x = (1 + gamma) x + beta;  at the start gamma = beta = 0

Parameters are named as torchvision (18) and timm (50) name theirs, so that released files fit. Batch norm goes by its kept
statistics, in training too: a picture's features don't depend on its neighbours in the batch.

Source: He et al. 2016 (arXiv 1512.03385), Perez et al. 2018 (FiLM, arXiv 1709.07871), and the layout of the released code of
Reuss et al. 2025 (MoDE, arXiv 2412.12953), by description. Differs: no ImageNet weights are fetched; the down-sampling branch is
evaluated once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ros_vdd.networks.resnet import KeptBatchNorm, convolution, pooled, skip

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1]: the constants of CLIP, which the release uses for all its encoders."""
SIDE = 224
"""[px] side of the square pictures that released encoders were trained on (LIBERO's wrist camera: 112); any other size runs."""


def clip_normalised(images: Tensor) -> Tensor:
    """Return ((x + 1) / 2 - CLIP_MEAN) / CLIP_STD of images `(N, 3, H, W)` in [-1, 1], RGB."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((images + 1) / 2 - mean) / std


class FilmResNet18(nn.Module):
    """Maps images `(N, 3, H, W)` in [-1, 1] and what they are looked at for `(N, G)` to features `(N, output)`."""

    def __init__(self, condition: int, output: int):
        super().__init__()
        widths = (64, 128, 256, 512)
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), KeptBatchNorm(64)
        for stage, (before, width) in enumerate(zip((64, *widths), widths), start=1):
            blocks = [_BasicBlock(before, width, 1 if stage == 1 else 2), _BasicBlock(width, width, 1)]
            setattr(self, f"layer{stage}", nn.ModuleList(blocks))
            setattr(self, f"film_module{stage}", _BlockFilm(condition, width))
        self.fc = nn.Linear(512, output)

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        """Encode `(N, 3, H, W)` under `(N, G)` to `(N, output)`."""
        x = pooled(self.bn1(self.conv1(clip_normalised(images))).relu())
        for stage in range(1, 5):
            told = getattr(self, f"film_module{stage}")(condition)
            for block, (gamma, beta) in zip(getattr(self, f"layer{stage}"), told):
                x = block(x, gamma, beta)
        return self.fc(x.mean(dim=(2, 3)))


class FilmResNet50(nn.Module):
    """Maps images `(N, 3, H, W)` in [-1, 1] and what they are looked at for `(N, G)` to features `(N, 2048)`."""

    def __init__(self, condition: int, output: int = 2048):
        super().__init__()
        if output != 2048:
            raise ValueError(f"output={output}: a FiLM-ResNet-50 gives 2048 features")
        self.resnet = _Bottlenecks((3, 4, 6, 3))
        for stage, width in enumerate((256, 512, 1024, 2048), start=1):
            setattr(self, f"film{stage}", _StageFilm(condition, width))

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        """Encode `(N, 3, H, W)` under `(N, G)` to `(N, 2048)`."""
        x = pooled(self.resnet.bn1(self.resnet.conv1(clip_normalised(images))).relu())
        for stage in range(1, 5):
            gamma, beta = getattr(self, f"film{stage}")(condition)
            x = (1 + gamma) * getattr(self.resnet, f"layer{stage}")(x) + beta
        return x.mean(dim=(2, 3))


ENCODERS = {"film_resnet18": FilmResNet18, "film_resnet50": FilmResNet50}
"""By the name that `vision.encoder` has."""


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a skip; scale and shift come between them and the sum."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 3, stride), KeptBatchNorm(width)
        self.conv2, self.bn2 = convolution(width, width, 3, 1), KeptBatchNorm(width)
        self.downsample = skip(inputs, width, stride)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (gamma * y + beta + (x if self.downsample is None else self.downsample(x))).relu()


class _Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions beside a skip; it begins as the skip alone."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 1, 1), KeptBatchNorm(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride), KeptBatchNorm(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1, 1), KeptBatchNorm(4 * width)
        self.downsample = skip(inputs, 4 * width, stride)
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class _Bottlenecks(nn.Module):
    """The layers of a ResNet-50 without its classifier; FiLM stands between the stages, so `FilmResNet50` calls them."""

    def __init__(self, depths: Sequence[int]):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 7, 2), KeptBatchNorm(64)
        inputs = 64
        for stage, depth in enumerate(depths):
            width, stride = 64 * 2**stage, 1 if stage == 0 else 2
            blocks = [_Bottleneck(inputs, width, stride), *(_Bottleneck(4 * width, width, 1) for _ in range(depth - 1))]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = 4 * width


class _BlockFilm(nn.Module):
    """Scale and shift `(N, C, 1, 1)` of the two blocks of a stage, by one linear layer of the activated condition."""

    def __init__(self, condition: int, width: int):
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition, 4 * width))

    def forward(self, condition: Tensor) -> list[tuple[Tensor, Tensor]]:
        gamma_0, beta_0, gamma_1, beta_1 = self.modulation(condition)[..., None, None].chunk(4, dim=1)
        return [(gamma_0, beta_0), (gamma_1, beta_1)]


class _StageFilm(nn.Module):
    """Scale and shift `(N, C, 1, 1)` after a stage; zero at the start."""

    def __init__(self, condition: int, width: int):
        super().__init__()
        self.gamma, self.beta = nn.Linear(condition, width), nn.Linear(condition, width)
        for layer in (self.gamma, self.beta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        return self.gamma(condition)[..., None, None], self.beta(condition)[..., None, None]
