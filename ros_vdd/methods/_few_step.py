# SPDX-License-Identifier: Apache-2.0
"""What the few-step methods share: means over unpadded numbers, validation, and the student's average as a target."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.policies.few_step import FewStepPolicy
from ros_vdd.policies.policy import Policy, flat_mask


def masked_mean(errors: Tensor, mask: Tensor, draws: Draws) -> Tensor:
    """Return the mean of errors `(B, D)` where mask `(B, D)` is 1, over the batch of all processes."""
    return (errors * mask).sum() / draws.process_mean(mask.sum()).clamp(min=1)


def validated(method, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
    """Return the loss, "action_rmse" of the student's chunk against the recorded one, and "teacher_rmse" against what the teacher
    makes of the same noise; the last means something for methods that keep the teacher's trajectories."""
    _, figures = method.loss(batch, draws, 1.0)
    policy, teacher = method.policy, method.teacher
    noise = draws.normal((len(batch["actions"]), *policy.noise_shape))
    mask, context = flat_mask(batch), policy.context(batch)
    student = policy.sample(context, noise)
    start = noise[:, 0].flatten(1)
    expert = teacher.sample(teacher.context(batch, draws), start if teacher.kind != "few_step" else noise[:, :1])
    error = lambda other: ((student - other).square() * mask).sum().div(mask.sum()).sqrt().item()  # noqa: E731
    return {**figures, "action_rmse": error(policy.from_chunk(batch["actions"])), "teacher_rmse": error(expert)}


def require_frozen_encoders(policy: Policy) -> None:
    """Refuse a student whose image encoders would have to learn: the states come with features, through which no gradient passes.

    Raises:
        ConfigError: an encoder isn't frozen.
    """
    if any(p.requires_grad for p in policy.encoders.parameters()):
        raise ConfigError(
            "'freeze_encoder' is false; this method keeps the teacher's image encoders as they are: set freeze_encoder: true"
        )


def require_no_critic(policy: FewStepPolicy, method: str) -> None:
    """Refuse a student with a critic that its method doesn't train: it would be exported and tell every chunk the same energy.

    Raises:
        ConfigError: it has one.
    """
    if policy.config.critic is not None:
        raise ConfigError(f"'policy.critic' is given, and {method} doesn't train one; leave it out (method dxmi does)")


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    """Move the weights of an average towards a network: average = keep average + (1 - keep) network."""
    for mine, theirs in zip(average.parameters(), network.parameters()):
        mine.lerp_(theirs.detach(), 1 - keep)


def averaged_gradients(parameters: Iterable[Tensor], draws: Draws) -> None:
    """Average the gradients of a companion over the processes, as the loop does for the policy."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = draws.process_mean(parameter.grad)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float, draws: Draws) -> float:
    """Do one step of a companion's optimiser on a loss and return the loss."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    averaged_gradients(parameters, draws)
    nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return loss.item()
