# SPDX-License-Identifier: Apache-2.0
"""What every policy shares: normalisation, image encoders, and the observation features that condition it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ros_vdd.errors import ConfigError
from ros_vdd.policies.normalizer import Normalizer
from ros_vdd.policies.vision import VisionConfig
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes common to all policies; `horizon` counts from the action at the newest observation."""

    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    vision: VisionConfig = VisionConfig()

    def __post_init__(self):
        if self.n_obs_steps < 1 or not 1 <= self.n_action_steps <= self.horizon:
            raise ConfigError(
                f"'n_obs_steps' {self.n_obs_steps}, 'n_action_steps' {self.n_action_steps}, 'horizon' {self.horizon}: "
                "expected n_obs_steps >= 1 and 1 <= n_action_steps <= horizon"
            )


def check_network(width: int, depth: int, dropout: float) -> None:
    """Refuse sizes that no network has.

    Raises:
        ConfigError: width below 1, depth below 0, or dropout outside [0, 1).
    """
    if width < 1 or depth < 0 or not 0 <= dropout < 1:
        raise ConfigError(
            f"'width' {width}, 'depth' {depth}, 'dropout' {dropout}: expected width >= 1, depth >= 0 and 0 <= dropout < 1"
        )


def check_heads(width: int, heads: int) -> None:
    """Refuse attention heads that no transformer has.

    Raises:
        ConfigError: heads below 1, or a width that isn't a multiple of them.
    """
    if heads < 1 or width % heads:
        raise ConfigError(f"'width' is {width}; expected a multiple of 'heads' {heads}")


def flat_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mask `(B, D)` of flattened chunks, 1 where an action was recorded, from "mask" `(B, H)`."""
    return batch["mask"][:, :, None].expand(batch["actions"].shape).flatten(1)


class Policy(nn.Module):
    """Base of all policies. Subclasses add `kind`, `nfe` and `forward`.

    Observation: "images.<camera>" `(B, T, H, W, 3)` uint8, "state" `(B, T, S)`; T = n_obs_steps, oldest first. Of a robot with a
    goal also "goal" `(B, G)`, taken as it is.
    """

    kind = ""
    nfe = 1

    def __init__(self, robot: RobotSpec, config: PolicyConfig):
        super().__init__()
        self.robot, self.config = robot, config
        self.action_normalizer = Normalizer(robot.action_size)
        self.state_normalizer = Normalizer(robot.state_size) if robot.state_size else None
        turning = set(robot.angles)
        straight = [i for i in range(robot.state_size) if i not in turning]
        self.register_buffer("_straight", torch.tensor(straight, dtype=torch.long), persistent=False)
        self.register_buffer("_turning", torch.tensor(sorted(turning), dtype=torch.long), persistent=False)
        self.encoders = nn.ModuleDict()
        for name, (height, width, _) in self.image_shapes.items():
            self.encoders[_module_name(name)] = config.vision.build(height, width, robot.goal_size)

    @property
    def reading(self) -> dict[str, object]:
        """Return what the weights mean beyond their names and shapes, by keys of the configuration: a start must have the same."""
        return {}

    @property
    def image_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the camera inputs `(H, W, 3)` by observation name."""
        return {k: v for k, v in self.robot.observation_shapes().items() if k.startswith("images.")}

    @property
    def frame_size(self) -> int:
        """Return how many features the pictures of one tick give."""
        return len(self.encoders) * self.config.vision.features

    @property
    def tick_size(self) -> int:
        """Return F, how many features one tick has, the goal not among them."""
        return self.frame_size + self.robot.state_size + len(self.robot.angles)

    @property
    def condition_size(self) -> int:
        """Return O = T * F + G, the length of the observation features."""
        return self.config.n_obs_steps * self.tick_size + self.robot.goal_size

    @property
    def chunk_size(self) -> int:
        """Return D = H * A, the length of a flattened chunk."""
        return self.config.horizon * self.robot.action_size

    def encode_frames(self, images: Mapping[str, Tensor], goal: Tensor | None = None) -> Tensor:
        """Encode pictures `(N, H, W, 3)` uint8 by camera to features `(N, F)`; goals `(N, G)` for encoders that are told them.

        Raises:
            ConfigError: such an encoder isn't told any.
        """
        told = ()
        if self.config.vision.conditioned:
            if goal is None:
                name = self.config.vision.encoder
                raise ConfigError(f"'vision.encoder' is '{name}', which needs the goal, and none is given; write encoder: resnet18")
            told = (goal,)
        parts = []
        for name in self.image_shapes:
            picture = images[name].permute(0, 3, 1, 2).to(self.action_normalizer.low.dtype) / 127.5 - 1
            parts.append(self.encoders[_module_name(name)](picture, *told))
        return torch.cat(parts, dim=1)

    def condition(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Turn an observation into features `(B, O)`, the goal last; "features" `(B, T, F)` may stand in for the pictures."""
        parts = [part.flatten(1) for part in self._parts(observation)]
        return torch.cat([*parts, observation["goal"]] if self.robot.goal else parts, dim=1)

    def observed_ticks(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Turn an observation into features by tick `(B, T, F)`, without the goal."""
        return torch.cat(self._parts(observation), dim=2)

    def ticks(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Turn an observation into features by tick `(B, T, F + G)`, the goal at the end of each: for networks of tokens."""
        observed = self.observed_ticks(observation)
        if not self.robot.goal:
            return observed
        goal = observation["goal"][:, None].expand(-1, self.config.n_obs_steps, -1)
        return torch.cat([observed, goal], dim=2)

    def _parts(self, observation: Mapping[str, Tensor]) -> list[Tensor]:
        parts = []
        if "features" in observation:
            parts.append(observation["features"])
        elif self.encoders:
            flat = {name: observation[name].flatten(0, 1) for name in self.image_shapes}
            ticks, told = self.config.n_obs_steps, self.config.vision.conditioned
            goal = observation["goal"].repeat_interleave(ticks, dim=0) if told else None
            parts.append(self.encode_frames(flat, goal).reshape(-1, ticks, self.frame_size))
        if self.state_normalizer is not None:
            parts.append(self._state_features(observation["state"]))
        return parts

    def _state_features(self, state: Tensor) -> Tensor:
        """Return normalised states `(B, T, S)`; an angle that turns without end becomes its cosine and sine at the end."""
        scaled = self.state_normalizer(state)
        if not len(self._turning):
            return scaled
        angles = state.index_select(-1, self._turning)
        return torch.cat([scaled.index_select(-1, self._straight), angles.cos(), angles.sin()], dim=-1)

    def to_chunk(self, flat: Tensor) -> Tensor:
        """Turn normalised flat chunks `(..., D)` into actions `(..., H, A)` in the robot's units, cut to the data's range."""
        shape = (*flat.shape[:-1], self.config.horizon, self.robot.action_size)
        return self.action_normalizer.inverse(flat.clamp(-1, 1).reshape(shape))

    def deployed(self) -> nn.Module:
        """Return what is exported to compute the same: a module of the same `kind` and `forward`; as a rule the policy itself."""
        return self

    def from_chunk(self, actions: Tensor) -> Tensor:
        """Turn actions `(B, H, A)` in the robot's units into normalised flat chunks `(B, D)`."""
        return self.action_normalizer(actions).flatten(1)


def _module_name(stream: str) -> str:
    return stream.replace(".", "_")
