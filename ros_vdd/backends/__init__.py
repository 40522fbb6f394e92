# SPDX-License-Identifier: Apache-2.0
"""Engines that run a policy folder: one file an engine, found by name, all with the same inputs and outputs.

Inputs: the observation with a batch axis of 1 ("images.<camera>" `(1, T, H, W, 3)` uint8, "state" `(1, T, S)` float32, and of a
robot with a goal "goal" `(1, G)` float32), and "noise" `(1, H, A)` float32 for a diffusion policy. A window policy takes noise
`(1, T, A)`, "past_actions" `(1, T-1, A)` in the robot's units and "past_mask" `(1, T-1)`, 1 where an action was executed. One exported with
`--inpaint` takes "prefix" `(1, H, A)`, actions in the robot's units, and "prefix_mask" `(1, H)`, 1 for those that are certain, which come first.
Outputs: "means" `(1, K, H, A)` and "log_gate" `(1, K)` of a mixture, or "actions" `(1, H, A)`.

The likelihood of a mixture takes the observation, "chunk" `(1, H, A)` and "mask" `(1, H)`: 1 for the actions that count, then 0.
Outputs: "log_prob" `(1,)`, "log_responsibilities" `(1, K)`, "gate_entropy" `(1,)` [nats], "means", "stds"
and "continued" `(1, K, H, A)`, the last of which begin with the actions that count.

The critic of a few-step student takes the same and "noise" `(1, M, N, H, A)`, for M chunks of its own to compare with.
Outputs: "energy" `(1,)` of the chunk, "samples" `(1, M)` of its own, in a unit that is another for each observation.

An engine is named `NAME` or `NAME:PRECISION`, for example `tensorrt:fp16`; without a precision it computes in fp32. Its module
has `load`, and of an engine that is built ahead, after which `load` finds it in the cache (`_cache.py`):

    PRECISIONS                   what it computes in, "fp32" first; `build` refuses one that needs no building
    identity(precision, target)  what a built engine is only valid with: library, version, GPU, driver, precision
    build(bundle, precision, target, observations, say) -> bytes
    open_built(bundle, built, precision) -> Engine
    host(), cannot_run(target), emulate(bundle, precision)   optional, see `tensorrt.py`
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError, suggest

FP32 = "fp32"
"""The precision of an engine that is named without one."""
PREFIX = ("prefix", "prefix_mask")
"""What a policy that inpaints takes beside the observation."""
ENERGY_SAMPLES = 32
"""M, how many chunks of its own a critic compares with: ranks in steps of 3 %."""


class Engine(Protocol):
    """A loaded policy; one thread at a time may call it."""

    name: str

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the policy once."""


