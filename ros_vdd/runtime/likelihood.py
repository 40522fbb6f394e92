# SPDX-License-Identifier: Apache-2.0
"""How likely a mixture holds a chunk to be, and how sure it is: asked beside the policy, never in its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ros_vdd.backends import Engine, likelihood_shapes
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.inference import Prediction, checked_input, padded_chunk


FIGURES = ("gate_entropy", "expert_spread", "plan_log_prob")


class Likelihood(NamedTuple):
    """What a mixture says of a chunk, in the robot's units."""

    log_prob: float
    """ln q(a|s), a density [nats]: it changes with the units and with the number of actions."""
    log_responsibilities: np.ndarray
    """(K,) ln q(z|a,s) [nats]: which expert the chunk belongs to."""
    gate_entropy: float
    """Of q(z|s) [nats]: 0 when one expert is certain, ln K when all are alike."""
    means: np.ndarray
    """(K, H, A) of the experts."""
    stds: np.ndarray
    """(K, H, A) of the experts."""


class LikelihoodRunner:
    """The likelihood engine of a mixture; one thread may call it at a time."""

    def __init__(self, bundle: Bundle, engine: Engine):
        self._engine, self._inputs = engine, likelihood_shapes(bundle)

    def evaluate(self, observation: Mapping[str, np.ndarray], chunk: np.ndarray) -> Likelihood:
        """Return the likelihood of a chunk under an observation without batch axis, each input `(T, ...)`.

        Args:
            observation: as `PolicyRunner.act` takes it.
            chunk: (h, A) in the robot's units; with h < H the rest is integrated out, so it may be anything.

        Raises:
            EngineError: chunk or observation don't fit, or they or the answer aren't finite.
        """
        given = {**observation, **padded_chunk(chunk, *self._inputs["chunk"])}
        inputs = {name: checked_input(name, *expected, given) for name, expected in self._inputs.items()}
        answer = {name: value[0] for name, value in self._engine.run(inputs).items()}
        if not all(np.isfinite(value).all() for value in answer.values()):
            raise EngineError(f"engine '{self._engine.name}' answered a likelihood that isn't finite; it isn't used")
        return Likelihood(**answer)._replace(log_prob=float(answer["log_prob"]), gate_entropy=float(answer["gate_entropy"]))


class PlanMonitor:
    """Figures by which an anomaly shows, one set a plan.

    gate_entropy    of the gate at the newest observation, [nats]
    expert_spread   mean standard deviation of the chosen expert's actions, in the robot's unit
    plan_log_prob   ln q of what was left of the plan before, under the newest observation, [nats]: a plan that goes well is
                    still likely one plan later. None for the first plan, or when nothing was left
    """

    def __init__(self, runner: LikelihoodRunner):
        self._runner = runner
        self._before: ActionChunk | None = None

    def reset(self) -> None:
        """Begin an episode: there is no plan before."""
        self._before = None

    def look(self, observation: Mapping[str, np.ndarray], chunk: ActionChunk, prediction: Prediction) -> dict[str, float | None]:
        """Return the figures of a plan by name, and keep the plan for the next."""
        left = None if self._before is None else remaining(self._before, chunk.stamp_ns)
        self._before = chunk
        said = self._runner.evaluate(observation, chunk.actions if left is None else left)
        spread = float(said.stds[prediction.expert].mean())
        return dict(zip(FIGURES, (said.gate_entropy, spread, None if left is None else said.log_prob)))


def remaining(chunk: ActionChunk, stamp_ns: int) -> np.ndarray | None:
    """Return the actions `(h, A)` of a plan from a later tick on, or None when none are left or the tick isn't later."""
    steps = round((stamp_ns - chunk.stamp_ns) / chunk.dt_ns)
    return chunk.actions[steps:] if 0 < steps < len(chunk.actions) else None
