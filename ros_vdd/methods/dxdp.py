# SPDX-License-Identifier: Apache-2.0
"""DxDP: a few-step student learns to earn more in an environment, by the sampler update of DxMI alone.

    G_k  = sum_{j>=k} discount^(j-k) (r_{j+1} - r_j)            r_k the score (or success) at decision k of a played episode
    Q_i  : min E (Q_i(o, a) - G)^2,   i = 1, 2                   on the newest decisions of the student itself
    pi   : `ros_vdd.methods._dxdp` with V(., T) = -min_i Q_i, averages, plus  trust ||D(x_t) - D_0(x_t)||^2 / D

with D_0 the student at the start; or, `improve: best`, of some chunks a_i of the student at the same o, with their walks,

    j(i) = argmax_j min Q(o, a_j) - trust ||a_j - a_i||^2 / D
    L    = || D(x_i) - sg[D(x_i) + a_j(i) - a_i] ||^2 / D + hold ||D(x_i) - D_0(x_i)||^2 / D     x_i the last state before a_i

The environment has no gradient, Q has one: it sees the observation and the actions that are executed of a chunk. The trust region
keeps the student where Q was learned. The second rule asks Q only which of the student's own chunks is better, and moves no chunk
where none is.

Sources: Yoon et al. 2024 (DxMI, arXiv 2407.00626), section 4, for the update; Wang et al. 2023 (Diffusion-QL, arXiv 2208.06193)
for Q's gradient through a diffusion policy; Fujimoto et al. 2018 (TD3, arXiv 1802.09477) for the lower of two. Ours: no
bootstrapping, since episodes have few decisions; the second rule, after best-of-n selection (IDQL, arXiv 2304.10573).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.methods._dxdp import Costs, DynamicProgram, Walked, ending_in, tether_to
from ros_vdd.methods._few_step import descend, follow, masked_mean
from ros_vdd.methods._ring import Ring
from ros_vdd.networks.critic import Critic
from ros_vdd.policies.diffusion import DiffusionPolicy
from ros_vdd.policies.few_step import CriticConfig, FewStepPolicy

if TYPE_CHECKING:
    from ros_vdd.training.rollouts import Episode

KIND = "few_step"
NEEDS_TEACHER = True
NEEDS_ENV = True
LOSS_FALLS = False


@dataclass(frozen=True)
class Options(Costs):
    """Those of `Costs`, without entropy by default, and what is learned from episodes.

    `reward`: the environment's `score` or its `success`. `improve`: climb Q's `gradient`, or move towards the `best` of
    `candidates` chunks at the same observation, of which each costs `trust` times its distance; `hold`: weight of the
    distance from the first student there. `trust`: for `gradient`, weight of the distance from the student that the run began
    with. `discount`: of a decision. `keep`: the newest decisions that Q learns from. `critic`: sizes of Q and V;
    `critic_keep`: of Q's average, which is climbed. `practice`: share of the training in which Q learns alone. `train_sigma`:
    let ln sigma descend too (`gradient`); where tau_entropy is 0 nothing holds it up. `warm_start`: begin as the teacher's
    network where the shapes agree; false for a run with `start`.
    """

    tau_entropy: float = 0.0
    tau_velocity: float = 0.0
    reward: Literal["score", "success"] = "score"
    improve: Literal["gradient", "best"] = "gradient"
    candidates: int = 8
    hold: float = 0.1
    discount: float = 0.98
    keep: int = 20_000
    critic: CriticConfig = field(default_factory=CriticConfig)
    critic_keep: float = 0.995
    trust: float = 30.0
    practice: float = 0.1
    train_sigma: bool = False
    warm_start: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.discount <= 1:
            raise ConfigError(f"'discount' is {self.discount}; expected above 0, up to 1")
        if self.keep < 1 or self.candidates < 2:
            raise ConfigError(f"'keep' is {self.keep}, 'candidates' {self.candidates}; expected at least 1, and at least 2")
        if not (0 <= self.trust < math.inf and 0 <= self.hold < math.inf):
            raise ConfigError(f"'trust' is {self.trust}, 'hold' {self.hold}; expected at least 0")
        unasked = {"train_sigma": False, "tau_entropy": 0.0, "tau_velocity": 0.0, "free_steps": 0, "time_cost": 0.0}
        unasked |= {"look_ahead": True, "velocity_keep": 0.99, "sigma_learning_rate": 1e-3}
        if self.improve == "best" and (idle := [name for name, value in unasked.items() if getattr(self, name) != value]):
            raise ConfigError(
                f"'improve' is 'best', which moves chunks towards better ones and asks for no cost of a step; '{idle[0]}' "
                f"{getattr(self, idle[0])} would change nothing: leave it out, or take improve: gradient"
            )
        defaults = {"candidates": 8, "hold": 0.1}
        if self.improve == "gradient" and (idle := [name for name, value in defaults.items() if getattr(self, name) != value]):
            raise ConfigError(
                f"'improve' is 'gradient', and '{idle[0]}' {getattr(self, idle[0])} belongs to improve: best; leave it out, or take that"
            )
        if self.sigma_learning_rate != 1e-3 and not self.train_sigma:
            raise ConfigError(f"'sigma_learning_rate' is {self.sigma_learning_rate:g}, and 'train_sigma' is false; leave it out, or set that")
        for name in ("practice", "critic_keep"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected 0 up to below 1")


class Returns(nn.Module):
    """Two estimates Q(o, a) `(B,)` of what an episode still earns, of which the lower one counts."""

    def __init__(self, policy: FewStepPolicy, sizes: CriticConfig):
        super().__init__()
        shape, sigma_data = (policy.chunk_size, policy.condition_size), policy.config.sigma_data
        self.critics = nn.ModuleList(Critic(*shape, [0.0], sizes.width, sizes.depth, sigma_data) for _ in range(2))
        executed = torch.zeros(policy.config.horizon, policy.robot.action_size)
        executed[: policy.config.n_action_steps] = 1.0
        self.register_buffer("executed", executed.flatten(), persistent=False)

    def both(self, chunk: Tensor, context: Tensor) -> Tensor:
        """Return the estimates `(2, B)` for normalised chunks `(B, D)`, of which only the executed actions count."""
        step, mask = torch.zeros_like(chunk[:, 0], dtype=torch.long), self.executed.expand(chunk.shape)
        return torch.stack([critic(chunk, step, context, mask) for critic in self.critics])

    def energy(self, chunk: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return minus the lower estimate `(B,)`."""
        return -self.both(chunk, context).amin(dim=0)


