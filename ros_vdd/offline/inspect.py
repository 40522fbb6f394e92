# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd inspect`: what a bag, an episode store or a policy folder holds, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd import resources
from ros_vdd.bundle import MANIFEST, SUMS, Bundle
from ros_vdd.config import to_plain
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.errors import DataError
from ros_vdd.offline.inspect_tables import show_bag, show_policy, show_store

HELP = "say what a bag, an episode store or a policy holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="a bag (folder, .mcap, .db3), an episode store, a policy")
    parser.add_argument("--json", action="store_true", help="print JSON with stable keys instead of a table")
    parser.add_argument("--recover", action="store_true", help="bags: read what is left of a damaged MCAP")


def run(args: argparse.Namespace) -> int:
    """Find out what the path is and describe it; a policy may be named as shipped."""
    path = resources.find("models", args.path)
    if (path / MANIFEST).is_file() or (path / SUMS).is_file():
        content, show = describe_policy(path), show_policy
    elif (path / "store.yaml").is_file():
        content, show = describe_store(path), show_store
    elif path.suffix == ".zarr":
        raise DataError(f"'{path}' is a zarr; turn it into an episode store with ros-vdd convert, then inspect that")
    else:
        content, show = describe_bag(path, args.recover, progress=not args.json), show_bag
    print(json.dumps(content, indent=2, allow_nan=False) if args.json else show(content))
    return 0


def describe_bag(path: Path, recover: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return storage, warnings, custom data and the statistics of each topic.

    Raises:
        DataError: the bag can't be read.
    """
    from tqdm import tqdm

    from ros_vdd.data.bag import Bag
    from ros_vdd.data.bag_statistics import statistics

    bag = Bag.open(path, recover)
    total = sum(info.count for info in bag.topics.values())
    bar = tqdm(bag.raw_messages(bag.topics), total=total, unit="message", disable=not progress, leave=False, delay=2)
    topics = to_plain(statistics(bag, bar))
    known = {"storage": bag.storage, "warnings": bag.warnings, "custom_data": bag.custom_data}
    return {"kind": "bag", "path": str(path), **known, "topics": topics}


def describe_store(path: Path) -> dict[str, Any]:
    """Return episodes, frames, robot and the shape and range of each array; images are not looked through.

    Raises:
        DataError: the store or an episode can't be read.
    """
    store = EpisodeStore(path)
    lengths = [episode.length for episode in store]
    arrays: dict[str, dict[str, Any]] = {}
    for episode in store:
        for name in episode:
            _widen(arrays, name, episode[name])
    frames = sum(lengths)
    return {
        "kind": "episodes",
        "path": str(path),
        "robot": store.robot.name,
        "rate_hz": store.robot.rate_hz,
        "episodes": len(lengths),
        "frames": frames,
        "duration_s": frames / store.robot.rate_hz,
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "fingerprint": store.fingerprint(),
        "arrays": arrays,
    }


def describe_policy(path: Path) -> dict[str, Any]:
    """Return what a policy's manifest says, after every file of it was checked.

    Raises:
        PolicyError: the folder is incomplete or damaged.
    """
    bundle = Bundle.open(path)
    manifest = to_plain(bundle.manifest)
    files = {p.name: p.stat().st_size for p in sorted(path.iterdir()) if p.is_file()}
    inputs = {name: list(shape) for name, shape in bundle.input_shapes.items()}
    robot = {"robot": bundle.robot.name, "rate_hz": bundle.robot.rate_hz, "actions": list(bundle.robot.action.joints)}
    past = list(bundle.past_shape) if bundle.past_shape else None
    manifest = {**manifest, **robot, "policy_kind": manifest["kind"], "past_actions": past}
    return {**manifest, "kind": "policy", "path": str(path), "sha256": bundle.sha256, "inputs": inputs, "files": files}


def _widen(arrays: dict[str, dict[str, Any]], name: str, array: np.ndarray) -> None:
    """Take one episode's array into the overall shape, type and range (per column, for arrays of vectors)."""
    empty = {"shape": list(array.shape[1:]), "dtype": str(array.dtype), "min": None, "max": None}
    known = arrays.setdefault(name, empty)
    if array.ndim > 2 or not len(array):
        return
    low, high = (np.atleast_1d(extreme).tolist() for extreme in (array.min(axis=0), array.max(axis=0)))
    known["min"] = low if known["min"] is None else list(map(min, known["min"], low))
    known["max"] = high if known["max"] is None else list(map(max, known["max"], high))
