# SPDX-License-Identifier: Apache-2.0
"""Robots, episode stores, training configurations and policy folders that are small enough to train in a test."""

from __future__ import annotations

import functools
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ros_vdd import bundle
from ros_vdd.config import dump_yaml
from ros_vdd.data.episodes import EpisodeStore, EpisodeWriter
from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

SIDE = 16
_BLIND = {
    "name": "toy",
    "rate_hz": 10.0,
    "cameras": {},
    "states": {"arm": {"topic": "joint_states", "joints": ["a", "b"], "unit": "rad", "max_age_s": 0.5}},
    "action": {
        "topic": "command",
        "joints": ["a", "b"],
        "unit": "rad",
        "lower": [-3.0, -3.0],
        "upper": [3.0, 3.0],
        "command_rate_hz": 50.0,
    },
    "safe_action": {"kind": "hold", "stale_chunk_s": 0.4},
}
_CAMERA = {"topic": "camera", "width": SIDE, "height": SIDE, "max_age_s": 0.5}
BLIND: RobotSpec = robot_from_mapping(_BLIND)
SEEING: RobotSpec = robot_from_mapping({**_BLIND, "cameras": {"top": _CAMERA}})
TASKS = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull", "lift"]}
TOLD: RobotSpec = robot_from_mapping({**_BLIND, "goal": TASKS})
SEEING_TOLD: RobotSpec = robot_from_mapping({**_BLIND, "cameras": {"top": _CAMERA}, "goal": TASKS})

SIZES = {
    "n_obs_steps": 2,
    "horizon": 4,
    "n_action_steps": 2,
    "vision": {"features": 2, "channels": [4, 8], "hidden": 8},
}
NETWORKS = {
    "diffusion": {**SIZES, "width": 16, "depth": 1, "sampler": {"steps": 3, "solver": "heun"}},
    "window": {
        **SIZES,
        **{"n_obs_steps": 3, "horizon": 1, "n_action_steps": 1},
        **{"width": 16, "depth": 1, "heads": 2, "sampler": {"steps": 3}},
    },
    "mode": {**SIZES, "width": 16, "depth": 2, "heads": 2, "expert_ratio": 2.0, "sampler": {"steps": 3}},
    "few_step": {**SIZES, "width": 16, "depth": 1, "grid": 4, "sampler": {"steps": 2}},
    "mixture": {**SIZES, "experts": 2, "width": 16, "depth": 1, "gate_width": 8},
    "encoder": SIZES,
}
TARGETS = [{"array": "extra.light", "columns": [0, 1], "low": 0.0, "high": 255.0}]
OPTIONS = {
    "regression": {"targets": TARGETS},
    "lcm": {"skip": 2},
    "dxdp": {"tau_entropy": 0.1, "tau_velocity": 0.1, "train_sigma": True, "keep": 20, "critic": {"width": 16, "depth": 1}},
}
"""What a method can't default, or a test would miss; one that isn't named here is trained with its defaults."""


