# SPDX-License-Identifier: Apache-2.0
"""Figures by which an anomaly shows, one set a plan: asked beside the policy, never in its way.

What tells is the plan before: what was left of it, under the newest observation. A plan that goes well is still a good one a plan
later. The newest plan itself tells nothing, as it is one of the chunks that it would be compared with; so a scene that is strange
but steady, to which all plans answer alike, isn't noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle
from ros_vdd.config import build
from ros_vdd.errors import ConfigError, EngineError
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.energy import EnergyRunner
from ros_vdd.runtime.inference import Prediction
from ros_vdd.runtime.likelihood import LikelihoodRunner

PATIENCE = 3
"""Plans in a row that must be beyond the bound: of good ones each is so once in a hundred."""
JUDGEMENT = "anomaly"


@dataclass(frozen=True)
class Calibration:
    """Where a figure stops being ordinary; `ros-vdd calibrate` measures it on demonstrations.

    `figure`: its name. `bound`: its quantile `quantile` over `windows` windows of `episodes` episodes of the data `data_sha256`,
    whose `median` is beside it. `actions`: how many of those that were left of a plan it counts.
    """

    figure: str
    bound: float
    median: float
    quantile: float
    actions: int
    windows: int
    episodes: int
    data_sha256: str

    def __post_init__(self):
        if self.actions < 1 or not 0 < self.quantile < 1 or not np.isfinite([self.bound, self.median]).all():
            raise ConfigError(
                f"'actions' is {self.actions}, 'quantile' {self.quantile}, 'bound' {self.bound}, 'median' {self.median}; "
                "expected at least 1, between 0 and 1, and numbers; run ros-vdd calibrate again"
            )


class PlanMonitor:
    """Tells the figures of a plan, and whether the last `PATIENCE` plans were all beyond the calibrated bound.

    Subclasses name their `FIGURES`, the `SCORE` among them that an anomaly shows by, and on which `SIDE` of the bound: 1 above.
    """

    FIGURES: tuple[str, ...] = ()
    SCORE = ""
    SIDE = 1

    def __init__(self, runner, calibration: Calibration | None = None):
        if calibration is not None and calibration.figure != self.SCORE:
            raise ConfigError(
                f"'calibration.figure' is '{calibration.figure}'; this policy's is '{self.SCORE}'; run ros-vdd calibrate again"
            )
        self._runner, self.calibration = runner, calibration
        self.reset()

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the names of what `look` tells."""
        return (*self.FIGURES, JUDGEMENT)

    def reset(self) -> None:
        """Begin an episode: there is no plan before."""
        self._before: ActionChunk | None = None
        self._beyond = 0

    def skip(self, chunk: ActionChunk) -> None:
        """Keep a plan for the next without its figures."""
        self._before = chunk

    def look(self, observation: Mapping[str, np.ndarray], chunk: ActionChunk, prediction: Prediction) -> dict[str, Any]:
        """Return the figures of a plan by name, and keep the plan for the next.

        What needs the plan before is None for the first plan, when too little was left, or when the tick isn't later; the
        judgement is None without a calibration.

        Raises:
            EngineError: the answer can't be had or isn't finite.
        """
        left = None if self._before is None else remaining(self._before, chunk.stamp_ns)
        self._before = chunk
        if self.calibration is not None:
            left = first(left, self.calibration.actions)
        figures = self._figures(observation, left, chunk, prediction)
        return {**figures, JUDGEMENT: self._judge(figures[self.SCORE])}

    def score(self, observation: Mapping[str, np.ndarray], actions: np.ndarray) -> float:
        """Return the score of the first actions `(h, A)` of a chunk under an observation."""
        raise NotImplementedError

    def _figures(
        self, observation: Mapping[str, np.ndarray], left: np.ndarray | None, chunk: ActionChunk, prediction: Prediction
    ) -> dict[str, float | None]:
        raise NotImplementedError

    def _judge(self, score: float | None) -> bool | None:
        if self.calibration is None:
            return None
        if score is not None:
            self._beyond = self._beyond + 1 if self.SIDE * (score - self.calibration.bound) > 0 else 0
        return self._beyond >= PATIENCE


class MixtureMonitor(PlanMonitor):
    """What a mixture tells.

    gate_entropy    of the gate at the newest observation, [nats]
    expert_spread   mean standard deviation of the chosen expert's actions, in the robot's unit
    plan_log_prob   ln q of what was left of the plan before, under the newest observation, [nats]
    """

    FIGURES = ("gate_entropy", "expert_spread", "plan_log_prob")
    SCORE, SIDE = "plan_log_prob", -1

    _runner: LikelihoodRunner

    def score(self, observation: Mapping[str, np.ndarray], actions: np.ndarray) -> float:
        """Return ln q of the first actions `(h, A)` of a chunk, [nats]."""
        return self._runner.evaluate(observation, actions).log_prob

    def _figures(self, observation, left, chunk, prediction):
        said = self._runner.evaluate(observation, chunk.actions if left is None else left)
        spread = float(said.stds[prediction.expert].mean())
        return dict(zip(self.FIGURES, (said.gate_entropy, spread, None if left is None else said.log_prob)))


class CriticMonitor(PlanMonitor):
    """What a critic tells of what was left of the plan before, among the student's own chunks at the newest observation.

    plan_energy_rank   share of them whose energy is lower, 0 to 1
    plan_energy_score  energy less their median, in robust standard deviations of theirs: goes on where the rank ends
    """

    FIGURES = ("plan_energy_rank", "plan_energy_score")
    SCORE, SIDE = "plan_energy_score", 1

    _runner: EnergyRunner

    def score(self, observation: Mapping[str, np.ndarray], actions: np.ndarray) -> float:
        """Return the robust score of the first actions `(h, A)` of a chunk."""
        return self._runner.evaluate(observation, actions).score

    def _figures(self, observation, left, chunk, prediction):
        if left is None:
            return dict.fromkeys(self.FIGURES)
        said = self._runner.evaluate(observation, left)
        return dict(zip(self.FIGURES, (said.rank, said.score)))


def open_monitor(bundle: Bundle, backend: str = "onnxruntime") -> PlanMonitor:
    """Return the monitor of a policy, with the calibration that its folder holds.

    Raises:
        EngineError: the policy is neither a mixture nor a student with a critic, or its engine can't be loaded.
        PolicyError: the folder lacks the graph.
        ConfigError: the calibration in `policy.yaml` isn't one of this policy.
    """
    calibration = build(Calibration, bundle.manifest.calibration, "calibration") if bundle.manifest.calibration else None
    if bundle.kind == "mixture":
        return MixtureMonitor(LikelihoodRunner(bundle, backends.load_likelihood(bundle, backend)), calibration)
    if bundle.has_critic:
        return CriticMonitor(EnergyRunner(bundle, backends.load_energy(bundle, backend)), calibration)
    raise EngineError(
        f"'{bundle.path}' is a {bundle.kind} policy without a critic; only a mixture, or a student that was trained with a "
        "critic (method: dxmi), tells how sure it is"
    )


def remaining(chunk: ActionChunk, stamp_ns: int) -> np.ndarray | None:
    """Return the actions `(h, A)` of a plan from a later tick on, or None when none are left or the tick isn't later."""
    steps = round((stamp_ns - chunk.stamp_ns) / chunk.dt_ns)
    return chunk.actions[steps:] if 0 < steps < len(chunk.actions) else None


def first(actions: np.ndarray | None, count: int) -> np.ndarray | None:
    """Return the first actions `(count, A)`, or None when there are fewer."""
    return None if actions is None or len(actions) < count else actions[:count]
