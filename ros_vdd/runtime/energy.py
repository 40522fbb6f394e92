# SPDX-License-Identifier: Apache-2.0
"""How strange a chunk is to a student with a critic: its energy, ranked among the student's own at the same observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ros_vdd.backends import Engine, energy_shapes
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.runtime.inference import checked_input, padded_chunk


class Energy(NamedTuple):
    """What a critic says of a chunk; only `rank` and `score` can be compared between observations."""

    energy: float
    """E(o, a), in a unit of its own that is another for each observation."""
    samples: np.ndarray
    """(M,) E of the student's own chunks at the same observation."""

    @property
    def rank(self) -> float:
        """Return the share of the student's own chunks whose energy is lower: near 1 for what it would hardly do.

        Ties count half.
        """
        return float((self.samples < self.energy).mean() + 0.5 * (self.samples == self.energy).mean())

    @property
    def excess(self) -> float:
        """Return E(o, a) less the median of the student's own chunks."""
        return float(self.energy - np.median(self.samples))

    @property
    def score(self) -> float:
        """Return the excess in robust standard deviations of the student's own chunks, 1.4826 median |E - median|.

        As comparable between observations as the rank, but it goes on where all own chunks are less strange. Where those are all
        alike, float32 resolves no less than a millionth. Source: Iglewicz & Hoaglin 1993, the modified z-score.
        """
        median = np.median(self.samples)
        spread = 1.4826 * np.median(np.abs(self.samples - median))
        return float((self.energy - median) / max(spread, 1e-6 * max(1.0, abs(median))))


class EnergyRunner:
    """The critic's engine of a student; one thread may call it at a time.

    The student's own chunks are drawn from the same noise at every call, so the answer is a function of observation and chunk.
    """

    def __init__(self, bundle: Bundle, engine: Engine, seed: int = 0):
        self._engine, self._inputs = engine, energy_shapes(bundle)
        shape, dtype = self._inputs["noise"]
        self._noise = np.random.default_rng(seed).standard_normal(shape[1:], dtype)

    def evaluate(self, observation: Mapping[str, np.ndarray], chunk: np.ndarray) -> Energy:
        """Return the energy of a chunk under an observation without batch axis, each input `(T, ...)`.

        Args:
            observation: as `PolicyRunner.act` takes it.
            chunk: (h, A) in the robot's units; with h < H the student's own chunks count with their first h actions too.

        Raises:
            EngineError: chunk or observation don't fit, or they or the answer aren't finite.
        """
        given = {**observation, **padded_chunk(chunk, *self._inputs["chunk"]), "noise": self._noise}
        inputs = {name: checked_input(name, *expected, given) for name, expected in self._inputs.items()}
        answer = {name: value[0] for name, value in self._engine.run(inputs).items()}
        if not all(np.isfinite(value).all() for value in answer.values()):
            raise EngineError(f"engine '{self._engine.name}' answered an energy that isn't finite; it isn't used")
        return Energy(float(answer["energy"]), answer["samples"])
