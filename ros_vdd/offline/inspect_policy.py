# SPDX-License-Identifier: Apache-2.0
"""What `ros-vdd inspect` finds in a policy folder: manifest, weights by module, normaliser ranges, built engines."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.backends._cache import EngineCache, read
from ros_vdd.bundle import GRAPH, WEIGHTS, Bundle, file_sha256
from ros_vdd.config import to_plain
from ros_vdd.errors import EngineError, PolicyError
from ros_vdd.streams.spec import RobotSpec

NORMALISERS = {"state": "state_normalizer", "action": "action_normalizer"}


@dataclass(frozen=True)
class PolicyView:
    """A policy folder that was looked through.

    Attributes:
        normalisers: "state" and "action" -> (low, high), each (C,) [unit], what the network sees as -1 and 1.
        parameters: how many by part of the network, largest first; buffers count as well.
        engines: those in the cache of this machine that were built from its graph.
        warnings: what couldn't be read, in words.
    """

    bundle: Bundle
    normalisers: dict[str, tuple[np.ndarray, np.ndarray]]
    parameters: dict[str, int]
    engines: list[dict[str, Any]]
    warnings: list[str]


def look_at_policy(path: Path) -> PolicyView:
    """Verify a policy folder and read what its page shows.

    Raises:
        PolicyError: the folder is incomplete or damaged.
    """
    bundle = Bundle.open(path)
    weights = bundle.path / WEIGHTS
    try:
        tensors = tensor_heads(weights) if weights.is_file() else {}
        return PolicyView(bundle, _normalisers(weights, tensors), _parameters(tensors), _engines(bundle), [])
    except PolicyError as error:
        return PolicyView(bundle, {}, {}, _engines(bundle), [str(error)])


def describe_policy(view: PolicyView | Path) -> dict[str, Any]:
    """Return what a policy's manifest says, after every file of it was checked.

    Raises:
        PolicyError: the folder is incomplete or damaged.
    """
    view = view if isinstance(view, PolicyView) else look_at_policy(view)
    bundle = view.bundle
    manifest = to_plain(bundle.manifest)
    files = {p.name: p.stat().st_size for p in sorted(bundle.path.iterdir()) if p.is_file()}
    inputs = {name: list(shape) for name, shape in bundle.input_shapes.items()}
    robot = {"robot": bundle.robot.name, "rate_hz": bundle.robot.rate_hz, "actions": list(bundle.robot.action.joints)}
    past = list(bundle.past_shape) if bundle.past_shape else None
    names = {"state": state_names(bundle.robot), "action": list(bundle.robot.action.joints)}
    ranges = {what: _ranges(names[what], low, high) for what, (low, high) in view.normalisers.items()}
    found = {"normalisers": ranges, "parameters": view.parameters, "engines": view.engines, "warnings": view.warnings}
    manifest = {**manifest, **robot, "policy_kind": manifest["kind"], "past_actions": past}
    return {
        **manifest,
        "kind": "policy",
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        "inputs": inputs,
        "files": files,
        **found,
    }


def state_names(robot: RobotSpec) -> list[str]:
    """Return the name of each column of "state": STREAM.JOINT, with the field where it isn't a position."""
    return [
        f"{name}.{joint}" + ("" if field == "position" else f" {field}")
        for name, spec in robot.states.items()
        for joint, field in spec.features
    ]


def tensor_heads(path: Path) -> dict[str, dict[str, Any]]:
    """Return type, shape and place of each tensor of a safetensors file, without reading the tensors.

    Raises:
        PolicyError: it isn't a safetensors file.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > path.stat().st_size - 8:
            raise PolicyError(f"'{path}' is no safetensors file: its header would be {size} bytes long")
        try:
            heads = json.loads(stream.read(size))
            heads.pop("__metadata__", None)
            return {name: {**head, "start": 8 + size + head["data_offsets"][0]} for name, head in heads.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PolicyError(f"'{path}' is no safetensors file: {error}") from error


def read_tensor(path: Path, head: dict[str, Any]) -> np.ndarray:
    """Return one F32 tensor as float64.

    Raises:
        PolicyError: it is of another type.
    """
    if head["dtype"] != "F32":
        raise PolicyError(f"'{path}' holds a normaliser as {head['dtype']}; expected F32")
    count = math.prod(head["shape"])
    return np.fromfile(path, "<f4", count, offset=head["start"]).reshape(head["shape"]).astype(np.float64)


def _normalisers(weights: Path, tensors: dict[str, dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for what, module in NORMALISERS.items():
        ends = [tensors.get(f"{module}.{end}") for end in ("low", "high")]
        if all(ends):
            found[what] = (read_tensor(weights, ends[0]), read_tensor(weights, ends[1]))
    return found


def _parameters(tensors: dict[str, dict[str, Any]]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for name, head in tensors.items():
        counted[name.partition(".")[0]] += math.prod(head["shape"])
    return dict(counted.most_common())


def _ranges(names: list[str], low: np.ndarray, high: np.ndarray) -> dict[str, list[float]]:
    """Return (low, high) by column; by number where a continuous joint became a cosine and a sine."""
    if len(names) != len(low):
        names = [f"column {i}" for i in range(len(low))]
    return {name: [float(a), float(b)] for name, a, b in zip(names, low, high)}


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    graph = bundle.path / GRAPH
    folder = EngineCache().folder
    if not graph.is_file() or not folder.is_dir():
        return []
    digest, found = file_sha256(graph), []
    for entry in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        try:
            manifest, _ = read(entry)
        except (EngineError, OSError):
            continue
        if manifest.graph == digest:
            found.append({key: to_plain(manifest)[key] for key in ("engine", "size", "made", "identity", "parity")})
    return found
