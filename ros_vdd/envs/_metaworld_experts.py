# SPDX-License-Identifier: Apache-2.0
"""Who demonstrates MT10: Meta-World's scripted experts, disturbed, so that their data shows how to come back.

The arm executes clip(a + x), and a is recorded, the expert's action cut to [-1, 1] (DART, Laskey et al. 2017, arXiv 1703.09327).
x is noise on the hand's three axes, x' = c x + sqrt(1 - c^2) n with n ~ N(0, s^2 I); the gripper isn't disturbed. The experts see
the policy's own state and nothing else, so it is enough for every task. An episode without success is drawn anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from ros_vdd.envs.metaworld import TASKS, Env
from ros_vdd.errors import EnvError
from ros_vdd.streams.spec import load_robot

NOISE_STD, NOISE_MEMORY = 0.2, 0.5  # s [2 mm a step]; c, from one step to the next
AFTER = 10  # steps kept after success: where the task is done the arm stays
ATTEMPTS = 100


def demonstrate(seed: int, per_task: int) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) of every task `per_task` times, round by round."""
    robot = load_robot(Env.robot)
    envs = {task: Env(task) for task in TASKS}
    for round_ in range(per_task):
        for index, task in enumerate(TASKS):
            arrays, attempt = _one(envs[task], np.random.default_rng([seed, round_, index]))
            arrays["stamp_ns"] = np.arange(len(arrays["action"]), dtype=np.int64) * robot.dt_ns
            notes = {"seed": seed, "round": round_, "task": task, "attempt": attempt}
            yield arrays, {"source": "env:metaworld", "source_format": "demonstrator", **notes}


def drive(env: Env, start: int, rng: np.random.Generator, noise_std: float = NOISE_STD) -> dict[str, np.ndarray]:
    """Let the expert play the episode of a seed; return "state" (N, 14), "goal" (N, 10) and its own "action" (N, 4).

    Args:
        env: left as the episode ended; `env.success` tells whether the task was done.
        start: seed of the episode.
        rng: source of the noise.
        noise_std: 0 for an undisturbed expert.
    """
    observation = env.reset(start)
    expert, noise, frames, left = ENV_POLICY_MAP[env.task](), np.zeros(3), [], AFTER
    while len(frames) < env.max_steps and left > 0:
        left -= env.success
        action = expert_action(expert, observation["state"])
        frames.append({**observation, "action": action})
        noise = NOISE_MEMORY * noise + np.sqrt(1 - NOISE_MEMORY**2) * rng.normal(0.0, noise_std, 3)
        observation = env.step(action + np.append(noise, 0.0))
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def expert_action(expert, state: np.ndarray) -> np.ndarray:
    """Return an expert's action (4,) float32 in [-1, 1] for a state (14,), in Meta-World's layout of 39 numbers."""
    seen = np.zeros(39)
    seen[:11], seen[36:] = state[:11], state[11:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its gain asks for more than 1
        return np.clip(expert.get_action(seen), -1.0, 1.0).astype(np.float32)


def _one(env: Env, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], int]:
    """Return a successful episode, and how many failed before it."""
    for attempt in range(ATTEMPTS):
        arrays = drive(env, int(rng.integers(2**31)), rng)
        if env.success:
            return arrays, attempt
    raise EnvError(
        f"the scripted expert of '{env.task}' failed {ATTEMPTS} times in a row; expected hardly ever once. Is another version of "
        "metaworld installed than constraints.txt names?"
    )
