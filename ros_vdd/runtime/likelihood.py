# SPDX-License-Identifier: Apache-2.0
"""How likely a mixture holds a chunk to be, and how sure it is: asked beside the policy, never in its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ros_vdd.backends import Engine, likelihood_shapes
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.runtime.inference import checked_input, padded_chunk


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
    continued: np.ndarray | None = None
    """(K, H, A) the experts' means given the actions that count, which stand first; None from a graph of an older export."""


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
