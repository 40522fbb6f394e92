# SPDX-License-Identifier: Apache-2.0
"""Episodes that a policy plays while it is trained, several side by side, so that its network is asked in batches.

They are played as `ros-vdd evaluate` does: the history begins with the first frame repeated, `n_action_steps` of a chunk are
executed, the noise is drawn from the episode's seed, an expert of a mixture by the gate (`--choice sample`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ros_vdd import envs
from ros_vdd.errors import ConfigError
from ros_vdd.policies.policy import Policy
from ros_vdd.streams.spec import RobotSpec, load_robot

ROWS = 16
"""Rows that a network is always asked with: the last bits of a matrix product depend on their number."""
FIRST_SEED = 1 << 30
"""Episodes of a training have seeds from here on, those of an evaluation lie below."""


@dataclass(frozen=True)
class Episode:
    """What happened at the N decisions of an episode."""

    seed: int
    observations: dict[str, np.ndarray]
    """Each input `(N, T, ...)` as policies take it, "goal" `(N, G)`, "past_actions" `(N, T-1, A)` and "past_mask" `(N, T-1)`."""
    chunks: np.ndarray
    """(N, D) float32, normalised and cut to the range of the recorded actions."""
    scores: np.ndarray
    """(N + 1,) score of the environment before each decision and at the end."""
    successes: np.ndarray
    """(N + 1,) 1 where it had succeeded, likewise."""
    steps: int

    @property
    def score(self) -> float:
        """Return the score at the end."""
        return float(self.scores[-1])

    @property
    def success(self) -> bool:
        """Return whether the episode succeeded."""
        return bool(self.successes[-1])


def require_env(name: str, robot: RobotSpec, key: str) -> None:
    """Refuse an environment that can't be played with a robot's policies; `key` is where the configuration names it.

    Raises:
        ConfigError: it is another robot's.
        EnvError: there is no such environment, or what it needs isn't installed.
    """
    theirs = load_robot(envs.make(name).robot)
    if differences := robot.difference(theirs):
        wrong = f"'{key}' is '{name}', an environment of robot '{theirs.name}', not that of the data"
        raise ConfigError(f"{wrong}: {'; '.join(differences)}")


def episode_seeds(seed: int, number: int, count: int) -> list[int]:
    """Return the seeds `(count,)` of a training's episodes, for the training's own seed and the number of the round."""
    return np.random.default_rng([seed, number]).integers(FIRST_SEED, 2 * FIRST_SEED, count).tolist()


class Player:
    """Plays seeded episodes of an environment with a policy in PyTorch.

    Args:
        env: name of the environment.
        at_once: how many episodes are played side by side; it changes no figure.
    """

    def __init__(self, env: str, at_once: int = 64):
        if at_once < 1:
            raise ValueError(f"at_once={at_once}: need at least 1")
        self._name, self._at_once = env, at_once
        self._envs: list[envs.Env] = []

    def play(self, policy: Policy, seeds: Sequence[int]) -> list[Episode]:
        """Play an episode of each seed; the same weights and seeds give the same episodes."""
        made = min(self._at_once, len(seeds))
        self._envs += [envs.make(self._name) for _ in range(made - len(self._envs))]
        waiting, done = deque(enumerate(seeds)), {}
        with _deployed(policy):
            active = [_Seat(env, policy) for env in self._envs[:made]]
            for seat in active:
                seat.begin(*waiting.popleft())
            while active:
                answers = _answers(policy, active)
                for seat, actions in zip(list(active), answers):
                    if seat.execute(actions):
                        continue
                    done[seat.number] = seat.episode()
                    if waiting:
                        seat.begin(*waiting.popleft())
                    else:
                        active.remove(seat)
        return [done[number] for number in range(len(seeds))]


class _Seat:
    """One environment with the episode that is played in it."""

    def __init__(self, env: envs.Env, policy: Policy):
        self._env, self._policy, config = env, policy, policy.config
        self._ticks, self._executed = config.n_obs_steps, config.n_action_steps
        self._names = list(policy.robot.observation_shapes())
        self._size = policy.robot.action_size

    def begin(self, number: int, seed: int) -> None:
        """Start the episode of a seed."""
        self.number, self.seed, self.rng = number, seed, np.random.default_rng(seed)
        self._history = deque([self._env.reset(seed)] * self._ticks, maxlen=self._ticks)
        self._past: deque[np.ndarray] = deque(maxlen=self._ticks - 1)
        self._steps = 0
        self._observed: list[dict[str, np.ndarray]] = []
        self._chunks: list[np.ndarray] = []
        self._results = [(self._env.score, self._env.success)]

    def observe(self) -> dict[str, np.ndarray]:
        """Return what the policy sees, without batch axis, and keep it."""
        seen = {name: np.stack([tick[name] for tick in self._history]) for name in self._names}
        if self._policy.robot.goal:
            seen["goal"] = self._history[-1]["goal"]
        past, mask = np.zeros((self._ticks - 1, self._size), np.float32), np.zeros(self._ticks - 1, np.float32)
        if count := len(self._past):
            past[-count:], mask[-count:] = self._past, 1.0
        self._observed.append({**seen, "past_actions": past, "past_mask": mask})
        return self._observed[-1]

    def execute(self, actions: np.ndarray) -> bool:
        """Execute the first actions of a chunk `(H, A)`; return whether the episode goes on."""
        self._chunks.append(actions)
        for action in actions[: self._executed]:
            self._history.append(self._env.step(action))
            self._past.append(action)
            self._steps += 1
            if self._env.done:
                break
        self._results.append((self._env.score, self._env.success))
        return not self._env.done

    def episode(self) -> Episode:
        """Return what happened."""
        actions = torch.from_numpy(np.stack(self._chunks)).to(self._policy.action_normalizer.low.device)
        scores, successes = np.array(self._results, np.float32).T
        observations = {name: np.stack([seen[name] for seen in self._observed]) for name in self._observed[0]}
        return Episode(self.seed, observations, self._policy.from_chunk(actions).cpu().numpy(), scores, successes, self._steps)


@contextmanager
def _deployed(policy: Policy):
    training = policy.training
    policy.eval()
    with torch.no_grad():
        yield
    policy.train(training)


def _answers(policy: Policy, seats: Sequence[_Seat]) -> list[np.ndarray]:
    """Return a chunk `(H, A)` in the robot's units for each seat."""
    observed = [seat.observe() for seat in seats]
    mixture = policy.kind == "mixture"
    noises = [() if mixture else seat.rng.standard_normal((1, *policy.noise_shape), np.float32)[0] for seat in seats]
    device, answers = policy.action_normalizer.low.device, []
    for start in range(0, len(seats), ROWS):
        rows = [min(start + i, len(seats) - 1) for i in range(ROWS)]  # the last one fills up
        place = lambda parts: torch.from_numpy(np.stack([parts[row] for row in rows])).to(device)  # noqa: E731
        inputs = {name: place([seen[name] for seen in observed]) for name in observed[0]}
        answer = policy(inputs, None if mixture else place(noises))
        here = range(min(ROWS, len(seats) - start))
        if mixture:
            means, log_gate = (part.cpu().numpy() for part in answer)
            answers += [means[i, _drawn(log_gate[i], seats[start + i].rng)] for i in here]
        else:
            chunks = answer.cpu().numpy()
            answers += [chunks[i] for i in here]
    return answers


def _drawn(log_gate: np.ndarray, rng: np.random.Generator) -> int:
    weights = np.exp(log_gate - log_gate.max())
    return int(min(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random()), len(weights) - 1))
