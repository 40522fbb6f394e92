# SPDX-License-Identifier: Apache-2.0
"""Three toys whose density is known exactly, and its denoiser as a teacher.

    ring          a point: 8 Gaussians of std 0.354 on radius 2.83, equally likely; the observation says nothing
    ring_turned   the ring, turned by the observation o in [-1, 1] times half the angle between two modes
    obstacle      a chunk of 8 points: past an obstacle on its left or on its right; the observation is where the obstacle is

    p(x; sigma | o) = 1/K sum_k N(x; place(m_k, o), (std^2 + sigma^2) I),   place an isometry

The ring is that of DxMI's code (Yoon et al. 2024, arXiv 2407.00626), on which other codes were measured; two are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from ros_vdd.config import build
from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy
from ros_vdd.policies.policy import Policy
from ros_vdd.streams.spec import load_robot

SIGMA_MIN, SIGMA_MAX = 0.01, 20.0  # normalised; the narrowest mode's std is 0.05
INSIDE = 1 - math.exp(-4.5)  # of the data: within three standard deviations of a mode, in the plane


@dataclass(frozen=True)
class Toy:
    """A mixture of K equal Gaussians in its own unit; one unit of normalised actions is `scale` of them.

    `means` (K, D) and `std` where the observation is 0; `place` and `withdraw` carry points `(N, D)` from there to
    the observation `(N, 1)` and back, in a unit of any size; a third argument says how many of the toy's units it is.
    """

    horizon: int
    means: np.ndarray
    std: float
    scale: float
    place: Callable[[Tensor, Tensor, float], Tensor]
    observed: bool = True

    def withdraw(self, points: Tensor, observation: Tensor, scale: float = 1.0) -> Tensor:
        """Undo `place`."""
        return self.place(points, -observation, scale)

    def observations(self, count: int, rng: np.random.Generator) -> Tensor:
        """Draw what is observed, `(count, 1)` in [-1, 1]; 0 where it says nothing."""
        return torch.from_numpy(rng.uniform(-1, 1, (count, 1)) * self.observed).float()

    def sample(self, observation: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw a point `(N, D)` for each observation `(N, 1)`."""
        drawn = self.means[rng.integers(len(self.means), size=len(observation))]
        return self.place(torch.from_numpy(drawn + self.std * rng.standard_normal(drawn.shape)).float(), observation, 1.0)

    def log_prob(self, x: Tensor, sigma: Tensor, observation: Tensor) -> Tensor:
        """Return ln p(x; sigma | o) `(N,)` of points `(N, D)` smoothed by sigma `(N,)`."""
        variance = self.std**2 + sigma.square()
        means = torch.from_numpy(self.means).to(x)
        squares = (self.withdraw(x, observation)[:, None] - means).square().sum(dim=2)
        weights = (-0.5 * squares / variance[:, None]).logsumexp(dim=1) - math.log(len(means))
        return weights - x.shape[1] / 2 * (2 * math.pi * variance).log()

    def modes(self, x: Tensor, observation: Tensor) -> tuple[np.ndarray, float]:
        """Return the mode nearest to each point `(N,)`, and the share of points as near to one as 0.989 of the data are."""
        away = torch.cdist(self.withdraw(x, observation).double(), torch.from_numpy(self.means))
        distance, mode = away.min(dim=1)
        radius = self.std * math.sqrt(chi2.ppf(INSIDE, self.means.shape[1]))
        return mode.numpy(), (distance <= radius).double().mean().item()


def _stay(points: Tensor, observation: Tensor, scale: float) -> Tensor:
    return points


def _turn(points: Tensor, observation: Tensor, scale: float) -> Tensor:
    angle = observation[:, 0] * (math.pi / 8)
    x, y, cos, sin = points[:, 0], points[:, 1], angle.cos(), angle.sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)


