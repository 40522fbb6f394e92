# SPDX-License-Identifier: Apache-2.0
"""From an observation to a chunk: seeded noise or expert choice around an engine, and the thread it runs in."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros_vdd import backends
from ros_vdd.backends import Engine, input_shapes
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.runtime.certain import CertainActions
from ros_vdd.runtime.choice import ChoiceConfig, ExpertChoice
from ros_vdd.runtime.commitment import Commitment
from ros_vdd.runtime.past import PastActions

GIVE_WAY_S = 0.001


@dataclass(frozen=True)
class Prediction:
    """What a policy answers to one observation."""

    actions: np.ndarray
    """(H, A) float32 in the robot's units."""
    expert: int | None
    """Index of the chosen expert of a mixture."""
    log_gate: np.ndarray | None
    """(K,) of a mixture."""
    latency_ns: int
    """Time in the engine and around it, on the monotonic clock."""
    means: np.ndarray | None = None
    """(K, H, A): what every expert of a mixture proposed, or the chunks among which `coherent` chose."""


class PolicyRunner:
    """An engine with its source of randomness; the same seed and observations give the same chunks.

    Args:
        bundle: the policy folder.
        engine: it, loaded.
        choice: how an expert of a mixture is chosen: a rule, or a rule with its settings. A policy that denoises has no experts:
            `coherent` asks it several times, the other rules once.
        seed: of the noise and the draws.
        likelihood: engine of a mixture's likelihood, which the choice `committed` asks instead of the policy.

    A window policy is given the actions it returned, taken as executed: ask it once a tick. After a gap it begins anew, as after
    `reset`. One thread may call it at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        choice: str | ChoiceConfig = "argmax",
        seed: int = 0,
        likelihood: Engine | None = None,
    ):
        self.bundle, self.engine = bundle, engine
        self.choice = choice if isinstance(choice, ChoiceConfig) else ChoiceConfig(choice)
        self._commitment = _commitment(bundle, likelihood, self.choice, seed)
        self._chosen = ExpertChoice(self.choice, seed)
        self._inputs, self._past = input_shapes(bundle), PastActions(bundle)
        self._certain = CertainActions(bundle, self.choice.commit_steps if self.choice.rule == "committed" else 0)
        action = bundle.robot.action
        self._half_range = np.maximum(np.subtract(action.upper, action.lower) / 2, 1e-9).astype(np.float32)
        self.reset(seed)

    @classmethod
    def load(
        cls, bundle: Bundle, backend: str, choice: str | ChoiceConfig = "argmax", seed: int = 0, threads: int | None = None
    ) -> PolicyRunner:
        """Load a policy into an engine, and its likelihood where the choice asks for it; threads as of `backends.load`.

        Raises:
            EngineError: the engine doesn't exist, isn't installed, or refuses the policy.
            PolicyError: the folder lacks a graph.
        """
        rule = choice if isinstance(choice, ChoiceConfig) else ChoiceConfig(choice)
        likelihood = backends.load_likelihood(bundle, backend, threads) if rule.asks_likelihood(bundle) else None
        return cls(bundle, backends.load(bundle, backend, threads), rule, seed, likelihood)

    def reset(self, seed: int) -> None:
        """Begin an episode: start the random numbers anew, forget the expert and the actions."""
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._chosen.reset(seed)
        if self._commitment is not None:
            self._commitment.reset(seed)
        self._past.reset()
        self._certain.reset()

    def act(self, observation: Mapping[str, np.ndarray], elapsed: int | None = None) -> Prediction:
        """Return the chunk for an observation without batch axis, each input `(T, ...)`.

        Args:
            observation: the inputs by name.
            elapsed: policy periods since the observation before; None takes the policy's `n_action_steps`.

        Raises:
            EngineError: the observation has the wrong names, shapes or types, or it or the answer isn't finite.
        """
        began = time.monotonic_ns()
        if elapsed not in (None, 1):  # ticks are missing between what was executed and now
            self._past.reset()
        waited = self.bundle.n_action_steps if elapsed is None else elapsed
        inputs = self._past.inputs() | self._certain.inputs(waited)
        for name, (shape, dtype) in self._inputs.items():
            if name == "noise":
                inputs[name] = self._rng.standard_normal(shape, dtype)
            elif name not in inputs:
                inputs[name] = checked_input(name, shape, dtype, observation)
        if self._commitment is not None:
            went_on = self._commitment.next(inputs, waited)
            return Prediction(went_on.actions, went_on.expert, went_on.log_gate, time.monotonic_ns() - began, went_on.means)
        outputs = self.engine.run(inputs)
        means, log_gate, expert = outputs.get("means"), outputs.get("log_gate"), None
        if means is not None:
            log_gate = log_gate[0]
            expert = self._choose(log_gate, means[0], waited)
            actions = means[0, expert]
        elif self.choice.rule == "coherent" and "noise" in inputs:
            means = self._drawn(inputs, outputs["actions"], waited)[None]
            actions = means[0, self._choose(np.zeros(len(means[0]), np.float32), means[0], waited)]
        else:
            actions = outputs["actions"][0]
        if not np.isfinite(actions).all():
            raise EngineError(f"engine '{self.engine.name}' answered with NaN or infinity; nothing of it is used")
        self._past.add(actions[0])
        self._certain.add(actions)
        latency = time.monotonic_ns() - began
        return Prediction(actions, expert, log_gate, latency, None if means is None else means[0])

    def disown(self) -> None:
        """Forget the newest chunk, which isn't executed: nothing goes on with it. Random numbers and experts go on."""
        self._past.reset()
        self._certain.reset()
        self._chosen.disown()
        if self._commitment is not None:
            self._commitment.disown()

    def warm_up(self, observation: Mapping[str, np.ndarray], count: int = 5) -> None:
        """Run the engine a few times, so that the first chunk is as fast as the others; nothing else changes."""
        kept = copy.deepcopy((self._rng, self._chosen, self._past, self._certain))
        for _ in range(count):
            self.act(observation)
        self._rng, self._chosen, self._past, self._certain = kept
        if self._commitment is not None:
            self._commitment.reset(self._seed)

    def _drawn(self, inputs: dict[str, np.ndarray], first: np.ndarray, elapsed: int) -> np.ndarray:
        """Return chunks `(N, H, A)` for one observation: the first, and more where one is to go on with the plan before."""
        drawn, (shape, dtype) = [first], self._inputs["noise"]
        while len(drawn) < self.choice.draws and not self._chosen.begins(elapsed):
            drawn.append(self.engine.run(inputs | {"noise": self._rng.standard_normal(shape, dtype)})["actions"])
        return np.concatenate(drawn)

    def _choose(self, log_gate: np.ndarray, means: np.ndarray, elapsed: int) -> int:
        if not np.isfinite(log_gate).all():
            raise EngineError(f"engine '{self.engine.name}' answered with a gate that isn't finite; it isn't used")
        if not np.isfinite(means).all():  # of any expert: `coherent` compares them all, and remembers one
            raise EngineError(f"engine '{self.engine.name}' answered with NaN or infinity; nothing of it is used")
        return self._chosen.choose(log_gate, means / self._half_range, elapsed)


