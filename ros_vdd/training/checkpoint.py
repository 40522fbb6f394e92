# SPDX-License-Identifier: Apache-2.0
"""A training state as one safetensors file, written whole or not at all: no pickle, and a kill at any time does no harm."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ros_vdd.errors import DataError


def save(
    path: Path,
    step: int,
    run: str,
    module: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    cpu_seconds: float = 0.0,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
    optimizers: Mapping[str, torch.optim.Optimizer] = MappingProxyType({}),
) -> None:
    """Write the state after `step` steps, which took `cpu_seconds`; `run` names the configuration it belongs to.

    `companions` and `optimizers` are those of the method, by name.
    """
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for name, companion in companions.items():
        tensors |= {f"companion.{name}.{k}": v for k, v in companion.state_dict().items()}
    for prefix, each in {"optimizer": optimizer, **{f"optimizers.{k}": v for k, v in optimizers.items()}}.items():
        for index, state in each.state_dict()["state"].items():
            tensors |= {f"{prefix}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    spent = f"{cpu_seconds:.3f}"
    partial = path.with_suffix(".partial")
    metadata = {"step": str(step), "cpu_seconds": spent, "run": run, "sha256": _sha256(tensors, f"{step} {spent}")}
    save_file(tensors, str(partial), metadata)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, path)


def load(
    path: Path,
    run: str,
    module: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
    optimizers: Mapping[str, torch.optim.Optimizer] = MappingProxyType({}),
) -> tuple[int, float]:
    """Restore a state in place and return how many steps it had done and the CPU time [s] they took.

    Raises:
        DataError: the file is damaged or belongs to another configuration.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("run") != run:
                raise DataError(
                    f"'{path}' belongs to another configuration, data set or version of this run; "
                    "choose another --out, or delete that folder to start over"
                )
            tensors = {k: stored.get_tensor(k) for k in stored.keys()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"checkpoint '{path}' can't be read ({error}); delete it to start over") from error
    counts = [metadata[k] for k in ("step", "cpu_seconds") if k in metadata]  # older ones have no time
    if metadata.get("sha256") != _sha256(tensors, " ".join(counts)):
        raise DataError(f"checkpoint '{path}' is damaged: its sha256 is not the recorded one; delete it to start over")
    module.load_state_dict(_below(tensors, "module."))
    averaged = _below(tensors, "average.")
    for name, value in average.items():
        value.copy_(averaged[name] if name in averaged else tensors[f"module.{name}"])  # earlier versions averaged less
    for name, companion in companions.items():
        companion.load_state_dict(_below(tensors, f"companion.{name}."))
    _restore(optimizer, _below(tensors, "optimizer."))
    for name, each in optimizers.items():
        _restore(each, _below(tensors, f"optimizers.{name}."))
    return int(metadata["step"]), float(metadata.get("cpu_seconds", 0.0))


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(tensors: dict[str, Tensor], counts: str) -> str:
    """Return a digest of all that a training continues from; safetensors itself checks sizes only."""
    digest = hashlib.sha256(counts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
