# SPDX-License-Identifier: Apache-2.0
"""The single step of a MoDE policy as graphs: a schedule is then a table of numbers, not a new export.

    condition.onnx   observation -> condition, once a chunk
    step.onnx        x, condition, gates, c, A, B, c_in -> next x
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ros_vdd import backends
from ros_vdd.backends.onnxruntime import session
from ros_vdd.bundle import Bundle
from ros_vdd.errors import PolicyError

CONDITION, STEP = "condition.onnx", "step.onnx"
PER_LEVEL = ("gates", "c", "A", "B", "c_in")


def require_gates(policy, path: Path) -> None:
    """Refuse a policy whose experts can't be chosen ahead.

    Raises:
        PolicyError: it is no MoDE policy, or its router reads tokens.
    """
    if policy.kind != "mode":
        raise PolicyError(f"'{path}' is a {policy.kind} policy; only a MoDE policy has a single step. Leave --single-step out")
    if policy.network.sizes.routes_tokens:
        raise PolicyError(
            f"'{path}' routes each token by itself, so its experts can't be given as gates. Leave --single-step out"
        )


def step_graphs(policy, example: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Return both graphs by file name, for observations shaped as in `example`."""
    from ros_vdd.policies.graph import step_to_onnx

    condition, step = step_to_onnx(policy, {name: value for name, value in example.items() if name != "noise"})
    return {CONDITION: condition, STEP: step}


def denoise(step: Callable[..., np.ndarray], noise: np.ndarray, schedule: Mapping[str, np.ndarray], clip: bool) -> np.ndarray:
    """Return a normalised chunk `(1, H * A)` from unit noise `(1, H * A)` by Euler's rule.

    Args:
        step: maps x `(1, H * A)` and one level's `PER_LEVEL`, by name, to the next x.
        schedule: from `ros_vdd.policies.mode_deployed.schedule`.
        clip: cut clean estimates to [-1, 1]; of the sampler that the schedule was made for.
    """
    x = noise * schedule["sigma"][0]
    for i, ratio in enumerate(schedule["ratio"]):
        following = step(x=x, **{name: schedule[name][i] for name in PER_LEVEL})
        x = ratio * x + (1 - ratio) * np.clip(following, -1, 1) if clip else following
    return x


def step_parity(policy, graphs: Mapping[str, bytes], bundle: Bundle, draws: int) -> float:
    """Return how far the graphs, driven by Euler's rule along the policy's levels, are from PyTorch, in shares of the range."""
    from dataclasses import replace

    import torch

    from ros_vdd.policies.mode_deployed import schedule

    how = replace(policy.config.sampler, solver="euler")
    table, rng, worst = schedule(policy, how), np.random.default_rng(3), 0.0
    condition_of, step_of = (session(graphs[name]) for name in (CONDITION, STEP))
    for _ in range(draws):
        inputs = backends.random_inputs(bundle, rng)
        noise = inputs.pop("noise").reshape(1, -1)
        condition = condition_of.run(None, inputs)[0]
        found = denoise(lambda **level: step_of.run(None, {"condition": condition, **level})[0], noise, table, how.clip)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
            expected = policy.sample(policy.context(tensors), torch.from_numpy(noise), how).numpy()
        worst = np.maximum(worst, np.abs(found.clip(-1, 1) - expected.clip(-1, 1)).max() / 2)
    return float(worst)
