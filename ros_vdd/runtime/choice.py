# SPDX-License-Identifier: Apache-2.0
"""Which expert of a mixture acts: rules outside the graph, each a function of the gate and of a seed.

    argmax   z = argmax_j log q(j|s)                       nothing is drawn
    sample   z ~ q(.|s)^(1/T), anew at each choice         VDD's own rule (Zhou et al. 2024, arXiv 2406.12538), T = 1
    sticky   z stays until another was likelier by more than `sticky_margin` at `sticky_steps` choices in a row
    gumbel   z = argmax_j log q(j|s)/T + g_j, with noise g_j ~ Gumbel(0, 1) that is drawn once an episode
    coherent z ~ q(.|s)^(1/T) exp(-1/2 sum_i ((a'_i - mu_zi) / (tolerance r_i))^2), a' what is left of the plan before, r half the
             range of a joint: among the plans that the gate offers, one that goes on with what was begun

    committed  given the actions that are certain, the expert that goes on with them; see `ros_vdd.runtime.commitment`

All but the first two commit, so that a robot doesn't waver between plans. `gumbel` has at each state the same marginal as
`sample` (Gumbel-max: Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030); freezing the noise is our own. `coherent` commits to
motions, not to an expert's number: the criterion is backward coherence (Liu et al. 2024, arXiv 2408.17355), here a weight. A
policy that denoises has no experts: `coherent` then draws as many chunks as `draws` says and chooses among them, all as likely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError, suggest

SETTINGS = {
    "argmax": (),
    "sample": ("temperature",),
    "sticky": ("sticky_margin", "sticky_steps"),
    "gumbel": ("temperature",),
    "coherent": ("temperature", "tolerance", "draws"),
    "committed": ("temperature", "sticky_margin", "commit_steps"),
}
RULES = tuple(SETTINGS)
MIN_TOLERANCE = 1e-6
"""float32 doesn't resolve smaller shares of a joint's range; far below, squared distances would overflow."""


@dataclass(frozen=True)
class ChoiceConfig:
    """A rule and its settings; a rule ignores the settings of the others.

    Args:
        rule: argmax, sample, sticky, gumbel or coherent.
        temperature: T above; 1 follows the gate, less prefers likely experts, more evens the gate out.
        sticky_margin: how much likelier another expert must be, [nats].
        sticky_steps: at how many choices in a row.
        tolerance: standard deviation of an action from the plan before, as a share of half the joint's range; at least 1e-6.
        commit_steps: of `committed`, how many actions of the plan before are executed whatever is decided now.
        draws: of `coherent`, how many chunks a policy without experts draws to choose from.

    Raises:
        ConfigError: no such rule, or a setting outside its range.
    """

    rule: str = "argmax"
    temperature: float = 1.0
    sticky_margin: float = 1.0
    sticky_steps: int = 2
    tolerance: float = 0.5
    commit_steps: int = 1
    draws: int = 8

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
        if not MIN_TOLERANCE <= self.tolerance < math.inf:
            raise ConfigError(
                f"'tolerance' is {self.tolerance}; expected a share of half the joint range, {MIN_TOLERANCE:g} or more"
            )
        if self.commit_steps < 0:
            raise ConfigError(f"'commit_steps' is {self.commit_steps}; expected 0 or more")
        if self.draws < 1:
            raise ConfigError(f"'draws' is {self.draws}; expected at least 1")

    def asks_likelihood(self, bundle: Bundle) -> bool:
        """Return whether the rule asks a policy's likelihood; one without experts has nothing to choose."""
        return self.rule == "committed" and bundle.kind == "mixture"

    @property
    def settings(self) -> dict[str, float | int]:
        """Return the settings that the rule reads."""
        return {name: getattr(self, name) for name in SETTINGS[self.rule]}


class ExpertChoice:
    """Chooses an expert for one plan after the other; what it keeps between them begins anew with `reset`.

    `committed` isn't chosen here: it asks another graph, see `ros_vdd.runtime.commitment`.
    """

    def __init__(self, config: ChoiceConfig, seed: int = 0):
        self.config = config
        self._choose = getattr(self, f"_{config.rule}", None)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin an episode: forget the expert and draw anew."""
        self._rng = np.random.default_rng(seed)
        # Simulators draw an episode's start from default_rng(seed). What binds a whole episode must not depend on it.
        self._bound = np.random.default_rng([seed, 1])
        self._noise: np.ndarray | None = None
        self._expert: int | None = None
        self._plan: np.ndarray | None = None

    def disown(self) -> None:
        """Forget the plan before, which isn't executed."""
        self._plan = None

    def choose(self, log_gate: np.ndarray, plans: np.ndarray | None = None, elapsed: int = 0) -> int:
        """Return the expert for the next plan.

        Args:
            log_gate: (K,) log q(z|s).
            plans: (K, H, A) what the experts propose, in halves of the joints' ranges; only `coherent` looks at them.
            elapsed: ticks since the choice before; 0 when there was none.
        """
        return self._choose(log_gate, plans, elapsed)

    def begins(self, elapsed: int) -> bool:
        """Return whether nothing is left of a plan before, so that many ticks after it."""
        return self._plan is None or not 0 < elapsed < len(self._plan)

    def _argmax(self, log_gate: np.ndarray, plans: np.ndarray, elapsed: int) -> int:
        return int(log_gate.argmax())

    def _sample(self, log_gate: np.ndarray, plans: np.ndarray, elapsed: int) -> int:
        return draw(tempered(log_gate, self.config.temperature), self._rng)

    def _sticky(self, log_gate: np.ndarray, plans: np.ndarray, elapsed: int) -> int:
        if self._expert is None:
            self._take(draw(tempered(log_gate), self._bound), len(log_gate))
            return self._expert
        likelier = log_gate - log_gate[self._expert] > self.config.sticky_margin
        self._led = np.where(likelier, self._led + 1, 0)
        ready = self._led >= self.config.sticky_steps
        if ready.any():
            self._take(int(np.where(ready, log_gate, -np.inf).argmax()), len(log_gate))
        return self._expert

    def _take(self, expert: int, experts: int) -> None:
        self._expert, self._led = expert, np.zeros(experts, int)  # for how many choices each has led

    def _gumbel(self, log_gate: np.ndarray, plans: np.ndarray, elapsed: int) -> int:
        if self._noise is None:
            self._noise = self._bound.gumbel(size=len(log_gate))
        return int((tempered(log_gate, self.config.temperature) + self._noise).argmax())

    def _coherent(self, log_gate: np.ndarray, plans: np.ndarray, elapsed: int) -> int:
        weights = tempered(log_gate, self.config.temperature)
        if not self.begins(elapsed):
            left = self._plan[elapsed:]
            weights = weights - 0.5 * np.square((plans[:, : len(left)] - left) / self.config.tolerance).sum(axis=(1, 2))
            weights -= weights.max()
        expert = draw(weights, self._bound)
        self._plan = np.array(plans[expert])
        return expert


def tempered(log_gate: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return `(log q - max log q) / T` in the gate's own precision; T = 1 changes no bit."""
    with np.errstate(over="ignore"):  # of a small T: minus infinity is right
        return ((log_gate - log_gate.max()).astype(np.float64) / temperature).astype(log_gate.dtype)


def draw(log_weights: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index with probability `exp(log_weights) / sum`; the largest log weight is 0."""
    weights = np.exp(log_weights)
    return int(min(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random()), len(weights) - 1))
