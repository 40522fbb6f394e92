# SPDX-License-Identifier: Apache-2.0
"""DxMI: an energy is to be low where demonstrations lie and high where the student goes, which descends it, held wide by entropy.

    E:      min  E_demo[E(o, a)] - E_pi[E(o, x_T)] + gamma (E_demo[E^2] + E_pi[E^2])     a and x_T at the same o
                 + noised E[gamma E(o, a + s n)^2 - E(o, a + s n)]                       off by default
    V, pi:  `ros_vdd.methods._dxdp`, with V(., T) = E: one network,  plus  trust ||D(x_t) - D_0(x_t)||^2 / D

With D_0 the student at the start. At the optimum E is low where demonstrations are more likely than the student's chunks, which the
entropy holds wider, so E tells how strange a chunk is; for small gamma tau exp(-D E / tau) is the demonstrations' density. Without
the entropy (tau = 0) E is flat where the student is right. Each o's normaliser cancels in the loss: energies of different
observations can't be compared, only ranked among the policy's chunks at the same o. It is inverse reinforcement learning over
denoising, not of the robot's task.

Source: Yoon et al. 2024 (DxMI, arXiv 2407.00626), algorithm 1; `ros_vdd.methods._dxdp` says what differs. Ours: `trust`, `practice`,
and `noised`, since in many dimensions neither demonstrations nor student ever show the critic what is far from both.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.methods._dxdp import Costs, DynamicProgram, Walked, tether_to
from ros_vdd.methods._few_step import descend, follow, masked_mean
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import FewStepPolicy

KIND = "few_step"
NEEDS_TEACHER = True


@dataclass(frozen=True)
class Options(Costs):
    """Those of `Costs`. `gamma`: how much energies are held to 0. `noised`: weight of recorded chunks under noise of 0.2 to 2
    `sigma_data`, whose energy is to be high. `trust`: weight of the distance from the student that the run began with; 0, as
    published, lets it go anywhere. `practice`: share of the training in which the critic learns alone. `warm_start`: begin as
    the teacher's network where the shapes agree; false for a run with `start`."""

    gamma: float = 1.0
    noised: float = 0.0
    trust: float = 0.0
    practice: float = 0.0
    warm_start: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.gamma < math.inf:
            raise ConfigError(f"'gamma' is {self.gamma}; expected above 0, or energies have no bound")
        for name in ("noised", "trust"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected 0 (off) or more")
        if not 0 <= self.practice < 1:
            raise ConfigError(f"'practice' is {self.practice}; expected 0 up to below 1")


class Method:
    """DxMI of a posterior student with a critic."""

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy | None):
        require_critic(policy, "dxmi")
        self.options, self.policy, self.teacher = options, policy, teacher
        self.critic = policy.critic
        self.program = DynamicProgram(options, policy, policy.critic)
        self.companions: dict[str, nn.Module] = {"velocity": self.program.velocity}
        self.tether = None
        if options.trust:
            anchor = self.companions["anchor"] = deepcopy(policy.denoiser).requires_grad_(False).eval()
            self.tether = tether_to(anchor, options.trust, 1.0 if policy.config.sampler.clip else None)
        critic = torch.optim.Adam(self.critic.parameters(), options.critic_learning_rate)
        self.optimizers = {"critic": critic, "sigma": self.program.sigma_optimizer}
        self._walked: Walked

    def prepare(self, data, draws: Draws) -> None:
        """Begin as the teacher, where the networks agree; the trust region is around that student."""
        if self.options.warm_start and self.teacher is not None:
            self.policy.warm_start(self.teacher)
        if self.tether is not None:
            follow(self.companions["anchor"], self.policy.denoiser, 0.0)

    def learns(self, progress: float) -> bool:
        """Return whether the student learns already, or the critic alone."""
        return progress >= self.options.practice

    def before(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> dict[str, float]:
        """Walk, and let energy and value learn from it; return their losses and mean energies."""
        clean, mask = self.policy.targets(batch)
        with torch.no_grad():
            context = self.policy.context(batch)
        walked = self._walked = self.program.walk(context, mask, draws)
        self.program.velocity.follow(walked, self.options.velocity_keep, draws)
        self.critic.requires_grad_(True)
        for _ in range(self.options.critic_updates):
            loss, figures = self.energy_loss(clean, walked, draws)
            self._improve(loss, draws)
            backwards = reversed(range(self.program.steps))
            errors = [self._improve(self.program.value_errors(walked, t).mean(), draws) for t in backwards]
        self.critic.requires_grad_(False)
        return {**figures, "value_error": sum(errors) / len(errors)}

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return the value ahead of a step plus its cost, over the walks of `before`.

        It rises while the energy learns to tell the student, so "loss" is the walks' squared distance from the recorded chunks;
        the objective is "step_loss".
        """
        loss = self.program.step_loss(self._walked, draws, self.tether)
        clean, mask = self.policy.targets(batch)
        if not self.learns(progress):
            self.policy.log_sigma.grad = None
        distance = masked_mean((self._walked.states[-1] - clean).square(), mask, draws).item()
        return loss, {"loss": distance, "step_loss": loss.item(), "largest_sigma": self.policy.log_sigma.max().exp().item()}

    def after(self) -> None:
        """Step ln sigma beside the student."""
        if self.policy.log_sigma.grad is not None:
            self.program.step_sigma()

    def energy_loss(self, clean: Tensor, walked: Walked, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """Return the energy's loss of recorded chunks `(B, D)` and walks at the same observations, and mean energies."""
        options, ask = self.options, lambda chunk: self.critic.energy(chunk, walked.context, walked.mask)
        low, high = ask(clean), ask(walked.states[-1])
        loss = (low - high + options.gamma * (low.square() + high.square())).mean()
        if options.noised:
            level = self.policy.config.sigma_data * 0.2 * 10 ** draws.uniform((len(clean), 1))
            beside = ask(clean + level * draws.normal(tuple(clean.shape)))
            loss = loss + options.noised * (options.gamma * beside.square() - beside).mean()
        return loss, {"energy_loss": loss.item(), "energy_recorded": low.mean().item(), "energy_sampled": high.mean().item()}

    def energy(self, chunk: Tensor, context: Tensor) -> Tensor:
        """Return E `(B,)` of whole normalised chunks `(B, D)`."""
        return self.critic.energy(chunk, context, torch.ones_like(chunk))

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and its root, mean energies, and two figures of how well a density was learned.

        "auc": the chance that a recorded chunk has a lower energy than one drawn from the whole box; 0.5 tells nothing.
        "energy_score": E|x - a| - E|x - x'| / 2 of two chunks x, x' of the student, lowest where they are drawn as the recorded
        ones (Gneiting & Raftery 2007).
        """
        clean, mask = self.policy.targets(batch)
        context = self.policy.context(batch)
        walked, again = (self.program.walk(context, mask, draws) for _ in range(2))
        ask = lambda chunk: self.critic.energy(chunk, context, mask)  # noqa: E731
        low, high, anywhere = ask(clean), ask(walked.states[-1]), ask(2 * draws.uniform(tuple(clean.shape)) - 1)
        apart = lambda a, b: ((a - b).square() * mask).sum(dim=1).sqrt().mean().item()  # noqa: E731
        loss = masked_mean((walked.states[-1] - clean).square(), mask, draws).item()
        return {
            "loss": loss,
            "action_rmse": loss**0.5,
            "objective": self.program.objective(walked).mean().item(),
            "energy_recorded": low.mean().item(),
            "energy_sampled": high.mean().item(),
            "auc": ((low < anywhere).float() + 0.5 * (low == anywhere).float()).mean().item(),
            "energy_score": apart(walked.states[-1], clean) - apart(walked.states[-1], again.states[-1]) / 2,
        }

    def _improve(self, loss: Tensor, draws: Draws) -> float:
        return descend(loss, self.optimizers["critic"], self.options.critic_clip_norm, draws)


def require_critic(policy: FewStepPolicy, method: str) -> None:
    """Refuse a student that has no steps to train or no critic, or whose encoders would move under the critic.

    Raises:
        ConfigError: it is such a one.
    """
    if policy.config.walk != "posterior":
        raise ConfigError(f"'policy.walk' is '{policy.config.walk}'; {method} trains a student that walks by 'posterior'")
    if policy.config.critic is None:
        raise ConfigError(f"'policy.critic' is missing; {method} trains one beside the student: critic: {{width: 256, depth: 3}}")
    if any(p.requires_grad for p in policy.encoders.parameters()):
        raise ConfigError(
            f"'freeze_encoder' is false; the critic of {method} reads the encoder's features, which must stay: set it to true"
        )