class Played(nn.Module):
    """Mean score and success `(2,)` of the last round of episodes; a module so that checkpoints keep them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("figures", torch.full((2,), float("nan")))


class Method:
    """DxDP of a posterior student on what an environment pays."""

    def __init__(self, options: Options, policy: FewStepPolicy, teacher: DiffusionPolicy | None):
        if policy.config.walk != "posterior":
            raise ConfigError(f"'policy.walk' is '{policy.config.walk}'; dxdp trains a student that walks by 'posterior'")
        if any(p.requires_grad for p in policy.encoders.parameters()):
            raise ConfigError(
                "'freeze_encoder' is false; dxdp keeps features of what was observed, which must stay: freeze_encoder: true"
            )
        if policy.config.critic is not None and not policy.critic.trained:
            raise ConfigError("'policy.critic' is given, and dxdp doesn't train it; leave it out, or bring a trained one by 'start'")
        if options.train_sigma and policy.config.sigma_bound == 1:
            raise ConfigError("'train_sigma' is true, and 'policy.sigma_bound' 1 keeps the steps' noise as it is; leave one of them out")
        self.options, self.policy, self.teacher = options, policy, teacher
        sizes, device = options.critic, policy.action_normalizer.low.device
        self.returns = Returns(policy, sizes).to(device)
        self.averaged = deepcopy(self.returns).requires_grad_(False)
        levels, sigma_data = policy.levels_walked, policy.config.sigma_data
        self.value = Critic(policy.chunk_size, policy.condition_size, levels, sizes.width, sizes.depth, sigma_data).to(device)
        self.anchor = deepcopy(policy.denoiser).requires_grad_(False).eval()
        self._tether = tether_to(self.anchor, options.trust, 1.0 if policy.config.sampler.clip else None)
        self.program = DynamicProgram(options, policy, ending_in(self.averaged.energy, self.value))
        self.ring, self.played = Ring(options.keep).to(device), Played().to(device)
        self.companions = {
            "returns": self.returns,
            "averaged": self.averaged,
            "value": self.value,
            "anchor": self.anchor,
            "velocity": self.program.velocity,
            "decisions": self.ring,
            "played": self.played,
        }
        rate = options.critic_learning_rate
        self.optimizers = {
            "returns": torch.optim.Adam(self.returns.parameters(), rate),
            "value": torch.optim.Adam(self.value.parameters(), rate),
            "sigma": self.program.sigma_optimizer,
        }
        gradient = options.improve == "gradient"
        self._valued = list(reversed(range(1, self.program.steps))) if gradient else []  # nothing leads to the noise at the start
        self._walked: Walked

    def prepare(self, data, draws: Draws) -> None:
        """Begin as the teacher, where the networks agree; the trust region is around that student."""
        if self.options.warm_start and self.teacher is not None:
            self.policy.warm_start(self.teacher)
        follow(self.anchor, self.policy.denoiser, 0.0)

    @torch.no_grad()
    def practise(self, episodes: Sequence[Episode]) -> None:
        """Keep the decisions of played episodes with what each still earned."""
        device = self.ring.count.device
        for episode in episodes:
            observed = {name: torch.from_numpy(value).to(device) for name, value in episode.observations.items()}
            results = episode.scores if self.options.reward == "score" else episode.successes
            rows = {"chunk": torch.from_numpy(episode.chunks), "earned": torch.from_numpy(earned(results, self.options.discount))}
            self.ring.add({"context": self.policy.context(observed), **rows})
        means = [np.mean([e.score for e in episodes]), np.mean([e.success for e in episodes])]
        self.played.figures.copy_(torch.tensor(means))

    def learns(self, progress: float) -> bool:
        """Return whether the student learns already, or Q alone."""
        return progress >= self.options.practice

    def before(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> dict[str, float]:
        """Let Q learn from what was played, and V from walks at the same observations; return their errors."""
        rows = self._rows(batch, draws)
        context = started = rows["context"]
        if self.options.improve == "best":  # as many walks as the batch has rows, of fewer observations
            started = context[: -(-len(context) // self.options.candidates)].repeat_interleave(self.options.candidates, dim=0)
        mask = torch.ones_like(rows["chunk"][:1]).expand(len(started), -1)
        walked = self._walked = self.program.walk(started, mask, draws)
        self.program.velocity.follow(walked, self.options.velocity_keep, draws)
        self.returns.requires_grad_(True)
        self.value.requires_grad_(True)
        clip, errors = self.options.critic_clip_norm, []
        for _ in range(self.options.critic_updates):
            loss = (self.returns.both(rows["chunk"], context) - rows["earned"]).square().mean()
            error = descend(loss, self.optimizers["returns"], clip, draws)
            follow(self.averaged, self.returns, self.options.critic_keep)
            for t in self._valued:
                index = torch.full_like(walked.mask[:, 0], t, dtype=torch.long)
                target = self.program.target(walked, t)
                away = self.value(walked.states[t], index, context, walked.mask) - target
                errors.append(descend(away.square().mean(), self.optimizers["value"], clip, draws))
        self.returns.requires_grad_(False)
        self.value.requires_grad_(False)
        score, success = self.played.figures.tolist()
        away = sum(errors) / max(len(errors), 1)
        return {"return_error": error, "value_error": away, "played_score": score, "played_success": success}

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 0.0) -> tuple[Tensor, dict]:
        """Return minus what a step is foreseen to earn, plus its cost and the trust region's; 0 while Q learns alone."""
        if not self.learns(progress):
            loss = torch.zeros((), device=self._walked.mask.device)
        elif self.options.improve == "best":
            loss = self.best_loss(self._walked)
        else:
            loss = self.program.step_loss(self._walked, draws, self._tether)
        figures = {"loss": loss.item(), "largest_sigma": self.policy.log_sigma.max().exp().item()}
        if not self.options.train_sigma:
            self.policy.log_sigma.grad = None
        return loss, figures

    def best_loss(self, walked: Walked) -> Tensor:
        """Return the mean squared distance by which chunks are to move towards better ones, and that from the first student's.

        Only the last step learns: where an earlier one leads to, the noise decides more than it does.
        """
        x, shift = walked.states[-2], self.shifts(walked)
        level = torch.full_like(x[:, 0], self.program.levels[-2])
        clean = self.policy.denoiser(x, level, walked.context)
        moved = (clean - clean.detach() - shift).square().mean()
        return moved + self.options.hold * (clean - self._begun(x, level, walked.context)).square().mean()

    @torch.no_grad()
    def shifts(self, walked: Walked) -> Tensor:
        """Return a_j(i) - a_i `(B, D)` of the chunks of walks, whose observations come `candidates` times in a row."""
        count = self.options.candidates
        chunk = walked.states[-1].unflatten(0, (-1, count))
        q = -self.averaged.energy(walked.states[-1], walked.context, walked.mask).unflatten(0, (-1, count))
        distance = (chunk[:, :, None] - chunk[:, None]).square().mean(dim=3)  # (M, i, j)
        best = (q[:, None] - self.options.trust * distance).argmax(dim=2)
        return (chunk.gather(1, best[:, :, None].expand_as(chunk)) - chunk).flatten(0, 1)

    def after(self) -> None:
        """Step ln sigma beside the student."""
        if self.policy.log_sigma.grad is not None:
            self.program.step_sigma()

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return minus what is foreseen at demonstrations, the error against the recorded chunk, and how far the student moved.

        "moved": the root mean square distance of its chunks from those of the student at the start, of the same noise.
        """
        clean, mask = self.policy.targets(batch)
        context = self.policy.context(batch)
        noise = draws.normal((len(context), *self.policy.noise_shape))
        chunk = self.policy.sample(context, noise)
        self.policy.denoiser, kept = self.anchor, self.policy.denoiser
        begun = self.policy.sample(context, noise)
        self.policy.denoiser = kept
        rmse = lambda other: masked_mean((chunk - other).square(), mask, draws).sqrt().item()  # noqa: E731
        foreseen = self.averaged.both(chunk, context).amin(dim=0).mean().item()
        return {"loss": -foreseen, "foreseen": foreseen, "action_rmse": rmse(clean), "moved": rmse(begun)}

    def _rows(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Return played decisions; before the first, recorded ones that earned nothing."""
        if not self.ring.empty:
            return self.ring.draw(len(batch["actions"]), draws)
        with torch.no_grad():
            context, chunk = self.policy.context(batch), self.policy.from_chunk(batch["actions"])
        return {"context": context, "chunk": chunk, "earned": torch.zeros_like(chunk[:, 0])}

    @torch.no_grad()
    def _begun(self, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return self.anchor(x, level, context)


def earned(results: np.ndarray, discount: float) -> np.ndarray:
    """Return what each of N decisions still earned `(N,)`: the discounted gains of results `(N + 1,)` from there on."""
    gains, total = np.diff(results), 0.0
    togo = np.zeros_like(gains)
    for k in reversed(range(len(gains))):
        total = gains[k] + discount * total
        togo[k] = total
    return togo
