# SPDX-License-Identifier: Apache-2.0
"""Which expert of a mixture acts: four rules outside the graph, each a function of the gate and of a seed.

    argmax   z = argmax_j log q(j|s)                       nothing is drawn
    sample   z ~ q(.|s)^(1/T), anew at each choice         VDD's own rule (Zhou et al. 2024, arXiv 2406.12538), T = 1
    sticky   z stays until another was likelier by more than `sticky_margin` at `sticky_steps` choices in a row
    gumbel   z = argmax_j log q(j|s)/T + g_j, with noise g_j ~ Gumbel(0, 1) that is drawn once an episode

The last two commit, so that a robot doesn't waver between plans. `gumbel` has at each state the same marginal as
`sample` (Gumbel-max: Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030); freezing the noise is our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ros_vdd.errors import ConfigError, suggest

SETTINGS = {
    "argmax": (),
    "sample": ("temperature",),
    "sticky": ("sticky_margin", "sticky_steps"),
    "gumbel": ("temperature",),
}
RULES = tuple(SETTINGS)


@dataclass(frozen=True)
class ChoiceConfig:
    """A rule and its settings; a rule ignores the settings of the others.

    Args:
        rule: argmax, sample, sticky or gumbel.
        temperature: T above; 1 follows the gate, less prefers likely experts, more evens the gate out.
        sticky_margin: how much likelier another expert must be, [nats].
        sticky_steps: at how many choices in a row.

    Raises:
        ConfigError: no such rule, or a setting outside its range.
    """

    rule: str = "argmax"
    temperature: float = 1.0
    sticky_margin: float = 1.0
    sticky_steps: int = 2

    def __post_init__(self):
        if self.rule not in RULES:
            raise ConfigError(f"'choice' is '{self.rule}'; {suggest(self.rule, RULES)}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"'temperature' is {self.temperature}; expected a number above 0")
        if not 0 <= self.sticky_margin < math.inf or self.sticky_steps < 1:
            raise ConfigError(
                f"'sticky_margin' is {self.sticky_margin}, 'sticky_steps' {self.sticky_steps}; "
                "expected a margin of 0 nats or more and at least 1 step"
            )

    @property
    def settings(self) -> dict[str, float | int]:
        """Return the settings that the rule reads."""
        return {name: getattr(self, name) for name in SETTINGS[self.rule]}


class ExpertChoice:
    """Chooses an expert for one plan after the other; what it keeps between them begins anew with `reset`."""

    def __init__(self, config: ChoiceConfig, seed: int = 0):
        self.config = config
        self._choose = getattr(self, f"_{config.rule}")
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin an episode: forget the expert and draw anew."""
        self._rng = np.random.default_rng(seed)
        # Simulators draw an episode's start from default_rng(seed). What binds a whole episode must not depend on it.
        self._bound = np.random.default_rng([seed, 1])
        self._noise: np.ndarray | None = None
        self._expert: int | None = None

    def choose(self, log_gate: np.ndarray) -> int:
        """Return the expert for the next plan, from `log q(z|s)` (K,)."""
        return self._choose(log_gate)

    def _argmax(self, log_gate: np.ndarray) -> int:
        return int(log_gate.argmax())

    def _sample(self, log_gate: np.ndarray) -> int:
        return _draw(_tempered(log_gate, self.config.temperature), self._rng)

    def _sticky(self, log_gate: np.ndarray) -> int:
        if self._expert is None:
            self._take(_draw(_tempered(log_gate), self._bound), len(log_gate))
            return self._expert
        likelier = log_gate - log_gate[self._expert] > self.config.sticky_margin
        self._led = np.where(likelier, self._led + 1, 0)
        ready = self._led >= self.config.sticky_steps
        if ready.any():
            self._take(int(np.where(ready, log_gate, -np.inf).argmax()), len(log_gate))
        return self._expert

    def _take(self, expert: int, experts: int) -> None:
        self._expert, self._led = expert, np.zeros(experts, int)  # for how many choices each has led

    def _gumbel(self, log_gate: np.ndarray) -> int:
        if self._noise is None:
            self._noise = self._bound.gumbel(size=len(log_gate))
        return int((_tempered(log_gate, self.config.temperature) + self._noise).argmax())


def _tempered(log_gate: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return `(log q - max log q) / T` in the gate's own precision; T = 1 changes no bit."""
    with np.errstate(over="ignore"):  # of a small T: minus infinity is right
        return ((log_gate - log_gate.max()).astype(np.float64) / temperature).astype(log_gate.dtype)


def _draw(log_weights: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index with probability `exp(log_weights) / sum`; the largest log weight is 0."""
    weights = np.exp(log_weights)
    return int(min(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random()), len(weights) - 1))