def names() -> list[str]:
    """Return the names of the engines in this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def split(name: str) -> tuple[str, str | None]:
    """Return ("tensorrt", "fp16") of "tensorrt:fp16", and ("eager", None) of "eager".

    Raises:
        EngineError: the precision is empty, or there are two.
    """
    engine, *precision = name.split(":")
    if precision and (len(precision) > 1 or not engine or not precision[0]):
        raise EngineError(
            f"engine '{name}' isn't NAME or NAME:PRECISION, for example tensorrt:fp16; available: {', '.join(names())}"
        )
    return engine, precision[0] if precision else None


def module(name: str):
    """Return the module of an engine named `NAME` or `NAME:PRECISION`.

    Raises:
        EngineError: there is no such engine, it isn't installed, or it can't compute in that precision.
    """
    engine, precision = split(name)
    if engine not in names() and ("." not in engine or not all(map(str.isidentifier, engine.split(".")))):
        raise EngineError(f"no engine '{engine}'; {suggest(engine, names())}")
    try:
        found = importlib.import_module(engine if "." in engine else f"{__name__}.{engine}")
    except ModuleNotFoundError as error:
        raise _not_installed(name, error) from error
    offered = getattr(found, "PRECISIONS", (FP32,))
    if (precision or FP32) not in offered:
        raise EngineError(f"engine '{engine}' has no precision '{precision}'; it computes in {', '.join(offered)}")
    return found


def load(bundle: Bundle, name: str = "onnxruntime", threads: int | None = None, **options) -> Engine:
    """Load a policy folder into an engine.

    Args:
        bundle: the verified folder.
        name: an engine of this folder, or one with dots from outside the package; `NAME:PRECISION` where it has several.
        threads: of an engine that computes on the CPU and takes that argument (others take no notice); more than one pays for large
            networks on idle cores. None: as the engine does by itself, ONNX Runtime with one.
        options: keyword arguments of the engine's `load`.

    Raises:
        EngineError: there is no such engine or precision, it isn't installed, it refuses the policy, it must be built first, or `threads`
            is below 1.
    """
    require_commands(bundle)
    return _load(bundle, name, "load", threads, options)


def load_likelihood(bundle: Bundle, name: str = "onnxruntime", threads: int | None = None, **options) -> Engine:
    """Load the likelihood of a mixture; an engine without one leaves it to ONNX Runtime.

    Raises:
        EngineError: as `load`, or the policy is no mixture.
        PolicyError: the folder lacks `likelihood.onnx`.
    """
    if bundle.kind != "mixture":
        raise EngineError(f"'{bundle.path}' is a {bundle.kind} policy; only a mixture tells how likely a chunk is")
    return _load(bundle, name, "load_likelihood", threads, options)


def load_energy(bundle: Bundle, name: str = "onnxruntime", threads: int | None = None, **options) -> Engine:
    """Load the critic of a student; an engine without one leaves it to ONNX Runtime.

    Raises:
        EngineError: as `load`, or the policy has no critic.
        PolicyError: the folder lacks `critic.onnx`.
    """
    if not bundle.has_critic:
        raise EngineError(
            f"'{bundle.path}' is a {bundle.kind} policy without a critic; only a student that was trained with one (method: dxmi) "
            "tells energies"
        )
    return _load(bundle, name, "load_energy", threads, options)


def _load(bundle: Bundle, name: str, what: str, threads: int | None, options: Mapping) -> Engine:
    if threads is not None and threads < 1:
        raise EngineError(f"'threads' is {threads}; expected at least 1")
    found, precision = module(name), split(name)[1]
    if what == "load" and precision and hasattr(found, "PRECISIONS"):
        options = {**options, "precision": precision}
    if not hasattr(found, what):
        found = module("onnxruntime")
    loader = getattr(found, what)
    if threads is not None and "threads" in inspect.signature(loader).parameters:
        options = {**options, "threads": threads}
    try:
        return loader(bundle, **options)
    except ModuleNotFoundError as error:
        raise _not_installed(name, error) from error


def _not_installed(name: str, error: ModuleNotFoundError) -> EngineError:
    return EngineError(f"engine '{name}' needs the module '{error.name}', which isn't installed")


def require_commands(bundle: Bundle) -> None:
    """Refuse an image encoder, which is a policy folder but gives no actions.

    Raises:
        EngineError: it is one.
    """
    if bundle.kind == "encoder":
        raise EngineError(f"'{bundle.path}' is an image encoder; it commands nothing. Give a teacher's or student's folder")


def input_shapes(bundle: Bundle) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return {input: (shape with batch axis, type)} that every engine of this policy takes."""
    shapes = {
        name: ((1, *shape), np.dtype(np.uint8 if name.startswith("images.") else np.float32))
        for name, shape in bundle.input_shapes.items()
    }
    if bundle.noise_shape:
        shapes["noise"] = ((1, *bundle.noise_shape), np.dtype(np.float32))
    if bundle.past_shape:
        shapes["past_actions"] = ((1, *bundle.past_shape), np.dtype(np.float32))
        shapes["past_mask"] = ((1, bundle.past_shape[0]), np.dtype(np.float32))
    if bundle.inpaints:
        shapes |= dict(zip(PREFIX, _chunk_and_mask(bundle)))
    return shapes


def _chunk_and_mask(bundle: Bundle) -> list[tuple[tuple[int, ...], np.dtype]]:
    chunk = (1, bundle.horizon, bundle.robot.action_size)
    return [(chunk, np.dtype(np.float32)), (chunk[:2], np.dtype(np.float32))]


def likelihood_shapes(bundle: Bundle) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return {input: (shape with batch axis, type)} that the likelihood of this mixture takes."""
    observed = {name: kind for name, kind in input_shapes(bundle).items() if name not in PREFIX}
    return observed | dict(zip(("chunk", "mask"), _chunk_and_mask(bundle)))


def energy_shapes(bundle: Bundle) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return {input: (shape with batch axis, type)} that the critic of this student takes."""
    shapes = likelihood_shapes(bundle)
    return {**shapes, "noise": ((1, ENERGY_SAMPLES, *bundle.noise_shape), np.dtype(np.float32))}


def random_inputs(bundle: Bundle, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw inputs for parity checks and timing: any picture and task, states all over the range that the policy was trained on."""
    inputs = {}
    for name, (shape, dtype) in input_shapes(bundle).items():
        if dtype == np.uint8:
            inputs[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif name == "noise":
            inputs[name] = rng.standard_normal(shape, dtype=np.float32)
        elif name == "goal":
            inputs[name] = _random_goal(bundle, rng)[None]
        elif name in ("past_actions", "prefix"):
            inputs[name] = rng.uniform(bundle.robot.action.lower, bundle.robot.action.upper, shape).astype(np.float32)
        elif name == "past_mask":
            inputs[name] = (np.arange(shape[1]) >= rng.integers(shape[1] + 1)).astype(np.float32)[None]
        elif name == "prefix_mask":
            inputs[name] = (np.arange(shape[1]) < rng.integers(shape[1] + 1)).astype(np.float32)[None]
        else:
            low, high = (np.asarray(bundle.manifest.export.get(f"state_{k}", d)) for k, d in (("low", -1.0), ("high", 1.0)))
            inputs[name] = rng.uniform(low, high, shape).astype(np.float32)
    return inputs


def _random_goal(bundle: Bundle, rng: np.random.Generator) -> np.ndarray:
    goal = bundle.robot.goal
    return goal.encode(rng.integers(goal.length) if goal.tasks else rng.standard_normal(goal.length))
