# SPDX-License-Identifier: Apache-2.0
"""Two experts, a DDPM teacher that is exact: where do they come to rest, by the official rule and by the corrected one?

The teacher is half N(-1.2, 0.2^2), half N(1.2, 0.2^2), seen through the levels that the official configurations use.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from ros_vdd.config import build
from ros_vdd.diffusion.vp import VpDenoiser, cosine_alpha_bars, equivalent_sigmas
from ros_vdd.methods import vdd
from ros_vdd.policies.mixture import MixtureConfig, MixturePolicy
from ros_vdd.streams.spec import robot_from_mapping
from ros_vdd.training.config import LoopConfig
from ros_vdd.training.loop import Loop

MODE, STD = 1.2, 0.2
LEVELS = {"T=8, t 1-4": (8, 1, 4), "T=16, t=4": (16, 4, 4), "T=16, t 2-6": (16, 2, 6)}
RULES = {
    "official": {"score_rule": "released", "noise": "clean"},
    "corrected": {"noise": "clean"},
    "corrected, matched": {"noise": "matched"},
}
ROBOT = robot_from_mapping(
    {
        "name": "probe",
        "rate_hz": 1.0,
        "cameras": {},
        "states": {"context": {"topic": "joint_states", "joints": ["context"], "unit": "m", "max_age_s": 1.0}},
        "action": {"topic": "command", "joints": ["x"], "unit": "m", "lower": [-3.0], "upper": [3.0], "command_rate_hz": 1.0},
        "safe_action": {"kind": "stop", "stale_chunk_s": 1.0},
    }
)
POLICY = {"n_obs_steps": 1, "horizon": 1, "n_action_steps": 1, "experts": 2, "gate": "uniform", "width": 16, "depth": 1, "initial_std": 0.5}
LOOP = {"steps": 1500, "batch_size": 64, "learning_rate": 1e-2, "final_learning_rate": 1e-4, "ema": 0.99, "log_every": 10**6, "checkpoint_every": 10**6}


class ExactEpsilon(torch.nn.Module):
    """eps = -sqrt(1 - abar) grad ln p_VP(x; t) of the two modes."""

    def __init__(self, steps: int):
        super().__init__()
        self.bars = torch.tensor(cosine_alpha_bars(steps))

    def forward(self, x, time, condition):
        """Return epsilon `(B, 1)`."""
        bar = self.bars[(time * len(self.bars)).round().long()][:, None]
        variance, mode = bar * STD**2 + 1 - bar, bar.sqrt() * MODE
        return -(1 - bar).sqrt() * (mode * torch.tanh(mode * x / variance) - x) / variance


class ExactTeacher:
    """The exact DDPM as a teacher."""

    def __init__(self, steps: int):
        self.denoiser = VpDenoiser(ExactEpsilon(steps), steps)
        self.levels, self.score, self.released_score = self.denoiser.levels, self.denoiser.score, self.denoiser.released_score

    def context(self, batch, draws):
        """Return the observation, which says nothing, `(B, 1)`."""
        return batch["state"].flatten(1)


class Nothing:
    """Batches of a constant observation."""

    def __len__(self):
        return 1

    def batch(self, indices):
        """Return rows of zeros."""
        rows = len(indices)
        return {"state": torch.zeros(rows, 1, 1), "actions": torch.zeros(rows, 1, 1), "mask": torch.ones(rows, 1)}


def probe(levels: str, rule: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and standard deviations `(2,)` of the two experts after training."""
    steps, first, last = LEVELS[levels]
    sigmas = equivalent_sigmas(steps)
    torch.manual_seed(seed)
    policy = MixturePolicy(ROBOT, build(MixtureConfig, POLICY))
    policy.begin_at(torch.tensor([[-0.3], [0.3]]))
    options = vdd.Options(samples=8, sigma_min=sigmas[first], sigma_max=sigmas[last], gate_weight=0.0, **RULES[rule])
    method = vdd.Method(options, policy, ExactTeacher(steps))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        with torch.enable_grad():
            Loop(method, Nothing(), None, build(LoopConfig, LOOP), seed, Path(folder), "probe").run(progress=False)
        experts = policy.mixture(policy.condition(Nothing().batch([0]))).experts
    order = experts.mean[0, :, 0].argsort()
    return experts.mean[0, order, 0].numpy(), experts.stds[0, order, 0].numpy()


def table() -> str:
    """Return all rules at all levels as a Markdown table."""
    lines = ["| levels | rule | modes (true ±1.2) | std (true 0.2) |", "|---|---|---|---|"]
    for levels in LEVELS:
        for rule in RULES:
            means, stds = probe(levels, rule)
            lines.append(f"| {levels} | {rule} | {means[0]:+.3f}, {means[1]:+.3f} | {stds[0]:.3f}, {stds[1]:.3f} |")
    return "\n".join(lines)
