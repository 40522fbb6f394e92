# SPDX-License-Identifier: Apache-2.0
"""VDD on eight Gaussians with the exact score: does the mixture find every mode, its width, and how long does it take?

    q = 1/8 sum_z N(mu_z, diag(s_z^2))     KL(q||p) = E_q[ln q - ln p], by 200,000 draws of q in float64

One student for each seed and setting, trained by the package's own loop and method; only the teacher is exact instead of learnt.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ros_vdd.config import build
from ros_vdd.envs import toy2d
from ros_vdd.methods import vdd
from ros_vdd.policies.mixture import MixtureConfig, MixturePolicy
from ros_vdd.streams.spec import load_robot
from ros_vdd.training.config import LoopConfig
from ros_vdd.training.loop import Loop

SCALE = 4.0  # [m] half the range of normalised actions: radius 2 becomes 0.5, std 0.5 becomes 0.125
DRAWS = 200_000
POLICY = {"n_obs_steps": 1, "horizon": 1, "n_action_steps": 1, "experts": 8, "gate": "uniform", "width": 64, "depth": 2}
LOOP = {"steps": 600, "batch_size": 8, "learning_rate": 5e-3, "final_learning_rate": 1e-4, "warmup_steps": 50, "ema": 0.99}
OURS = {"samples": 16, "sigma_min": 0.02, "sigma_max": 0.15, "gate_weight": 0.0, "initialise": "kmeans"}
OFFICIAL = {"samples": 64, "noise": "clean", "levels": "fixed", "sigma_min": 1e-4, "sigma_max": 1e-4, "gate_weight": 0.0, "gate_floor": 0.0}
SETTINGS = {
    "ros_vdd": (OURS, LOOP),
    "ros_vdd, spread start": ({**OURS, "initialise": "spread"}, LOOP),
    "official options": (OFFICIAL, {**LOOP, "batch_size": 32, "learning_rate": 5e-4}),
}
"""Options and loop by name; the last has the published toy's: clean unsmoothed queries, 64 samples, batch 32, rate 5e-4."""


class ExactTeacher:
    """The true density of the toy as a teacher, in normalised units."""

    levels = None

    def context(self, batch, draws):
        """Return the observation, which says nothing, `(B, 1)`."""
        return batch["state"].flatten(1)

    def score(self, a, sigma, context):
        """Return grad_a ln p(a; sigma) `(B, D)`."""
        points, levels = (SCALE * a).double().numpy(), (SCALE * sigma).double().numpy()
        return torch.from_numpy(SCALE * toy2d.score(points, levels)).float()


class Points:
    """Batches of the constant observation with recorded points of the toy."""

    def __init__(self, seed: int, count: int = 4096):
        points = toy2d.sample(count, np.random.default_rng([seed, 1]))
        self.actions = torch.from_numpy(points).float()[:, None]

    def __len__(self):
        return len(self.actions)

    def batch(self, indices):
        """Return rows of the constant and of points."""
        rows = len(indices)
        return {"state": torch.zeros(rows, 1, 1), "actions": self.actions[indices], "mask": torch.ones(rows, 1)}


def student(seed: int) -> MixturePolicy:
    """Return an untrained student whose unit is SCALE."""
    torch.manual_seed(seed)
    policy = MixturePolicy(load_robot("toy2d"), build(MixtureConfig, POLICY))
    policy.action_normalizer.fit(np.array([[-SCALE, -SCALE], [SCALE, SCALE]]))
    policy.state_normalizer.fit(np.array([[-1.0], [1.0]]))
    return policy


def train(setting: str, seed: int) -> dict:
    """Train one student; return its figures and its experts in metres."""
    options, loop = SETTINGS[setting]
    method = vdd.Method(vdd.Options(**options), student(seed), ExactTeacher())
    config = build(LoopConfig, {**loop, "checkpoint_every": 10**6, "log_every": 10**6})
    with tempfile.TemporaryDirectory() as folder:
        began, spent = time.monotonic(), time.process_time()
        policy = Loop(method, Points(seed), None, config, seed, Path(folder), "toy").run(progress=False)
        wall, cpu = time.monotonic() - began, time.process_time() - spent
    with torch.no_grad():
        experts = policy.mixture(policy.condition({"state": torch.zeros(1, 1, 1)})).experts
    means, stds = (SCALE * v[0].double().numpy() for v in (experts.mean, experts.stds))
    return {**divergence(means, stds, seed), "seconds": wall, "cpu_seconds": cpu, "means": means, "stds": stds}


def divergence(means: np.ndarray, stds: np.ndarray, seed: int) -> dict[str, float]:
    """Return KL(q||p), KL(p||q) [nats] and how many modes have an expert nearest to them."""
    rng = np.random.default_rng(seed)
    drawn = _draw(means, stds, rng)
    truth = toy2d.sample(DRAWS, rng)
    return {
        "kl_q_p": float(np.mean(_log_q(drawn, means, stds) - toy2d.log_prob(drawn))),
        "kl_p_q": float(np.mean(toy2d.log_prob(truth) - _log_q(truth, means, stds))),
        "modes": len(set(toy2d.nearest(means).tolist())),
    }


def draw(results: dict[str, dict], file: Path) -> None:
    """Draw the true density and the experts of each setting, as ellipses of two standard deviations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    axis = np.linspace(-4, 4, 200)
    density = np.exp(toy2d.log_prob(np.stack(np.meshgrid(axis, axis), axis=-1)))
    figure, axes = pyplot.subplots(1, len(results), figsize=(4.6 * len(results), 4.6), squeeze=False)
    for plot, (name, found) in zip(axes[0], results.items()):
        plot.contourf(axis, axis, density, levels=12, cmap="Blues")
        for mean, std in zip(found["means"], found["stds"]):
            plot.add_patch(patches.Ellipse(mean, *(4 * std), fill=False, color="tab:red", linewidth=1.5))
            plot.plot(*mean, "+", color="tab:red")
        plot.set(title=f"{name}: KL(q||p) {found['kl_q_p']:.4f}, {found['modes']} of 8 modes", aspect="equal")
        plot.title.set_fontsize(9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _draw(means, stds, rng):
    experts = rng.integers(len(means), size=DRAWS)
    return means[experts] + stds[experts] * rng.standard_normal((DRAWS, 2))


def _log_q(x, means, stds):
    terms = -0.5 * ((x[:, None] - means) / stds) ** 2 - np.log(stds) - 0.5 * np.log(2 * np.pi)
    joint = terms.sum(axis=2) - np.log(len(means))
    top = joint.max(axis=1)
    return top + np.log(np.exp(joint - top[:, None]).sum(axis=1))
