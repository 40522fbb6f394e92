# SPDX-License-Identifier: Apache-2.0
"""What one policy hands on to another: units, encoders, weights; refused where the two wouldn't mean the same."""

from __future__ import annotations

import torch

from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError, PolicyError
from ros_vdd.policies.policy import Policy


def require_equal_shapes(student: Policy, teacher: Policy) -> None:
    """Refuse a student that sees or plans another number of steps, or pictures otherwise, than its teacher."""
    for name in ("n_obs_steps", "horizon", "vision"):
        mine, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if mine != theirs:
            raise ConfigError(f"'policy.{name}' is {mine}; the teacher has {theirs}, and both must see and plan the same")


def require_equal_senses(student: Policy, teacher: Policy, shared_features: bool) -> None:
    """Refuse a start whose units aren't the teacher's, or another encoder where one set of features serves both."""
    for name in ("action_normalizer", "state_normalizer", *(["encoders"] if shared_features else [])):
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine is not None and any(not torch.equal(v, theirs.state_dict()[k]) for k, v in mine.state_dict().items()):
            raise ConfigError(
                f"'start' or 'encoder' brings another {name} than the teacher's; train both on the same data and encoder"
            )


def require_known_levels(student: Policy, teacher: Policy) -> None:
    """Refuse a few-step student that would ask a VE teacher beyond the levels that it was trained at, where it invents.

    A VP teacher answers as the nearest level that it knows.
    """
    if student.kind != "few_step" or teacher.levels is not None:
        return
    mine, theirs = student.config.sampler, teacher.config.sampler
    if mine.sigma_min < theirs.sigma_min or mine.sigma_max > theirs.sigma_max:
        raise ConfigError(
            f"'policy.sampler' goes from 'sigma_min' {mine.sigma_min:g} to 'sigma_max' {mine.sigma_max:g}; the teacher was trained from "
            f"{theirs.sigma_min:g} to {theirs.sigma_max:g}, and must not be asked beyond; keep within"
        )


def require_equal_reading(policy: Policy, source: Policy, bundle: Bundle) -> None:
    """Refuse a start whose weights would be read otherwise than they were trained, though their shapes fit."""
    mine, theirs = policy.reading, source.reading
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if keys:
        told = ", ".join(f"'policy.{key}' {theirs.get(key, 'none')} (here {mine.get(key, 'none')})" for key in keys)
        raise ConfigError(f"'start' '{bundle.path}' was trained with {told}; give both the same, or what it learned would mean something else")


def copy_observation_side(teacher: Policy, student: Policy) -> None:
    """Give the student the teacher's units and eyes, so that chunks and features mean the same to both."""
    student.action_normalizer.load_state_dict(teacher.action_normalizer.state_dict())
    if student.state_normalizer is not None:
        student.state_normalizer.load_state_dict(teacher.state_normalizer.state_dict())
    student.encoders.load_state_dict(teacher.encoders.state_dict())


def copy_weights(source: torch.nn.Module, target: torch.nn.Module, bundle: Bundle) -> None:
    """Copy all weights of a module out of a policy folder.

    Raises:
        PolicyError: names or shapes differ.
    """
    mine = {k: tuple(v.shape) for k, v in target.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in source.state_dict().items()}
    if mine != theirs:
        wrong = sorted(set(mine.items()) ^ set(theirs.items()))[:4]
        raise PolicyError(f"weights of '{bundle.path}' don't fit this configuration, for example {wrong}")
    target.load_state_dict(source.state_dict())
