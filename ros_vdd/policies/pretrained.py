# SPDX-License-Identifier: Apache-2.0
"""Published weights of a ResNet-18 for the cameras of a policy: torchvision's names, as ImageNet models of timm and others have them.

The classifier isn't taken; points and head begin at random numbers. Pictures are then normalised as those that the weights learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ros_vdd.errors import ConfigError, PolicyError
from ros_vdd.networks.resnet import ResNet18
from ros_vdd.policies.mode_file import PICKLES, WeightsFile

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]."""
_OURS = ("points.", "head.", "mean", "std")
_LEFT_OUT = ("fc.", "num_batches_tracked")


def is_weights_file(path: str) -> bool:
    """Return whether a path names a file of weights, and no policy folder."""
    return Path(path).is_file() or Path(path).suffix in (".safetensors", *PICKLES)


def load_trunks(path: str, encoders: Mapping[str, nn.Module]) -> None:
    """Put the weights of a file into the trunk of every camera's encoder.

    Raises:
        ConfigError: an encoder is no ResNet-18, or there is none.
        PolicyError: there is no such file, it is a pickle or damaged, or names or shapes aren't those of a ResNet-18.
    """
    others = [name for name, encoder in encoders.items() if not isinstance(encoder, ResNet18)]
    if others or not encoders:
        what = f"the encoder of '{others[0]}' is another" if others else "the robot file has no camera"
        raise ConfigError(f"'encoder' is '{path}', weights of a ResNet-18, but {what}; write policy.vision.encoder: resnet18")
    file = WeightsFile(path)
    given = {key: shape for key, shape in file.shapes.items() if not any(part in key for part in _LEFT_OUT)}
    for encoder in encoders.values():
        held = encoder.state_dict()
        trunk = {key: tuple(value.shape) for key, value in held.items() if not key.startswith(_OURS)}
        if given != trunk:
            wrong = sorted(set(given.items()) ^ set(trunk.items()))
            first = ", ".join(f"{key} {list(shape)} ({'given' if given.get(key) == shape else 'expected'})" for key, shape in wrong[:3])
            raise PolicyError(f"'{file.path}' isn't the weights of a ResNet-18 by torchvision's names: {len(wrong)} differ, for example {first}")
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        encoder.load_state_dict({**held, **file.read(trunk), "mean": 2 * mean - 1, "std": 2 * std})  # of pictures in [-1, 1]
