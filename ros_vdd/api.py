# SPDX-License-Identifier: Apache-2.0
"""A policy folder in any Python program: `policy = ros_vdd.load(folder)`, then observations in and actions out.

The engine, checks, rules and seeds are those of `ros-vdd evaluate` and of the node; neither ROS nor torch is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd import backends, resources
from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime.energy import Energy, EnergyRunner
from ros_vdd.runtime.history import History
from ros_vdd.runtime.inference import PolicyRunner, Prediction
from ros_vdd.runtime.likelihood import Likelihood, LikelihoodRunner


class LoadedPolicy:
    """A policy with its memory of the running episode; one thread may use it at a time.

    Observations are dicts, "images.<camera>" `(H, W, 3)` uint8 RGB and "state" `(S,)` in the robot's units: one tick, of
    which the policy keeps as many as it sees, or each input with `n_obs_steps` ticks in front, oldest first. A policy that must
    be told what to do takes "goal" beside them, a task's name or number or a vector `(G,)`; it stays until the next.
    """

    def __init__(self, bundle: Bundle, backend: str, choice: ChoiceConfig, seed: int, threads: int | None = None):
        self.bundle, self._backend, self._threads = bundle, backend, threads
        self._runner = PolicyRunner.load(bundle, backend, choice, _checked_seed(seed), threads)
        self._history = History(bundle)
        self._actions: deque[np.ndarray] = deque()
        self.prediction: Prediction | None = None
        """The newest answer: chosen expert, log-gate, the chunks of all experts, latency."""

    horizon = property(lambda self: self.bundle.horizon, doc="H, actions of a chunk")
    n_action_steps = property(lambda self: self.bundle.n_action_steps, doc="actions of a chunk to execute before the next")
    n_obs_steps = property(lambda self: self.bundle.n_obs_steps, doc="T, newest ticks that the policy sees")

    def reset(self, seed: int) -> None:
        """Begin an episode: forget what was observed and chosen, but not the goal, and draw from this seed.

        Raises:
            ConfigError: the seed is no whole number or below 0.
        """
        self._runner.reset(_checked_seed(seed))
        self._history.reset()
        self._actions.clear()
        self.prediction = None

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Take the observation of a tick at which no chunk is asked for; the policy must see every tick once.

        Raises:
            EngineError: a name is missing, a shape or type is another, or there is no such goal.
        """
        self._history.add(observation)

    def act(self, observation: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return the chunk `(H, A)` float32 in the robot's units for the newest tick.

        Args:
            observation: the newest tick, or the newest `n_obs_steps`; None when `observe` had it.

        Raises:
            EngineError: the observation doesn't fit or isn't finite, nothing was observed, or the answer isn't finite.
        """
        if observation is not None:
            self._history.add(observation)
        self._actions.clear()
        self.prediction = self._runner.act(self._history.arrays(), self._history.elapsed())
        self._history.answered()
        return self.prediction.actions

    def likelihood(self, observation: Mapping[str, Any] | None, chunk: np.ndarray) -> Likelihood:
        """Return what a mixture says of a chunk `(h, A)` of its first h actions, in the robot's units; nothing is remembered.

        Args:
            observation: the newest `n_obs_steps` ticks, oldest first; None for what the policy has observed.
            chunk: with h < H the actions that follow are integrated out.

        Raises:
            EngineError: the policy is no mixture, or observation or chunk don't fit or aren't finite.
            PolicyError: the folder lacks `likelihood.onnx`, which `ros-vdd export` writes.
        """
        seen = self._history.arrays() if observation is None else self._history.whole(observation)
        return self._likelihood.evaluate(seen, chunk)

    def log_prob(self, observation: Mapping[str, Any] | None, chunk: np.ndarray) -> float:
        """Return ln q(a|s) [nats] of a chunk; see `likelihood`."""
        return self.likelihood(observation, chunk).log_prob

    def energy(self, observation: Mapping[str, Any] | None, chunk: np.ndarray) -> Energy:
        """Return what a student's critic says of a chunk `(h, A)` of its first h actions, in the robot's units.

        Nothing is remembered.

        Args:
            observation: the newest `n_obs_steps` ticks, oldest first; None for what the policy has observed.
            chunk: with h < H the student's own chunks, which it is ranked among, count with their first h actions too.

        Raises:
            EngineError: the policy has no critic, or observation or chunk don't fit or aren't finite.
            PolicyError: the folder lacks `critic.onnx`, which `ros-vdd export` writes.
        """
        seen = self._history.arrays() if observation is None else self._history.whole(observation)
        return self._energy.evaluate(seen, chunk)

    @cached_property
    def _energy(self) -> EnergyRunner:
        return EnergyRunner(self.bundle, backends.load_energy(self.bundle, self._backend, self._threads))

    @cached_property
    def _likelihood(self) -> LikelihoodRunner:
        return LikelihoodRunner(self.bundle, backends.load_likelihood(self.bundle, self._backend, self._threads))

    def select_action(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action `(A,)` of this tick; a new chunk is asked for every `n_action_steps` ticks.

        Raises:
            EngineError: as `act`.
        """
        self._history.add(observation)
        if not self._actions:
            self._actions.extend(self.act()[: self.n_action_steps])
        return self._actions.popleft()


def load(
    folder: str | Path,
    backend: str = "onnxruntime",
    choice: str = "argmax",
    temperature: float = 1.0,
    sticky_margin: float = 1.0,
    sticky_steps: int = 2,
    tolerance: float = 0.5,
    commit_steps: int = 1,
    draws: int = 8,
    seed: int = 0,
    threads: int | None = None,
) -> LoadedPolicy:
    """Load a policy folder, every file of it checked against its sha256.

    Args:
        folder: its path, or a shipped name such as "pusht_vdd".
        backend: engine, see `ros_vdd.backends.names()`.
        choice: which expert of a mixture acts: argmax, sample, sticky, gumbel, coherent or committed.
        temperature: of sample, gumbel, coherent and committed; 1 follows the gate.
        sticky_margin: of sticky and committed, [nats].
        sticky_steps: of sticky, plans in a row.
        tolerance: of coherent, share of half the joint range by which an action may depart from the plan before.
        commit_steps: of committed, how many actions of the plan before are executed whatever is decided now.
        draws: of coherent, how many chunks a policy without experts draws to choose from.
        seed: of the first episode, until `reset`.
        threads: of an engine that computes on the CPU; None leaves them to the engine, ONNX Runtime has one.

    Raises:
        ConfigError: there is no such folder, or the choice, a setting or the seed has no meaning.
        PolicyError: the folder is damaged or incomplete.
        EngineError: the engine doesn't exist, isn't installed, or refuses the policy, or `threads` is below 1.
    """
    rule = ChoiceConfig(choice, temperature, sticky_margin, sticky_steps, tolerance, commit_steps, draws)
    return LoadedPolicy(Bundle.open(resources.find("models", str(folder))), backend, rule, seed, threads)


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"'seed' is {seed!r}; expected a whole number, at least 0")
    return int(seed)