def arrays(robot: RobotSpec, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return an episode that drifts to one of two sides; the picture's left and right half say how bright they are."""
    side = rng.choice([-1.0, 1.0])
    state = np.cumsum(rng.normal(0.05 * side, 0.02, (length, robot.state_size)), axis=0).astype(np.float32)
    light = rng.integers(0, 256, (length, 2))
    made = {
        "state": state,
        "action": (state + 0.1 * side).astype(np.float32),
        "stamp_ns": np.arange(length, dtype=np.int64) * robot.dt_ns,
        "extra.light": light.astype(np.float32),
    }
    if robot.cameras:
        halves = np.repeat(light, SIDE // 2, axis=1).astype(np.uint8)  # (N, W)
        made["images.top"] = np.broadcast_to(halves[:, None, :, None], (length, SIDE, SIDE, 3)).copy()
    if robot.goal:
        made["goal"] = np.tile(robot.goal.encode(int(side > 0)), (length, 1))
    return made


def store(
    root: Path, robot: RobotSpec = BLIND, lengths: tuple[int, ...] = (9, 12, 7, 10), seed: int = 0
) -> EpisodeStore:
    """Write a store with an episode of each length."""
    writer, rng = EpisodeWriter(root, robot), np.random.default_rng(seed)
    for length in lengths:
        writer.add(arrays(robot, length, rng), {"source": "toy"})
    return EpisodeStore(root)


FEW_STEPS = {
    "progressive": {"walk": "euler"},
    "ctm": {"walk": "jump"},
    "dxmi": {"walk": "posterior", "critic": {"width": 16, "depth": 1}},
    "dxdp": {"walk": "posterior"},
}
"""The walk that a method trains, where it isn't the default."""


class Arm:
    """A task for BLIND: follow what is told half of the way a tick, and come near a point, within seven ticks."""

    max_steps, modes = 7, None

    spec = BLIND

    @property
    def robot(self) -> str:
        return _robot_file(self.spec)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._state = np.random.default_rng(seed).uniform(-0.5, 0.5, 2)
        self._steps, self.score = 0, self._closeness()
        return self._observe()

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        self._state = self._state + 0.5 * (np.clip(action, -3, 3) - self._state)
        self._steps, self.score = self._steps + 1, max(self.score, self._closeness())
        return self._observe()

    @property
    def success(self) -> bool:
        return self.score > 0.95

    @property
    def done(self) -> bool:
        return self.success or self._steps >= self.max_steps

    def _closeness(self) -> float:
        return float(np.exp(-np.square(self._state - [0.6, 0.9]).sum()))

    def _observe(self) -> dict[str, np.ndarray]:
        return {"state": self._state.astype(np.float32)}


class ToldArm(Arm):
    """The same task for TOLD, which is told to lift."""

    spec = TOLD

    def _observe(self) -> dict[str, np.ndarray]:
        return {**super()._observe(), "goal": TOLD.goal.encode("lift")}


ARM, TOLD_ARM = "toy.arm", "toy.told_arm"
"""The names by which `envs.make` finds the task."""
sys.modules |= {ARM: types.SimpleNamespace(Env=Arm), TOLD_ARM: types.SimpleNamespace(Env=ToldArm)}
PLAYED = {"dxdp": {"rollouts": {"env": ARM, "every": 2, "episodes": 3}}}
"""What a method plays that learns from episodes."""


def _robot_file(spec: RobotSpec) -> str:
    path = _files() / ("told.yaml" if spec.goal else "blind.yaml")
    path.write_text(dump_yaml(spec), encoding="utf-8")
    return str(path)


@functools.cache
def _files() -> Path:
    return Path(tempfile.mkdtemp())


def config(method: str, kind: str, data: Path, loop: dict | None = None, **fields) -> dict:
    """Return a training configuration as plain values."""
    few = {
        "batch_size": 8,
        "warmup_steps": 2,
        "log_every": 1,
        "checkpoint_every": 2,
        "validate_every": 3,
        "validation_batches": 1,
    }
    return {
        "name": f"toy_{method}",
        "method": method,
        "data": str(data),
        "policy": {**NETWORKS[kind], **FEW_STEPS.get(method, {}), **({"kind": kind} if kind in ("window", "mode") else {})},
        "options": OPTIONS.get(method, {}),
        "loop": {"steps": 6, **few, **(loop or {})},
        "validation_fraction": 0.25,
        **PLAYED.get(method, {}),
        **fields,
    }


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@contextmanager
def killed_before(step: int) -> Iterator[None]:
    """Let the training inside be killed when this step is about to begin."""
    from ros_vdd.training.loop import Loop

    real = Loop.step

    def dying(self, now):
        if now == step:
            raise Killed
        return real(self, now)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Loop, "step", dying)
        yield


def network(kind: str, robot: RobotSpec = BLIND, seed: int = 0, **fields):
    """Return an untrained policy of random parameters, whose normaliser isn't the identity; `fields` change its sizes."""
    import torch

    from ros_vdd import policies
    from ros_vdd.config import build

    torch.manual_seed(seed)
    make, configuration = policies.KINDS[kind]
    policy = make(robot, build(configuration, {**NETWORKS[kind], **fields})).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    policy.action_normalizer.fit(np.array([[-1.0, -2.0], [1.0, 2.5]]))
    policy.state_normalizer.fit(np.array([[-0.5, 0.0], [1.5, 2.0]]))
    return policy


def policy(path: Path, kind: str, robot: RobotSpec = BLIND, seed: int = 0, **fields) -> bundle.Bundle:
    """Write the folder of an untrained policy, whose sizes `fields` change, and return it opened."""
    from safetensors.torch import save

    from ros_vdd import policies

    made = network(kind, robot, seed, **fields)
    return bundle.write(path, policies.manifest(made, f"toy_{kind}"), {bundle.WEIGHTS: save(made.state_dict())})


def observation(robot: RobotSpec, n_obs_steps: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a random observation without batch axis."""
    rng, shapes = np.random.default_rng(seed), robot.observation_shapes()
    made = {"state": rng.uniform(-1, 1, (n_obs_steps, *shapes["state"])).astype(np.float32)}
    for name in shapes.keys() - {"state"}:
        made[name] = rng.integers(0, 256, (n_obs_steps, *shapes[name]), dtype=np.uint8)
    if robot.goal:
        made["goal"] = robot.goal.encode(seed % robot.goal_size)
    return made
