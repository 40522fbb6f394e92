# SPDX-License-Identifier: Apache-2.0
"""Where and how a training computes: the device, the precision of its forward passes, compiled networks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.vp import VpDenoiser
from ros_vdd.errors import ConfigError


class Data(Protocol):
    """Anything with a length that gives batches by index: `Windows`, `LabelledFrames`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]: ...


class Placed:
    """Data whose batches arrive on a device."""

    def __init__(self, data: Data, device: torch.device):
        self._data, self.device = data, device

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the batch at indices `(B,)` on the device."""
        return {k: v.to(self.device) for k, v in self._data.batch(indices).items()}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a process: `cpu`, `cuda`, or `auto`, which is cuda where there is one.

    Args:
        name: value of 'loop.device'.
        local_rank: which process of this machine asks; each has a GPU of its own.

    Raises:
        ConfigError: there is no such GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        raise ConfigError(
            f"'loop.device' is {name}: process {local_rank + 1} on this machine needs a CUDA device of its own, and torch "
            f"{torch.__version__} finds {count}; start fewer processes, or set loop.device=cpu"
        )
    return torch.device("cuda", local_rank)


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for bf16; without them a CPU takes many times as long as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # of a torch that can't tell: none
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`: as named, or for `auto` the second where the device has instructions for it."""
    if name != "auto":
        return name
    return "bf16" if computes_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass in `fp32` (as it is) or `bf16` (where torch holds that to be safe)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def compile_networks(*policies: nn.Module | None) -> None:
    """Let `torch.compile` translate the networks of policies in place; the names of their weights stay.

    Raises:
        ConfigError: torch can't compile on this machine.
    """
    for policy in filter(None, policies):
        _require_compiler(next(policy.parameters()).device)
        for network in _networks(policy):
            network.compile()


def _networks(module: nn.Module) -> list[nn.Module]:
    """Return the outermost modules with weights that are always called as functions.

    Containers have no forward of their own; the scores of a VP denoiser call its network beside its forward.
    """
    found = []
    for child in module.children():
        if isinstance(child, nn.ModuleDict | nn.ModuleList | Denoiser | VpDenoiser):
            found += _networks(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def _require_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"'loop.compile' is true, but torch can't compile for {device.type} here: {reason}; it needs a C++ compiler and "
            "Python's headers (apt install g++ python3-dev), for cuda also Triton; or set loop.compile=false"
        ) from error
