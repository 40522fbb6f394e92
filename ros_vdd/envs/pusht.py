# SPDX-License-Identifier: Apache-2.0
"""PushT: push a T-shaped block onto its goal with a round end effector, seen by one camera.

The simulator is `gym_pusht/PushT-v0`, scored by the protocol of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): 300 steps
of 0.1 s, score = the episode's largest coverage / 0.95 cut at 1, success = coverage above 0.95.
"""

from __future__ import annotations

import os

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium  # noqa: E402
import gym_pusht  # noqa: E402, F401  (registers the environment)

SUCCESS = 0.95


class Env:
    """PushT with observations as on the robot: "images.top" `(96, 96, 3)` and "state" `(2,)`, the agent's x and y [px]."""

    robot = "pusht"
    max_steps = 300
    modes = None
    obs_type = "pixels_agent_pos"

    def __init__(self):
        self._gym = gymnasium.make("gym_pusht/PushT-v0", obs_type=self.obs_type, disable_env_checker=True).unwrapped
        self._coverage, self._steps = 0.0, 0

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Start the episode of a seed: agent and block at positions drawn by the simulator."""
        observation, _ = self._gym.reset(seed=seed)
        self._coverage, self._steps = 0.0, 0
        return self._arrays(observation)

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Move the agent towards a target `(2,)` [px] for 0.1 s."""
        observation, _, _, _, info = self._gym.step(np.asarray(action, dtype=np.float64))
        self._coverage = max(self._coverage, float(info["coverage"]))
        self._steps += 1
        return self._arrays(observation)

    @property
    def score(self) -> float:
        return min(self._coverage / SUCCESS, 1.0)

    @property
    def success(self) -> bool:
        return self._coverage > SUCCESS

    @property
    def done(self) -> bool:
        return self.success or self._steps >= self.max_steps

    @property
    def full_state(self) -> np.ndarray:
        """Return what the camera must be read for: agent x, y, block x, y [px], block angle [rad], `(5,)`."""
        block = self._gym.block
        return np.array([*self._gym.agent.position, *block.position, block.angle % (2 * np.pi)], dtype=np.float32)

    def render(self, size: int = 384) -> np.ndarray:
        """Return the scene `(size, size, 3)` uint8."""
        return self._gym._get_img(self._gym._draw(), size, size)

    def render_labelled(self, rng: np.random.Generator, states: np.ndarray, spread: float) -> dict[str, np.ndarray]:
        """Draw one scene with its true state, to train an image encoder: half near given states, half anywhere.

        Args:
            rng: source of all randomness.
            states: (N, 5) full states to draw near, for example those of demonstrations.
            spread: standard deviation of block position [px] around them; agent 1.6 times, angle spread/62.5 [rad].

        Returns:
            "images.top" `(96, 96, 3)` uint8 and "extra.state" `(5,)` float32.
        """
        if rng.random() < 0.5:
            state = states[rng.integers(len(states))] + rng.normal(size=5) * spread * np.array([1.6, 1.6, 1, 1, 1 / 62.5])
        else:
            state = rng.uniform([10, 10, 60, 60, 0], [502, 502, 450, 450, 2 * np.pi])
        state[:4] = state[:4].clip(10, 502)
        self._place(state)
        return {"images.top": self._gym._render(), "extra.state": state.astype(np.float32)}

    def _place(self, state: np.ndarray) -> None:
        if not hasattr(self._gym, "space"):
            self._gym.reset(seed=0)
        agent, block = self._gym.agent, self._gym.block
        block.angle = float(state[4])
        block.position = tuple(map(float, state[2:4]))
        agent.position = tuple(map(float, state[:2]))
        for body in (agent, block):
            self._gym.space.reindex_shapes_for_body(body)

    def _arrays(self, observation: dict) -> dict[str, np.ndarray]:
        return {"images.top": observation["pixels"], "state": observation["agent_pos"].astype(np.float32)}
