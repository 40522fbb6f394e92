# SPDX-License-Identifier: Apache-2.0
"""One plan at a time: which expert goes on, given what of the plan before is already certain, in closed form.

    p(z | s, c) prop. to q(z | s) N(c; mu_z, Sigma_z)      c: the next actions of the plan before, executed whatever is decided now
    a | s, c, z = mean of N(mu_z, Sigma_z) given c          so the chunk begins with c, and goes on as the covariance couples it
    z ~ p(z | s, c)^(1/T) exp(mean_i ln N(r_i; mu_zi, s_zi^2))      r: the whole rest of the plan before; z* = argmax p(z | s, c) instead
                                                             where ln p(z*) - ln p(z) > margin: for a trifle no plan is changed

The density of the rest counts as that of one action: neighbouring actions say the same, which independent experts don't know.
Both come from one evaluation of the likelihood's graph, in place of the policy's. Our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ros_vdd.backends import Engine, likelihood_shapes
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.runtime.choice import ChoiceConfig, draw, tempered


class Continuation(NamedTuple):
    """What the mixture says, given the actions that are certain."""

    actions: np.ndarray
    """(H, A) of the chosen expert, which begin with what is certain."""
    expert: int
    log_gate: np.ndarray
    """(K,) ln p(z | s, c)."""
    means: np.ndarray
    """(K, H, A), of every expert, likewise."""


class Commitment:
    """The choice `committed`: keeps the plan before and asks the mixture how it goes on; one thread may call it.

    Args:
        bundle: a mixture.
        engine: its likelihood.
        config: `temperature` T, `sticky_margin` [nats], and `commit_steps`: how many actions of the
            plan before are certain.
        seed: of what is drawn.
    """

    def __init__(self, bundle: Bundle, engine: Engine, config: ChoiceConfig, seed: int = 0):
        self._engine, self._config = engine, config
        self._chunk = likelihood_shapes(bundle)["chunk"][0]
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin an episode: there is no plan before."""
        self._rng = np.random.default_rng([seed, 1])
        self._plan: np.ndarray | None = None
        self._expert: int | None = None

    def disown(self) -> None:
        """Forget the plan before, which isn't executed: nothing of it is certain."""
        self._plan = self._expert = None

    def next(self, inputs: Mapping[str, np.ndarray], elapsed: int) -> Continuation:
        """Return how to go on.

        Args:
            inputs: of the policy, with batch axis.
            elapsed: ticks since the plan before.

        Raises:
            EngineError: the answer isn't finite, or the graph is older than this rule.
        """
        rest = self._plan[elapsed:] if self._plan is not None and 0 < elapsed < len(self._plan) else None
        certain = 0 if rest is None else min(self._config.commit_steps, len(rest))
        said = self._ask(inputs, rest, certain)
        expert = self._choose(said, rest)
        self._plan, self._expert = np.array(said["continued"][expert]), expert
        return Continuation(self._plan, expert, said["log_responsibilities"], said["continued"])

    def _ask(self, inputs: Mapping[str, np.ndarray], rest: np.ndarray | None, certain: int) -> dict[str, np.ndarray]:
        chunk, mask = np.zeros(self._chunk, np.float32), np.zeros(self._chunk[:2], np.float32)
        if certain:
            chunk[0, :certain], mask[0, :certain] = rest[:certain], 1.0
        answer = {name: value[0] for name, value in self._engine.run({**inputs, "chunk": chunk, "mask": mask}).items()}
        if "continued" not in answer:
            raise EngineError("this likelihood.onnx was exported before 'committed' existed; run ros-vdd export again")
        if not all(np.isfinite(answer[name]).all() for name in ("log_responsibilities", "means", "stds", "continued")):
            raise EngineError(f"engine '{self._engine.name}' answered with NaN or infinity; nothing of it is used")
        return answer

    def _choose(self, said: Mapping[str, np.ndarray], rest: np.ndarray | None) -> int:
        weights = said["log_responsibilities"]
        if rest is None:
            return draw(tempered(weights, self._config.temperature), self._rng)
        going_on = tempered(weights, self._config.temperature) + fit(rest, said["means"], said["stds"])
        kept = draw(going_on - going_on.max(), self._rng)
        best = int(weights.argmax())
        return best if weights[best] - weights[kept] > self._config.sticky_margin else kept


def fit(rest: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """Return how likely each expert `(K,)` holds the next actions `(h, A)`, the mean over them [nats, but for a constant].

    Args:
        means, stds: (K, H, A) of the experts.
    """
    means, stds = (value[:, : len(rest)].astype(np.float64) for value in (means, stds))
    return -(0.5 * np.square((rest - means) / stds) + np.log(stds)).sum(axis=2).mean(axis=1)
