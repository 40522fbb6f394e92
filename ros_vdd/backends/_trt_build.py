# SPDX-License-Identifier: Apache-2.0
"""A graph compiled by TensorRT: strongly typed, static shapes, every warning looked at."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ros_vdd.backends._blob import read_blob, write_blob
from ros_vdd.backends._trt_library import is_rtx, library, logger, reasons, started, title, unexplained
from ros_vdd.errors import EngineError, suggest

LEVEL = 5
"""Builder optimisation level of standard TensorRT: an engine is built once and runs for months."""
FORBIDDEN = ("PLUGIN", "PLUGIN_V2", "PLUGIN_V3")
"""Layers that would run code from outside TensorRT."""


@dataclass(frozen=True)
class Built:
    """An engine and what its build told."""

    engine: bytes
    layers: dict[str, int]
    """Layers of the network by type."""
    kernels: dict[str, int]
    """Layers of the engine by type, where the library lists them."""
    warnings: tuple[str, ...]
    """Those that nobody explained."""
    seconds: float


def compile_graph(graph: bytes, targets: Sequence[str] = (), timing_cache: Path | None = None) -> Built:
    """Compile a graph whose types are final.

    Args:
        graph: an ONNX model with static shapes.
        targets: compute capabilities, "sm89"; empty for the GPU of this machine. Only TensorRT for RTX builds for others.
        timing_cache: where standard TensorRT keeps what it measured; made when missing, ignored when it doesn't fit.

    Raises:
        EngineError: there is no TensorRT, a target is unknown, the parser refuses a node, or no engine comes out.
    """
    trt, began = library(), time.monotonic()
    said = logger(trt)
    builder = started(trt, "Builder", said)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, graph, said)
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    foreign = [name for name in FORBIDDEN if layers[name]]
    if foreign:
        raise EngineError(f"the graph needs layers from outside TensorRT: {', '.join(foreign)}; only its own are used")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 has the mantissa of fp16
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if is_rtx(trt):
        _set_targets(trt, config, targets)
        cache = None  # setting one asks for a GPU
    else:
        config.builder_optimization_level = LEVEL
        cache = _timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{title(trt)} built no engine for {', '.join(targets) or 'this GPU'}: {reasons(said)}")
    if cache is not None and timing_cache is not None:
        write_blob(timing_cache, bytes(cache.serialize()))
    engine = bytes(plan)
    return Built(engine, dict(layers), dict(Counter(said.kernels)), tuple(unexplained(said.warnings)), time.monotonic() - began)


def known_targets(trt) -> list[str]:
    """Return the compute capabilities that TensorRT for RTX compiles for, "sm75" and so on."""
    return [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]


def _set_targets(trt, config, targets: Sequence[str]) -> None:
    names = [target.upper() for target in targets] or ["CURRENT"]
    for name in names:
        if name not in trt.ComputeCapability.__members__ or name == "NONE":
            raise EngineError(
                f"{title(trt)} doesn't compile for '{name.lower()}'; {suggest(name.lower(), known_targets(trt))}. "
                "Other GPUs need standard TensorRT, on the machine itself"
            )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name], index):
            raise EngineError(f"{title(trt)} didn't take the target '{name.lower()}'")


def _parse(trt, network, graph: bytes, said) -> None:
    parser = trt.OnnxParser(network, said)
    if parser.parse(graph):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = [f"node {e.node()} '{e.node_name()}' ({e.node_operator()}): {' '.join(e.desc().split())}" for e in errors]
    raise EngineError(f"{title(trt)} can't read the graph: {'; '.join(told) or reasons(said)}")


def _timing_cache(config, path: Path | None):
    cache = config.create_timing_cache(b"" if path is None else read_blob(path))
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache
