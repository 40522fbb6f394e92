# SPDX-License-Identifier: Apache-2.0
"""TensorRT on NVIDIA GPUs: `tensorrt` 10.12 or newer, or TensorRT for RTX, whichever is installed; no torch.

An engine is built ahead by `ros-vdd compile` and found in the cache. It is strongly typed: a precision is baked into the graph
(`_precision.py`), nothing is left to the builder. Images travel as bytes and are scaled on the GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ros_vdd import __version__
from ros_vdd.backends import FP32, _precision, input_shapes, onnxruntime
from ros_vdd.backends._cache import EngineCache
from ros_vdd.backends._cuda import CudaDevice, Gpu, gpu, no_gpu
from ros_vdd.backends._image_cast import cast_at_inputs
from ros_vdd.backends._trt_build import compile_graph, known_targets
from ros_vdd.backends._trt_library import is_rtx, library, logger, reasons, started, title
from ros_vdd.backends._trt_run import Kernels, Tensor, TensorRtEngine, tensors
from ros_vdd.bundle import GRAPH, Bundle
from ros_vdd.errors import EngineError, suggest

PRECISIONS = _precision.PRECISIONS


def identity(precision: str, target: str | None = None) -> dict[str, str]:
    """Return what a built engine is only valid with.

    Args:
        target: a compute capability, "sm89"; the GPU of this machine when not given.

    Raises:
        EngineError: there is no TensorRT, no GPU and no target, or the target is none that it compiles for.
    """
    trt, here = library(), gpu()
    target = _require_target(trt, target, here)
    facts = {"library": trt.__name__, "version": trt.__version__, "target": target, "precision": precision}
    facts["ros_vdd"] = __version__  # which decides how a precision is baked in
    # What TensorRT for RTX builds ahead is finished on the GPU itself, so it fits any of that capability; parity names the GPU.
    return facts if is_rtx(trt) else facts | host()


def host() -> dict[str, str]:
    """Return the machine that an engine's parity is shown on: GPU and driver; nothing without a GPU."""
    here = gpu()
    return {"gpu": here.name, "driver": here.driver} if here else {}


def cannot_run(target: str | None = None) -> str | None:
    """Return why an engine for a target can't run on this machine, or None where it can."""
    here = gpu()
    if here is None:
        return no_gpu()
    return None if target in (None, here.capability) else f"built for {target}, this GPU is {here.capability}"


def build(
    bundle: Bundle,
    precision: str = FP32,
    target: str | None = None,
    observations: Sequence[Mapping[str, np.ndarray]] = (),
    say: Callable[[str], None] = print,
) -> bytes:
    """Compile a policy.

    Args:
        target: as in `identity`.
        observations: not needed; the ranges of fp16 and bf16 are those of the format.
        say: is told what was built, and every warning that isn't explained.

    Raises:
        EngineError: as `identity`, or TensorRT refuses the graph; node and reason are named.
    """
    trt, graph = library(), _graph(bundle)
    target = _require_target(trt, target, gpu())
    total, low = _precision.products(graph)
    ahead, cache = ([target], None) if is_rtx(trt) else ([], _timing_cache(trt))
    made = compile_graph(prepared(graph, precision), ahead, cache)
    lowered = f"{low} of {total} products in {precision}, the rest in fp32" if precision != FP32 else "everything in fp32"
    kernels = f", {sum(made.kernels.values())} kernels" if made.kernels else ""
    say(
        f"{title(trt)} for {target}: {sum(made.layers.values())} layers{kernels}, {lowered}; "
        f"{len(made.engine) / 1e6:.1f} MB in {made.seconds:.1f} s"
    )
    for warning in made.warnings:
        say(f"warning of {trt.__name__}: {warning}")
    return made.engine


def prepared(graph: bytes, precision: str) -> bytes:
    """Return a policy's graph as TensorRT takes it: images cast first, a precision baked in.

    Raises:
        EngineError: the graph doesn't allow it; see `_image_cast` and `_precision`.
    """
    return _precision.lowered(cast_at_inputs(graph), precision)


