# SPDX-License-Identifier: Apache-2.0
"""The per-step teacher: a diffusion policy over the window of its last actions, one action a call.

A causal transformer reads [level, s1, a1, ..., sT, aT]. In training every action of the window is noised at one level and
restored. At run time the executed actions fill the earlier slots, noised at the sampler's level, and the newest one is the
answer. Where an episode is younger than the window, the first observation is repeated and the missing actions are 0, the middle
of the normalised range, in training and at run time alike.

Source: Reuss et al. 2023 (BESO, arXiv 2304.02532), section IV; the masking of missing actions is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.networks.transformer import WindowTransformer
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy
from ros_vdd.policies.policy import check_heads


@dataclass(frozen=True)
class WindowConfig(DiffusionConfig):
    """A diffusion policy's configuration, of one action a call; `n_obs_steps` is the length of the window."""

    n_obs_steps: int = 5
    horizon: int = 1
    n_action_steps: int = 1
    width: int = 72
    depth: int = 4
    heads: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.horizon != 1:
            raise ConfigError(f"'horizon' is {self.horizon}; a window policy gives 1 action a call (chunks: kind diffusion)")
        if self.n_obs_steps < 2:
            raise ConfigError(
                f"'n_obs_steps' is {self.n_obs_steps}; a window holds at least 2 ticks (of 1: kind diffusion, horizon 1)"
            )
        check_heads(self.width, self.heads)


class WindowPolicy(DiffusionPolicy):
    """Denoises the newest action of a window of T.

    Beside the observation it takes "past_actions" `(B, T-1, A)` in the robot's units, oldest first, and "past_mask" `(B, T-1)`,
    1 where there was one.
    """

    kind = "window"

    def _network(self) -> nn.Module:
        config, size = self.config, self.robot.action_size
        frame = self.tick_size + self.robot.goal_size
        return WindowTransformer(config.n_obs_steps, frame, size, config.width, config.depth, config.heads, config.dropout)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Return (T, A): noise for the earlier actions, then for the newest."""
        return self.config.n_obs_steps, self.robot.action_size

    @property
    def condition_size(self) -> int:
        """Return O = T * (F + G): each tick has the goal."""
        return self.config.n_obs_steps * (self.tick_size + self.robot.goal_size)

    def condition(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Turn an observation into features `(B, O)`, tick by tick."""
        return self.ticks(observation).flatten(1)

    def context(self, batch: Mapping[str, Tensor], draws: Draws | None = None) -> Tensor:
        """Return features, earlier actions and their unit noise, `(B, O + 2 (T-1) A)`.

        The noise is drawn once a row, so that a score sees windows like those of the training, and all experts and samples of a
        row ask about one density. Without `draws` it is 0, its mean, which no training window has.

        Args:
            batch: observation, "past_actions" and "past_mask".
            draws: of the noise.
        """
        past = batch["past_actions"]
        return self._context(batch, torch.zeros_like(past) if draws is None else draws.normal(past.shape))

    def _context(self, batch: Mapping[str, Tensor], past_noise: Tensor) -> Tensor:
        return torch.cat([self.condition(batch), self._past(batch).flatten(1), past_noise.flatten(1)], dim=1)

    def targets(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the actions of the window, normalised `(B, T * A)`, and 1 where one was recorded `(B, T * A)`."""
        window = torch.cat([self._past(batch), self.action_normalizer(batch["actions"])], dim=1)
        mask = torch.cat([batch["past_mask"], batch["mask"]], dim=1)
        return window.flatten(1), mask[:, :, None].expand(window.shape).flatten(1)

    def generate(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return the newest action, normalised `(B, A)`, from unit noise `(B, T, A)` of the whole window."""
        return self.sample(self._context(observation, noise[:, :-1]), noise[:, -1])

    def _past(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.action_normalizer(batch["past_actions"]) * batch["past_mask"][:, :, None]

    def _ask(self, rule: Callable[..., Tensor], a: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return what a rule of the denoiser says about the newest action `(B, A)`."""
        earlier = (self.config.n_obs_steps - 1) * self.robot.action_size
        features, past, noise = context.split([self.condition_size, earlier, earlier], dim=1)
        window = torch.cat([past + sigma[:, None] * noise, a], dim=1)
        return rule(window, sigma, features)[:, earlier:]
