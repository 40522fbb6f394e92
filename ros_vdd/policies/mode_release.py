# SPDX-License-Identifier: Apache-2.0
"""A policy of this package from a released MoDE checkpoint and a robot file, refused where the two don't fit.

The release acts in [-1, 1]; here these are the limits of the robot file.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ros_vdd.errors import PolicyError
from ros_vdd.networks.mode import ModeSizes
from ros_vdd.policies.diffusion import SamplerConfig
from ros_vdd.policies.mode import ModeConfig, ModePolicy
from ros_vdd.policies.mode_checkpoint import DROPOUTS, Checkpoint
from ros_vdd.policies.mode_names import STATIC, WRIST
from ros_vdd.policies.vision import VisionConfig
from ros_vdd.streams.spec import RobotSpec

SIGMA_MAX = 80.0
CAMERAS = (STATIC, WRIST)
"""In the order of the tokens: the robot file's first camera stands still, its second is on the wrist."""
EXAMPLE = "config/robots/calvin.yaml"


def released_sampler(steps: int = 10, sigma_min: float = 0.001) -> SamplerConfig:
    """Return the sampler of the release: Euler's rule over levels in equal ratios from 80 down to sigma_min, then 0, nothing cut.

    Raises:
        ConfigError: no step, or sigma_min not between 0 and 80.
    """
    return SamplerConfig(steps=steps, sigma_min=sigma_min, sigma_max=SIGMA_MAX, spacing="exponential", clip=False)


def released_policy(checkpoint: Checkpoint, robot: RobotSpec, sampler: SamplerConfig) -> ModePolicy:
    """Return the policy, in evaluation mode; it shares the checkpoint's tensors.

    Raises:
        PolicyError: the robot file has other cameras, goals or actions than the checkpoint was trained with, or states.
    """
    require_fit(checkpoint.sizes, robot)
    with torch.device("meta"):
        policy = ModePolicy(robot, released_config(checkpoint, sampler))
    tensors = {f"denoiser.network.{name}": value for name, value in checkpoint.network.items()}
    for module, camera in zip(policy.encoders, CAMERAS):
        tensors |= {f"encoders.{module}.{name}": value for name, value in checkpoint.encoders[camera].items()}
    for name, limits in (("low", robot.action.lower), ("high", robot.action.upper)):
        tensors[f"action_normalizer.{name}"] = torch.tensor(limits, dtype=torch.float32)
    policy.load_state_dict(tensors, assign=True)
    for name in ("_straight", "_turning"):  # of joint states, which a released policy doesn't read
        policy.register_buffer(name, torch.zeros(0, dtype=torch.long), persistent=False)
    return policy.eval()


def released_config(checkpoint: Checkpoint, sampler: SamplerConfig) -> ModeConfig:
    """Return the configuration of a released policy: one tick observed, the whole chunk executed."""
    sizes = checkpoint.sizes
    names = ("horizon", "width", "depth", "heads", "experts", "top_k", "expert_ratio", *DROPOUTS)
    return ModeConfig(
        n_obs_steps=sizes.ticks,
        n_action_steps=sizes.horizon,
        vision=VisionConfig(features=sizes.features, encoder=checkpoint.encoder),
        sampler=sampler,
        **{name: getattr(sizes, name) for name in names},
    )


def require_fit(sizes: ModeSizes, robot: RobotSpec) -> None:
    """Refuse a robot file that says something else than the checkpoint was trained with.

    Raises:
        PolicyError: with all that differs.
    """
    problems = list(_problems(sizes, robot))
    if problems:
        listed = "\n  ".join(problems)
        raise PolicyError(
            f"robot file '{robot.name}' doesn't fit the checkpoint:\n  {listed}\n"
            f"Correct the robot file; {EXAMPLE} has the released interface and explains it"
        )


def _problems(sizes: ModeSizes, robot: RobotSpec) -> Iterator[str]:
    if len(robot.cameras) != sizes.cameras:
        order = "first the one that stands still, then the one on the wrist"
        yield f"'cameras' has {_named(robot.cameras)}; expected {sizes.cameras}: {order}"
    if robot.states:
        yield f"'states' has {_named(robot.states)}; expected none, the checkpoint sees only pictures; write states: {{}}"
    goal = robot.goal
    wanted = f"topic, type: std_msgs/msg/Float32MultiArray and size: {sizes.goal}, the vector of the text encoder"
    if goal is None:
        yield f"there is no section 'goal'; expected one with {wanted}"
    elif goal.tasks or goal.length != sizes.goal:
        said = f"{len(goal.tasks)} tasks" if goal.tasks else f"size {goal.length}"
        yield f"'goal' has {said}; expected {wanted}"
    if robot.action_size != sizes.action:
        yield f"'action.joints' has {_named(robot.action.joints)}; expected {sizes.action}"
    still = [j for j, low, high in zip(robot.action.joints, robot.action.lower, robot.action.upper) if low == high]
    if still:
        yield f"'action.lower' and 'action.upper' are equal for {', '.join(still)}; expected limits for -1 and 1 to mean"


def _named(things) -> str:
    return f"{len(things)} ({', '.join(things)})" if things else "none"
