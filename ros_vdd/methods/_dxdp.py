# SPDX-License-Identifier: Apache-2.0
"""Diffusion by dynamic programming (DxDP): a student's steps descend a value that looks ahead, whatever energy stands at the end.

    pi(x_{t+1} | x_t, o) = N(mu(x_t), sigma_t^2),   t = 0 (noise) .. T (the chunk),   mu by `ros_vdd.diffusion.walks.posterior_mean`
    V(x_t, t) = E_pi[V(x_{t+1}, t+1) + c_t],   V(., T) = E
    c_t = tau_v ||x_{t+1} - x_t||^2 / (2 s_t^2 D) - tau_e ln sigma_t
    min_pi  E_pi[V(x_{t+1}, t+1) + c_t]   at stored x_t of a random t: the gradient goes through one step, never through the walk

The sum of c_t bounds minus the entropy of the chunks, per number, by the backward step N(x_t; x_{t+1}, s_t^2); s_t^2 is the running
mean of ||x_{t+1} - x_t||^2 / D, D the numbers of a chunk that count. The derivation has tau_v = tau_e. It knows the way from noise to
a chunk and no robot: a contextual bandit over chunks.

Source: Yoon et al. 2024 (DxMI, arXiv 2407.00626), section 4, and the released settings. Differs: c_t also counts in the value, as in
the derivation (`look_ahead`; released: only in the step's own objective); s_t^2 begins as that of the forward process,
s_t^2 - s_{t+1}^2 of its levels; the last step adds no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.diffusion.sampling import reflected
from ros_vdd.diffusion.walks import boxed, posterior_mean
from ros_vdd.errors import ConfigError
from ros_vdd.networks.critic import Critic
from ros_vdd.policies.few_step import FewStepPolicy

Value = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x (B, D), step (B,), context (B, C), mask (B, D)) -> (B,)

Tether = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (clean estimate (B, D), x (B, D), level (B,), context (B, C)) -> (B,)


@dataclass(frozen=True)
class Costs:
    """Temperatures and rates.

    `tau_entropy`, `tau_velocity`: of the two halves of c_t. Unequal ones let the noise of the first steps run away, up to
    `policy.sigma_bound`. `free_steps`: the last so many steps cost nothing. `look_ahead`: c_t counts in the value too.
    `time_cost`: weight of logistic(T/2 - t) - logistic(T/2 - t - 1), which slopes a flat value. `velocity_keep`: of the running
    mean, a step. `critic_updates`: sweeps of the critic for one step of the student, at `critic_learning_rate`, gradients clipped
    to `critic_clip_norm`. `sigma_learning_rate`: of ln sigma. The student's own rate is `loop.learning_rate`: keep it well below
    the critic's.
    """

    tau_entropy: float = 0.1
    tau_velocity: float = 0.1
    free_steps: int = 0
    look_ahead: bool = True
    time_cost: float = 0.0
    velocity_keep: float = 0.99
    critic_updates: int = 1
    critic_learning_rate: float = 1e-3
    critic_clip_norm: float = 1.0
    sigma_learning_rate: float = 1e-3

    def __post_init__(self):
        for name in ("tau_entropy", "tau_velocity", "time_cost"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected at least 0")
        for name in ("critic_learning_rate", "critic_clip_norm", "sigma_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected above 0")
        if self.free_steps < 0:
            raise ConfigError(f"'free_steps' is {self.free_steps}; expected 0 (every step costs) or more")
        if not 0 <= self.velocity_keep <= 1 or self.critic_updates < 1:
            raise ConfigError(
                f"'velocity_keep' is {self.velocity_keep}, 'critic_updates' {self.critic_updates}; expected 0 to 1, and at least 1"
            )


class Walked(NamedTuple):
    """Walks of the student: `states` (T + 1, B, D) from noise to the chunk, `context` (B, C), `mask` (B, D) 1 for what counts."""

    states: Tensor
    context: Tensor
    mask: Tensor


class Velocity(nn.Module):
    """s_t^2 `(T,)`, a running mean; a module so that checkpoints keep it."""

    def __init__(self, levels: list[float]):
        super().__init__()
        self.register_buffer("squares", torch.tensor([now**2 - then**2 for now, then in zip(levels, levels[1:])]))

    def follow(self, walked: Walked, keep: float, draws: Draws) -> None:
        """Move towards the mean squared displacements of walks."""
        moved = walked.states.diff(dim=0).square()  # (T, B, D)
        now = ((moved * walked.mask).sum(dim=2) / walked.mask.sum(dim=1)).mean(dim=1)
        self.squares.lerp_(draws.process_mean(now), 1 - keep)


class DynamicProgram:
    """Value and step of a student that walks by "posterior".

    Args:
        options: temperatures and rates.
        policy: the student; its `log_sigma` is taken out of the loop's hands and into `sigma_optimizer`'s.
        value: V, where V(., T) is the energy.
    """

    def __init__(self, options: Costs, policy: FewStepPolicy, value: Value):
        self.options, self.policy, self.value = options, policy, value
        self.levels = policy.levels_walked
        self.steps = len(self.levels) - 1
        if options.free_steps > self.steps:
            raise ConfigError(f"'free_steps' is {options.free_steps}; expected at most 'policy.sampler.steps' {self.steps}")
        if options.tau_entropy and policy.config.sigma_bound == 1:
            raise ConfigError(
                f"'tau_entropy' is {options.tau_entropy:g}, and 'policy.sigma_bound' 1 keeps the steps' noise as it is, so no entropy can be "
                "gained; set options.tau_entropy=0, or a wider bound"
            )
        self.velocity = Velocity(self.levels)
        policy.log_sigma.requires_grad_(False)
        self.sigma_optimizer = torch.optim.Adam([policy.log_sigma], options.sigma_learning_rate)

    @torch.no_grad()
    def walk(self, context: Tensor, mask: Tensor, draws: Draws) -> Walked:
        """Return walks of the student as it is deployed, from noise drawn."""
        training = self.policy.training
        self.policy.eval()
        states, chunk = self.policy.walk(context, draws.normal((len(context), *self.policy.noise_shape)))
        self.policy.train(training)
        return Walked(torch.stack([*states, chunk]), context, mask)

    def cost(self, x: Tensor, following: Tensor, index: Tensor, mask: Tensor, log_sigma: Tensor) -> Tensor:
        """Return c_t `(B,)` of the steps `index` `(B,)` from x to following `(B, D)`, for ln sigma `(T - 1,)`.

        The last step has no sigma: that half is 0. The last `free_steps` cost nothing.
        """
        moved = ((following - x).square() * mask).sum(dim=1) / mask.sum(dim=1)
        entropy = torch.cat([log_sigma, log_sigma.new_zeros(1)])[index]
        cost = self.options.tau_velocity * moved / (2 * self.velocity.squares[index]) - self.options.tau_entropy * entropy
        return torch.where(index < self.steps - self.options.free_steps, cost, 0.0)

    @torch.no_grad()
    def target(self, walked: Walked, t: int) -> Tensor:
        """Return what V(x_t, t) `(B,)` is to become: V(x_{t+1}, t+1) + c_t, along walks."""
        options, index = self.options, torch.full_like(walked.mask[:, 0], t, dtype=torch.long)
        x, following = walked.states[t], walked.states[t + 1]
        total = self.value(following, index + 1, walked.context, walked.mask)
        if options.look_ahead:
            total = total + self.cost(x, following, index, walked.mask, self.policy.bounded(self.policy.log_sigma))
        return total + options.time_cost * (_logistic(self.steps / 2 - t) - _logistic(self.steps / 2 - t - 1))

    def value_errors(self, walked: Walked, t: int) -> Tensor:
        """Return the squared temporal differences `(B,)` of V(x_t, t)."""
        index = torch.full_like(walked.mask[:, 0], t, dtype=torch.long)
        return (self.value(walked.states[t], index, walked.context, walked.mask) - self.target(walked, t)).square()

    def step_loss(self, walked: Walked, draws: Draws, tether: Tether | None = None) -> Tensor:
        """Return E[V(x_{t+1}, t+1) + c_t + tether], a random step of each walk taken anew.

        The gradient of ln sigma is left in its `grad`.
        """
        policy, context = self.policy, walked.context
        index = draws.integers(self.steps, (len(context),))
        noise = draws.normal(tuple(walked.mask.shape))
        x = walked.states[index, torch.arange(len(index), device=index.device)]
        levels = torch.tensor(self.levels, device=x.device)
        with torch.enable_grad():
            leaf = policy.log_sigma.detach().requires_grad_()
            log_sigma = policy.bounded(leaf)
            stds = torch.cat([log_sigma.exp(), leaf.new_zeros(1)])[index]
            clean = boxed(policy.denoiser(x, levels[index], context), 1.0 if policy.config.sampler.clip else None)
            following = posterior_mean(x, clean, levels[index + 1] / levels[index]) + stds[:, None] * noise
            total = self.value(following, index + 1, context, walked.mask) + self.cost(x, following, index, walked.mask, log_sigma)
            if tether is not None:
                total = total + tether(clean, x, levels[index], context)
            loss = total.mean()
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        policy.log_sigma.grad = draws.process_mean(gradient)
        return loss

    @torch.no_grad()
    def step_sigma(self) -> None:
        """Step ln sigma by the gradient that `step_loss` left, within its bounds."""
        self.sigma_optimizer.step()
        self.policy.log_sigma.copy_(self.policy.bounded(self.policy.log_sigma))
        self.policy.log_sigma.grad = None

    def objective(self, walked: Walked) -> Tensor:
        """Return E + sum_t c_t `(B,)` of walks: what the student is to make small."""
        last = torch.full_like(walked.mask[:, 0], self.steps, dtype=torch.long)
        total = self.value(walked.states[-1], last, walked.context, walked.mask)
        for t in range(self.steps):
            index = torch.full_like(last, t)
            log_sigma = self.policy.bounded(self.policy.log_sigma)
            total = total + self.cost(walked.states[t], walked.states[t + 1], index, walked.mask, log_sigma)
        return total


def tether_to(anchor: nn.Module, trust: float, bound: float | None) -> Tether:
    """Return the cost of leaving an anchor, a frozen denoiser: trust ||D(x_t) - D_0(x_t)||^2 / D, its estimate cut to the bound."""

    def cost(clean: Tensor, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
        with torch.no_grad():
            begun = reflected(anchor(x, level, context), bound)
        return trust * (clean - begun).square().mean(dim=1)

    return cost


def ending_in(energy: Callable[[Tensor, Tensor, Tensor], Tensor], critic: Critic) -> Value:
    """Return a critic's value but for the end, where another energy stands, such as minus a return.

    energy maps x `(B, D)`, context `(B, C)` and mask `(B, D)` to `(B,)`.
    """

    def value(x: Tensor, step: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return torch.where(step == critic.steps, energy(x, context, mask), critic(x, step, context, mask))

    return value


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