def _commitment(bundle: Bundle, likelihood: Engine | None, choice: ChoiceConfig, seed: int) -> Commitment | None:
    if not choice.asks_likelihood(bundle):
        return None
    if likelihood is None:
        raise EngineError("choice 'committed' asks the mixture's likelihood; load it with ros_vdd.backends.load_likelihood")
    return Commitment(bundle, likelihood, choice, seed)


def checked_input(name: str, shape: tuple[int, ...], dtype: np.dtype, observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return an observation with its batch axis, or refuse it; NaN too, which a clip in a graph may hide."""
    if name not in observation:
        raise EngineError(f"observation lacks '{name}'; it holds {', '.join(sorted(observation)) or 'nothing'}")
    array = observation[name]
    if array.shape != shape[1:] or array.dtype != dtype:
        raise EngineError(f"observation '{name}' is {array.dtype}{array.shape}; the policy takes {dtype}{shape[1:]}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise EngineError(f"observation '{name}' holds NaN or infinity; nothing is inferred from it")
    return array[None]


def padded_chunk(chunk: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Return "chunk" `(H, A)`, the last action repeated, and "mask" `(H,)`, 1 where given, of a chunk `(h, A)`.

    shape `(1, H, A)` and dtype are those of the input.

    Raises:
        EngineError: it has more actions, none, or others.
    """
    chunk = np.asarray(chunk, dtype)
    if chunk.ndim != 2 or not 1 <= len(chunk) <= shape[1] or chunk.shape[1] != shape[2]:
        raise EngineError(f"chunk has shape {chunk.shape}; expected 1 to {shape[1]} actions of {shape[2]} numbers")
    padded = np.pad(chunk, ((0, shape[1] - len(chunk)), (0, 0)), mode="edge")
    return {"chunk": padded, "mask": (np.arange(shape[1]) < len(chunk)).astype(dtype)}


class InferenceThread:
    """Runs a function on the newest request, in one thread that owns the engine.

    `submit` is called by the thread that receives messages and never waits for work: a request that wasn't begun yet is
    replaced and counted in `replaced`. `on_result(request, result)` and `on_error(request, error)` are called by the
    inference thread.

    Where the thread has nothing to do, `submit` gives way until it has taken the request up, `GIVE_WAY_S` at most. Python runs one
    thread at a time: else the request would wait for all that the caller does next, which was 0.2 to 0.3 ms of rclpy.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        on_result: Callable[[Any, Any], None],
        on_error: Callable[[Any, Exception], None],
    ):
        self._work, self._on_result, self._on_error = work, on_result, on_error
        self._condition = threading.Condition()
        self._request: Any = None
        self._running, self.idle = True, False
        self._awaited = False  # whether `submit` waits until its request is taken up
        self._taken = threading.Lock()  # released then
        self._taken.acquire()
        self.replaced = 0
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Any) -> None:
        """Hand over a request; the newest wins."""
        with self._condition:
            self.replaced += self._request is not None
            self._request = request
            self._awaited, self.idle = self.idle, False
            awaited = self._awaited
            if awaited:
                self._taken.acquire(blocking=False)  # released after the wait before was over
            self._condition.notify()
        if awaited:
            self._taken.acquire(timeout=GIVE_WAY_S)

    def stop(self, timeout_s: float = 2.0) -> bool:
        """End the thread after the work in hand; return whether it ended in time."""
        with self._condition:
            self._running, self._request = False, None
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self.idle = self._request is None
                self._condition.wait_for(lambda: self._request is not None or not self._running)
                if not self._running:
                    return
                request, self._request = self._request, None
                if self._awaited:
                    self._awaited = False
                    self._taken.release()
            try:
                self._on_result(request, self._work(request))
            except Exception as error:  # whatever an engine raises: it is told, and the thread lives on
                self._on_error(request, error)