def emulate(bundle: Bundle, precision: str) -> onnxruntime.OnnxRuntimeEngine:
    """Return an engine for any CPU that rounds wherever the built one does: what a precision costs, told without a GPU."""
    graph = _precision.rounded(_graph(bundle), precision)
    return onnxruntime.OnnxRuntimeEngine(onnxruntime.session(graph), f"emulated {precision}")


def open_built(bundle: Bundle, built: bytes, precision: str = FP32) -> TensorRtEngine:
    """Start an engine from what `build` returned.

    Raises:
        EngineError: no GPU, TensorRT refuses it, or its inputs aren't the policy's.
    """
    why = cannot_run()
    if why:
        raise EngineError(f"engine tensorrt:{precision} can't run here: {why} (driver and cuda-python installed?)")
    trt = library()
    said, device = logger(trt), CudaDevice()
    try:
        runtime = started(trt, "Runtime", said)
        engine = runtime.deserialize_cuda_engine(built)  # engine_host_code_allowed stays off
        if engine is None:
            raise EngineError(f"{title(trt)} refuses the engine: {reasons(said)}")
        described = tensors(trt, engine)
        require_inputs(bundle, described)
        kernels = Kernels(EngineCache().folder, built) if is_rtx(trt) else None
        context = kernels.context(engine) if kernels else engine.create_execution_context()
        if context is None:
            raise EngineError(f"{title(trt)} can't run the engine: {reasons(said)}")
        running = TensorRtEngine(f"tensorrt:{precision}", context, described, device, said, (kernels, engine, runtime))
        if kernels:
            kernels.keep()
        return running
    except BaseException:
        device.close()
        raise


def require_inputs(bundle: Bundle, described: Sequence[Tensor]) -> None:
    """Refuse an engine that doesn't take what the policy's manifest says.

    Raises:
        EngineError: names, shapes or types differ.
    """
    found = {tensor.name: (tensor.shape, tensor.dtype) for tensor in described if tensor.is_input}
    wanted = input_shapes(bundle)
    if found != wanted:
        given, expected = (", ".join(f"{n} {d} {s}" for n, (s, d) in sorted(shapes.items())) for shapes in (found, wanted))
        raise EngineError(f"the engine takes {given}; '{bundle.path}' gives {expected}. Build it again with ros-vdd compile")


def load(bundle: Bundle, precision: str = FP32) -> TensorRtEngine:
    """Start the built engine of a policy from the cache.

    Raises:
        EngineError: none was built for this graph, library, GPU, driver and precision, it is damaged, or its parity was not shown
            on this machine.
    """
    built = EngineCache().find(bundle, f"tensorrt:{precision}", identity(precision), host())
    return open_built(bundle, built, precision)


def _require_target(trt, target: str | None, here: Gpu | None) -> str:
    if target is None and here is None:
        ahead = f", or name the robot's GPU with --target: {', '.join(known_targets(trt))}" if is_rtx(trt) else ""
        why = no_gpu().replace("no GPU", "no GPU was found", 1)
        raise EngineError(f"{why} (driver and cuda-python installed?). Build on the robot{ahead}")
    if target is None or here is not None and target == here.capability:
        return here.capability
    if not is_rtx(trt):
        own = here.capability if here else "none"
        raise EngineError(
            f"'{target}' isn't this machine's GPU ({own}), and {trt.__name__} builds for that only. Build on the robot, or "
            "install TensorRT for RTX: pip install 'ros_vdd[tensorrt-rtx]'"
        )
    if target not in known_targets(trt):
        raise EngineError(f"{title(trt)} doesn't compile for '{target}'; {suggest(target, known_targets(trt))}")
    return target


def _graph(bundle: Bundle) -> bytes:
    return bundle.file(GRAPH, f"Make it with ros-vdd export {bundle.path}").read_bytes()


def _timing_cache(trt) -> Path:
    """Return where standard TensorRT keeps what it measured on this machine, one file for each GPU and version."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{host().get('gpu', 'unknown')}-{trt.__version__}")
    return EngineCache().folder / "timing" / f"{name}.bin"
