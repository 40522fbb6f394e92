# SPDX-License-Identifier: Apache-2.0
"""Distribution matching distillation: the student's chunks, noised, become as likely as the teacher's.

    x = G(x_i, s_i)  at a level of the student's own walk          z = x + s n
    g = (D_fake(z, s) - D_real(z, s)) / mean|x - D_real(z, s)|     "dmd"
    g = D_fake(z, s) - D_real(z, s)                                "sigma2": s^2 times the difference of scores
    L = E 1/2 ||x - sg[x - g]||^2                                  so dL/dx = g
    L_fake = E (1/s^2 + 1/sd^2) ||D_fake(z, s) - sg[x]||^2         several steps for one of the student's
    L_adv = E softplus(-C(z, s))                                   C a discriminator; off by default
    L_C = E [softplus(C(x + s n, s)) + softplus(-C(a + s n, s))]   a recorded

D_real is the frozen teacher, D_fake a denoiser of what the student makes now. What is made is matched, not of which noise: which
chunk the teacher makes of the same noise means nothing here. The gradient is that of the reverse KL, which seeks modes: watch
"spread".

Source: Yin et al. 2024 (DMD2, arXiv 2405.14867), from the paper's equations; Wang et al. 2025 (OneDP, arXiv 2410.21257) for
actions and "sigma2". Differs: a separate discriminator of one logit a chunk, no head on D_fake; levels on the student's grid.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.methods._few_step import descend, masked_mean, require_no_critic
from ros_vdd.methods._states import Shares, StateSource
from ros_vdd.methods._teacher import require_any_level
from ros_vdd.networks.mlp import DenoiserMLP
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

KIND = "few_step"
NEEDS_TEACHER = True
LOSS_FALLS = False  # it is the size of g, which is 0 at the start as well, where the fake denoiser is the real one

_TRIMMED = 0.02  # of the levels at either end, where the difference of two denoisers says nothing
_CLIP_NORM = 10.0


@dataclass(frozen=True)
class Options:
    """Weights and rates of the two time scales.

    `fake_steps`: steps of the fake denoiser (and the discriminator) for one of the student, at `fake_learning_rate`. `weighting`:
    of the difference of denoisers, see the module. `adversarial`: weight of L_adv; above 0 the discriminator is trained, at
    `discriminator_learning_rate`. `states`: where the student's inputs come from; `student` is its own walk (backward
    simulation). `warm_start`: begin as the teacher's network where the shapes agree; false for a run with `start`.
    """

    fake_steps: int = 5
    fake_learning_rate: float = 1e-3
    weighting: Literal["dmd", "sigma2"] = "dmd"
    adversarial: float = 0.0
    discriminator_learning_rate: float = 1e-3
    states: Shares = Shares(forward=0.0, student=1.0, warmup=0.0)
    warm_start: bool = True

    def __post_init__(self):
        if self.fake_steps < 1:
            raise ConfigError(f"'fake_steps' is {self.fake_steps}; expected at least 1")
        for name in ("fake_learning_rate", "discriminator_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected above 0")
        if not 0 <= self.adversarial < math.inf:
            raise ConfigError(f"'adversarial' is {self.adversarial}; expected at least 0")
        if not self.adversarial and self.discriminator_learning_rate != 1e-3:
            raise ConfigError(
                f"'discriminator_learning_rate' is {self.discriminator_learning_rate:g}, and 'adversarial' 0 trains no discriminator; "
                "leave it out, or give that a weight"
            )
        if self.states.buffer:
            raise ConfigError(f"'states.buffer' is {self.states.buffer}; expected 0: the fake denoiser knows the newest student")


class Made(NamedTuple):
    """What the student made: chunks `x` (B, D), 1 where an action was recorded `mask` (B, D), the recorded chunks `clean` (B, D),
    and the `context` (B, C) of the student's and of the teacher's observation, detached."""

    x: Tensor
    mask: Tensor
    clean: Tensor
    context: Tensor
    teacher_context: Tensor


class Method:
    """DMD2 of a renoising student; a fake denoiser and, where asked for, a discriminator are trained beside it."""

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy):
        if policy.config.walk != "renoise":
            raise ConfigError(f"'policy.walk' is '{policy.config.walk}'; DMD2 trains a student that walks by 'renoise'")
        require_any_level(teacher, "dmd2")
        require_no_critic(policy, "dmd2")
        self.options, self.policy, self.teacher = options, policy, teacher
        self.source = StateSource(options.states, policy, teacher)
        self.levels = _known(policy, teacher)
        trimmed = round(_TRIMMED * len(self.levels))
        self.middle = self.levels[trimmed : len(self.levels) - trimmed]
        self.fake = _fake(policy, teacher)
        self.discriminator = Discriminator(policy) if options.adversarial else None
        self.companions: dict[str, nn.Module] = {"fake": self.fake}
        rates = {"fake": options.fake_learning_rate, "discriminator": options.discriminator_learning_rate}
        if self.discriminator is not None:
            self.companions["discriminator"] = self.discriminator
        self.optimizers = {name: torch.optim.Adam(module.parameters(), rates[name]) for name, module in self.companions.items()}

    def prepare(self, data, draws: Draws) -> None:
        """Begin as the teacher, where the networks agree."""
        if self.options.warm_start:
            self.policy.warm_start(self.teacher)

    def before(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> dict[str, float]:
        """Let the fake denoiser, and the discriminator, follow the student; return their losses."""
        figures: dict[str, float] = {}
        for _ in range(self.options.fake_steps):
            with torch.no_grad():
                made = self._made(batch, draws, progress)
            sigma, noise = self._level(self.levels, draws, len(made.x)), draws.normal(made.x.shape)
            figures["fake"] = self._improve("fake", self.fake_loss(made, sigma, noise, draws), draws)
            if self.discriminator is not None:
                loss = self.discriminator_loss(made, sigma, noise, draws.normal(made.x.shape))
                figures["discriminator"] = self._improve("discriminator", loss, draws)
        return figures

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return 1/2 ||x - sg[x - g]||^2 + adversarial L_adv, means over unpadded numbers and chunks."""
        made = self._made(batch, draws, progress)
        sigma, noise = self._level(self.middle, draws, len(made.x)), draws.normal(made.x.shape)
        gradient, broken = self.label(made, sigma, noise)
        matching = masked_mean(0.5 * (made.x - (made.x - gradient).detach()).square(), made.mask, draws)
        figures = {"loss": matching.item(), "non_finite": float(broken)}
        if self.discriminator is None:
            return matching, figures
        adversarial = softplus(-self._logit(made.x, made, sigma, noise)).mean()
        loss = matching + self.options.adversarial * adversarial
        return loss, {**figures, "loss": loss.item(), "matching": matching.item(), "adversarial": adversarial.item()}

    @torch.no_grad()
    def label(self, made: Made, sigma: Tensor, noise: Tensor) -> tuple[Tensor, int]:
        """Return g `(B, D)` at levels `(B,)` under unit noise `(B, D)`, and how many unpadded numbers weren't finite, now 0."""
        noised = made.x + sigma[:, None] * noise
        real = self.teacher.clean(noised, sigma, made.teacher_context)
        gradient = self.fake(noised, sigma, made.context) - real
        if self.options.weighting == "dmd":
            distance = ((made.x - real).abs() * made.mask).sum(dim=1) / made.mask.sum(dim=1).clamp(min=1)
            gradient = gradient / distance[:, None]
        good = gradient.isfinite()
        return torch.where(good, gradient, 0.0), int(((~good) * made.mask).sum().item())

    def fake_loss(self, made: Made, sigma: Tensor, noise: Tensor, draws: Draws) -> Tensor:
        """Return L_fake of chunks that the student made, at levels `(B,)` under unit noise `(B, D)`."""
        weight = sigma.square().reciprocal() + self.policy.config.sigma_data**-2
        estimate = self.fake(made.x + sigma[:, None] * noise, sigma, made.context)
        return masked_mean(weight[:, None] * (estimate - made.x).square(), made.mask, draws)

    def discriminator_loss(self, made: Made, sigma: Tensor, noise: Tensor, other: Tensor) -> Tensor:
        """Return L_C at levels `(B,)`: the student's chunks under unit noise `(B, D)`, the recorded ones under another."""
        theirs, ours = self._logit(made.x, made, sigma, noise), self._logit(made.clean, made, sigma, other)
        return (softplus(theirs) + softplus(-ours)).mean()

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss, and what two chunks of the student and two of the teacher for each observation tell of their laws.

        "energy_distance" is 2 E|X - Y| - E|X - X'| - E|Y - Y'|, which is 0 where they are equal; an unbiased estimate, so it may
        be below 0 (Szekely & Rizzo 2013). "spread" and "teacher_spread" are the standard deviations of one observation's chunks:
        much below the teacher's, modes are lost.
        """
        _, figures = self.loss(batch, draws, 1.0)
        policy, teacher = self.policy, self.teacher
        clean, mask = policy.targets(batch)
        context, teacher_context = policy.context(batch), teacher.context(batch, draws)
        noise = [draws.normal((len(clean), *policy.noise_shape)) for _ in range(4)]
        mine = [policy.sample(context, n) for n in noise[:2]]
        theirs = [teacher.sample(teacher_context, n[:, 0].flatten(1)) for n in noise[2:]]
        mean_square = lambda a, b: ((a - b).square() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # noqa: E731
        distance = lambda a, b: mean_square(a, b).sqrt().mean().item()  # noqa: E731
        between = sum(distance(a, b) for a in mine for b in theirs) / 2
        spread = lambda pair: (mean_square(*pair).mean() / 2).sqrt().item()  # noqa: E731
        return {
            **figures,
            "action_rmse": mean_square(mine[0], clean).mean().sqrt().item(),
            "energy_distance": between - distance(*mine) - distance(*theirs),
            "spread": spread(mine),
            "teacher_spread": spread(theirs),
        }

    def _made(self, batch: dict[str, Tensor], draws: Draws, progress: float) -> Made:
        """Let the student make a chunk in one step from one of its own states; the walk there isn't differentiated."""
        policy = self.policy
        stops = torch.tensor(policy.stops, device=draws.device)
        clean, mask = policy.targets(batch)
        states = self.source.draw(batch, stops[draws.integers(len(stops), (len(clean),))], clean, draws, progress)
        sigma = torch.tensor(policy.grid, device=draws.device)[states.index]
        made = policy.denoiser(states.x, sigma, policy.context(batch))  # not states.context: encoders may learn as well
        return Made(made, mask, clean, states.context, states.teacher_context)

    def _level(self, levels: Tensor, draws: Draws, count: int) -> Tensor:
        return levels.to(draws.device)[draws.integers(len(levels), (count,))]

    def _logit(self, chunk: Tensor, made: Made, sigma: Tensor, noise: Tensor) -> Tensor:
        return self.discriminator(chunk + sigma[:, None] * noise, sigma, made.context, made.mask)

    def _improve(self, name: str, loss: Tensor, draws: Draws) -> float:
        """Do a step of a companion's optimiser and return the loss."""
        return descend(loss, self.optimizers[name], _CLIP_NORM, draws)


