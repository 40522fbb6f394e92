# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd calibrate`: where a policy's own figure of its plans stops being ordinary, measured on demonstrations.

A demonstration is a plan that went well: what is still to come of it, under each of its observations, stands for what will be
left of a plan that goes well. The bound is the figure's 99 % quantile on the strange side.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle, amend
from ros_vdd.config import to_plain
from ros_vdd.data.dataset import Windows, split_episodes
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.errors import ConfigError, DataError, PolicyError
from ros_vdd.resources import find
from ros_vdd.runtime.monitor import Calibration, open_monitor

HELP = "measure on demonstrations from where on a policy's plans are an anomaly"
QUANTILE, WINDOWS = 0.99, 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policy", help="policy folder: a mixture, or a student with a critic; its policy.yaml keeps the result")
    parser.add_argument("--data", help="episode store (default: that of the training; of it only the held-out episodes count)")
    parser.add_argument("--actions", type=int, help="actions of a plan that count (default: half of those left at the next plan)")
    parser.add_argument("--quantile", type=float, default=QUANTILE, help=f"share of ordinary plans (default {QUANTILE})")
    parser.add_argument("--windows", type=int, default=WINDOWS, help=f"observations at most, by a fixed seed (default {WINDOWS})")
    parser.add_argument("--backend", default="onnxruntime", help="engine: " + ", ".join(backends.names()))


def run(args: argparse.Namespace) -> int:
    """Measure, write the bound into policy.yaml and print it."""
    bundle = Bundle.open(find("models", args.policy))
    made = calibrate(bundle, args.data, args.actions, args.quantile, args.windows, args.backend)
    amend(bundle, calibration=to_plain(made))
    print(
        f"{made.figure} of the next {made.actions} actions, over {made.windows} observations of {made.episodes} episodes: median "
        f"{made.median:.4g}, an anomaly {'above' if made.bound > made.median else 'below'} {made.bound:.4g}"
    )
    print(f"wrote {bundle.path}; policy_node warns with the parameter monitor:=true")
    return 0


def calibrate(
    bundle: Bundle,
    data: str | None = None,
    actions: int | None = None,
    quantile: float = QUANTILE,
    windows: int = WINDOWS,
    backend: str = "onnxruntime",
) -> Calibration:
    """Return the bound of a policy's figure over demonstrations.

    Raises:
        ConfigError: a number is out of its range.
        DataError: there are no episodes that the policy wasn't trained on, or none is long enough.
        PolicyError: nothing is left of a plan at the next, the data is another robot's, or the folder lacks the graph.
        EngineError: the policy is neither a mixture nor a student with a critic.
    """
    left = bundle.horizon - bundle.n_action_steps
    if not left:
        raise PolicyError(f"'{bundle.path}' executes all {bundle.horizon} actions of a chunk: nothing is left of a plan to judge")
    count = max(1, left // 2) if actions is None else actions
    if not 1 <= count <= left or not 0.5 < quantile < 1 or windows < 1:
        raise ConfigError(
            f"'actions' is {count}, 'quantile' {quantile}, 'windows' {windows}; expected 1 to {left} (those left of a plan "
            "at the next one), above 0.5 and below 1, and at least 1"
        )
    monitor = open_monitor(replace(bundle, manifest=replace(bundle.manifest, calibration={})), backend)
    store = _open_store(bundle, data)
    episodes = _held_out(bundle, store)
    scores = np.array([monitor.score(seen, ahead) for seen, ahead in _demonstrated(bundle, store, episodes, count, windows)])
    bound = np.quantile(scores, quantile if monitor.SIDE > 0 else 1 - quantile)
    described = {"figure": monitor.SCORE, "bound": _rounded(bound), "median": _rounded(np.median(scores)), "quantile": quantile}
    sizes = {"actions": count, "windows": len(scores), "episodes": len(episodes), "data_sha256": store.fingerprint()}
    return Calibration(**described, **sizes)


def _open_store(bundle: Bundle, data: str | None) -> EpisodeStore:
    path = data or bundle.manifest.training.get("data")
    if not path:
        raise DataError(f"'{bundle.path}' doesn't say what it was trained on; give --data STORE")
    store = EpisodeStore(path)
    if lines := bundle.robot.difference(store.robot):
        raise PolicyError(f"'{bundle.path}' was made for another robot file than '{store.root}': {'; '.join(lines)}")
    return store


def _held_out(bundle: Bundle, store: EpisodeStore) -> list[int]:
    """Return the episodes that the policy wasn't trained on: of other data all."""
    training = bundle.manifest.training
    if store.fingerprint() != bundle.manifest.provenance.get("data_sha256"):
        return list(range(len(store)))
    held = split_episodes(len(store), training["validation_fraction"], training["seed"])[1]
    if not held:
        raise DataError(
            f"'{bundle.path}' was trained on every episode of '{store.root}', to which it fits too well; give --data with others"
        )
    return held


def _demonstrated(
    bundle: Bundle, store: EpisodeStore, episodes: list[int], count: int, most: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yield observations and the next `count` actions `(count, A)` at at most `most` frames where so many were recorded."""
    windows = Windows(store, episodes, bundle.n_obs_steps, count)
    to_come = np.concatenate([np.arange(store[i].length, 0, -1) for i in episodes])
    whole = np.flatnonzero(to_come >= count)
    if not len(whole):
        raise DataError(f"no episode of '{store.root}' that was held out has {count} actions; give --data with longer ones")
    for i in sorted(np.random.default_rng(0).permutation(whole)[:most]):
        batch = {name: value[0].numpy() for name, value in windows.batch(np.array([i])).items()}
        yield {name: batch[name] for name in bundle.input_shapes}, batch["actions"]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