def _shift(points: Tensor, observation: Tensor, scale: float) -> Tensor:
    sideways = torch.zeros_like(points)
    sideways[:, 1::2] = observation / scale
    return points + sideways


def _ring() -> np.ndarray:
    angles = np.arange(8) * (math.pi / 4)
    return 4 / 1.414 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _ways() -> np.ndarray:
    along, aside = np.linspace(-3.0, 3.0, 8), 1.6 * np.sin(np.linspace(0, math.pi, 8))
    return np.stack([np.stack([along, side * aside], axis=1).ravel() for side in (1, -1)])


_RING = {"horizon": 1, "means": _ring(), "std": 0.5 / 1.414, "scale": 2 * math.sqrt(8 / 1.414**2 + 0.25 / 1.414**2)}
"""Scaled to a standard deviation of 0.5 a coordinate."""
TOYS = {
    "ring": Toy(**_RING, place=_stay, observed=False),
    "ring_turned": Toy(**_RING, place=_turn),
    "obstacle": Toy(horizon=8, means=_ways(), std=0.2, scale=4.0, place=_shift),
}


class ExactDenoiser(Denoiser):
    """E[a | x] = c x + (1 - c) sum_k r_k(x) m_k, c = std^2 / (std^2 + s^2), where the observation is 0; in normalised units."""

    def __init__(self, toy: Toy):
        super().__init__(nn.Identity())  # no weights: nothing that a student could start from
        self.toy, self.variance = toy, (toy.std / toy.scale) ** 2
        self.register_buffer("means", torch.from_numpy(toy.means / toy.scale).float(), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Return the clean estimate `(B, D)` of x `(B, D)` at levels sigma `(B,)` under the observation `(B, 1)`."""
        own = self.toy.withdraw(x, condition, self.toy.scale)
        total = (self.variance + sigma.square())[:, None]
        logits = (own @ self.means.T - self.means.square().sum(dim=1) / 2) / total
        kept = self.variance / total
        return self.toy.place(kept * own + (1 - kept) * (logits.softmax(dim=1) @ self.means), condition, self.toy.scale)


class ExactTeacher(DiffusionPolicy):
    """The true density of a toy as a diffusion policy: all that a method may ask a teacher for, without error.

    Args:
        toy: whose density.
        steps: of its sampler.
        solver: of its sampler.
    """

    def __init__(self, toy: Toy, steps: int = 16, solver: str = "euler"):
        self._toy = toy
        sampler = {"steps": steps, "solver": solver, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        super().__init__(load_robot("toy2d"), build(DiffusionConfig, {**sizes(toy), "sampler": sampler}))
        in_units(self, toy).eval()

    def _denoiser(self, network: nn.Module) -> nn.Module:
        return ExactDenoiser(self._toy)


class Points:
    """Batches of observations with recorded chunks of a toy."""

    def __init__(self, toy: Toy, seed: int, count: int = 1 << 16):
        rng = np.random.default_rng([seed, 1])
        self.states = toy.observations(count, rng)
        self.actions = toy.sample(self.states, rng).unflatten(1, (toy.horizon, 2))

    def __len__(self) -> int:
        return len(self.actions)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return rows of "state" `(B, 1, 1)`, "actions" `(B, H, 2)` and "mask" `(B, H)`."""
        actions = self.actions[indices]
        return {"state": self.states[indices][:, None], "actions": actions, "mask": torch.ones(actions.shape[:2])}


def sizes(toy: Toy) -> dict:
    """Return the part of a policy's configuration that a toy decides."""
    return {"n_obs_steps": 1, "horizon": toy.horizon, "n_action_steps": toy.horizon}


def in_units(policy: Policy, toy: Toy) -> Policy:
    """Return a policy whose normalisers are told the toy's units."""
    policy.action_normalizer.fit(toy.scale * np.array([[-1.0, -1.0], [1.0, 1.0]]))
    policy.state_normalizer.fit(np.array([[-1.0], [1.0]]))
    return policy