class Discriminator(nn.Module):
    """Tells recorded chunks from the student's, both noised: one logit a chunk, the mean over its unpadded numbers."""

    def __init__(self, policy: FewStepPolicy, depth: int = 2):
        super().__init__()
        self.sigma_data = policy.config.sigma_data
        self.network = DenoiserMLP(policy.chunk_size, policy.condition_size, policy.config.width, depth)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """Map noised chunks `(B, D)`, levels `(B,)`, features `(B, O)` and mask `(B, D)` to `(B,)`; what is padded isn't seen."""
        total = (sigma.square() + self.sigma_data**2).sqrt()[:, None]
        votes = self.network(mask * x / total, sigma.log() / 4, condition)
        return (votes * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _fake(policy: FewStepPolicy, teacher: DiffusionPolicy) -> nn.Module:
    """Return a copy of the teacher's denoiser where that reads chunks and features as the student does, else of the student's."""
    network = getattr(teacher.denoiser, "network", None)
    alike = isinstance(network, DenoiserMLP) and network.enter.in_features == policy.chunk_size + policy.condition_size
    fake = deepcopy(teacher.denoiser) if alike else Denoiser(deepcopy(policy.denoiser.network), policy.config.sigma_data)
    return fake.requires_grad_(True).eval()


def _known(policy: FewStepPolicy, teacher: DiffusionPolicy) -> Tensor:
    """Return the levels of the student's grid, lowest first, each as the teacher takes it."""
    grid = torch.tensor(policy.grid[:-1], device=next(policy.parameters()).device)
    return grid.flip(0) if teacher.levels is None else teacher.nearest_level(grid).unique()
