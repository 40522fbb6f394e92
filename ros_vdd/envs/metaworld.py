# SPDX-License-Identifier: Apache-2.0
"""Meta-World MT10: ten tasks of one simulated Sawyer arm, told apart by a goal, with the true state and no camera.

The simulator is the package `metaworld` 3 (Yu et al. 2019, arXiv 1910.10897; McLean et al. 2025, arXiv 2505.11289) with the goal
position observable, as MT10 has it: 500 steps of 12.5 ms, success = the simulator's own flag at any step, which ends the
episode. Object and goal are drawn anew for each seed, by the task's own distribution; the benchmark class draws 50 from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import metaworld
import mujoco
import numpy as np

from ros_vdd.envs._metaworld_camera import Camera
from ros_vdd.errors import EnvError, suggest
from ros_vdd.streams.spec import load_robot

TASKS = tuple(metaworld.env_dict.MT10_V3)


class Env:
    """MT10 with "state" `(14,)` and "goal" `(10,)`, the one-hot task.

    State: hand x, y, z [m], gripper opening in [0, 1], object x, y, z [m], its quaternion (0 where the task tells none), target
    x, y, z [m]. It is what Meta-World shows, less the frame before, which `n_obs_steps` sees to, and what MT10 always leaves 0.
    An action `(4,)` in [-1, 1]: how far the hand is to move, in cm a step, and the effort that closes the gripper.

    Args:
        task: play this task only; without one the episode of seed s plays task number s % 10.

    Raises:
        EnvError: there is no such task.
    """

    robot = "metaworld"
    max_steps = 500
    modes = None

    def __init__(self, task: str | None = None):
        if task is not None and task not in TASKS:
            raise EnvError(f"no task '{task}' in MT10; {suggest(task, TASKS)}")
        self._only, self.task = task, task or TASKS[0]
        self._goals = load_robot(self.robot).goal
        self._sims: dict[str, metaworld.SawyerXYZEnv] = {}
        self._camera: Camera | None = None
        self._steps, self._success = 0, False

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Start the episode of a seed: its task, and object and target at positions drawn by the simulator."""
        self.task = self._only or TASKS[seed % len(TASKS)]
        if self.task not in self._sims:
            self._sims[self.task] = _simulator(self.task)
        sim = self._sims[self.task]
        sim.seed(seed)
        sim.reset()
        mujoco.mj_forward(sim.model, sim.data)  # drawers and windows still seem to be where they were before the draw
        self._steps, self._success = 0, False
        return self._observe()

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Move hand and gripper by `(4,)`, cut to [-1, 1], for 12.5 ms."""
        info = self._sim.step(np.clip(action, -1.0, 1.0).astype(np.float32))[4]
        self._success = self._success or bool(info["success"])
        self._steps += 1
        return self._observe()

    @property
    def score(self) -> float:
        """1 for success, else 0."""
        return float(self._success)

    @property
    def success(self) -> bool:
        return self._success

    @property
    def done(self) -> bool:
        return self._success or self._steps >= self.max_steps

    def render(self, size: int = 384) -> np.ndarray:
        """Return the scene `(size, size, 3)` uint8, seen from a corner of the table.

        Raises:
            EnvError: MuJoCo finds nothing to draw with.
        """
        return self._cam.render(self._sim, size)

    def project(self, actions: np.ndarray) -> np.ndarray:
        """Return where a chunk (..., H, 4) of actions leads the hand, as shares (right, down) of the picture."""
        moves = np.clip(actions[..., :3], -1.0, 1.0).cumsum(axis=-2) * self._sim.action_scale
        return self._cam.shares(self._sim, self._sim.get_endeff_pos() + moves)

    @property
    def _sim(self) -> metaworld.SawyerXYZEnv:
        if self.task not in self._sims:
            self.reset(0)
        return self._sims[self.task]

    @property
    def _cam(self) -> Camera:
        self._camera = self._camera or Camera()
        return self._camera

    def _observe(self) -> dict[str, np.ndarray]:
        seen = self._sim._get_curr_obs_combined_no_goal()[:11]
        state = np.concatenate([seen, self._sim._target_pos]).astype(np.float32)
        return {"state": state, "goal": self._goals.encode(self.task)}


def demonstrations(seed: int = 0, per_task: int = 50) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) of 10 * `per_task` successes of Meta-World's scripted experts; the same seed gives the same bytes.

    The arm executes the expert's action plus noise, and the action recorded is the expert's own, cut to [-1, 1]: so the data
    shows how to come back (DART, Laskey et al. 2017, arXiv 1703.09327).
    """
    from ros_vdd.envs._metaworld_experts import demonstrate  # it steps this environment

    return demonstrate(seed, per_task)


def _simulator(task: str) -> metaworld.SawyerXYZEnv:
    """Make a simulator that shows its target and draws a new start at each reset: Meta-World's `set_task` without its pickles."""
    sim = metaworld.env_dict.MT10_V3[task]()
    sim._partially_observable = False
    del sim.sawyer_observation_space  # cached from before
    sim._set_task_called, sim._freeze_rand_vec, sim.seeded_rand_vec = True, False, True
    return sim
