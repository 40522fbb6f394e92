# SPDX-License-Identifier: Apache-2.0
"""The floor of a policy's time: what its weights and operations cost at speeds measured on this machine.

    floor = max(bytes / bandwidth, operations / peak)

bytes: of all weights, once. bandwidth: read and written bytes of a copy as large as the weights, so that a cache which holds them
counts. operations: two for each multiply-add of Conv, Gemm and MatMul. peak: of a square product of matrices. On the CPU the copy
is NumPy's and the product ONNX Runtime's on one thread, in fp32 or int8; on a GPU both are PyTorch's, in the engine's precision.
The fastest of many short runs counts, so other work on the machine changes little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from ros_vdd.bundle import GRAPH, Bundle

SIDE = {"cpu": 384, "cuda": 4096}
"""Of the square matrices whose product measures the peak."""
REPEATS = 100
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Floor:
    """The least that a chunk takes."""

    floor_ms: float
    weight_mb: float
    operations: float
    bandwidth_gb_s: float
    peak_gop_s: float
    device: str


def floor(bundle: Bundle, precision: str, device: str) -> Floor:
    """Return the floor of a policy.

    Args:
        precision: in which all weights and products are counted.
        device: "cpu" or "cuda".

    Raises:
        ModuleNotFoundError: onnx is missing, which reads the graph; on a GPU torch.
    """
    weights, operations = work(bundle.file(GRAPH).read_bytes())
    size = weights * _BYTES[precision]
    bandwidth, peak = bandwidth_of(device, 1 << max(size - 1, 1 << 12).bit_length()), peak_of(device, precision)
    least = max(size / bandwidth, operations / peak)
    figures = (float(f"{value:.4g}") for value in (least * 1e3, size / 1e6, operations, bandwidth / 1e9, peak / 1e9))
    return Floor(*figures, device)


def work(graph: bytes) -> tuple[int, int]:
    """Return how many weights a graph holds and how many operations its layers take."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    known = (*model.graph.value_info, *model.graph.output, *model.graph.input)
    shapes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in known}
    shapes |= {value.name: tuple(value.dims) for value in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            total += 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            inner = shapes[node.input[0]]
            total += 2 * prod(shapes[node.output[0]]) * inner[-2 if node.op_type == "Gemm" and _transposed(node) else -1]
    floats = [v for v in model.graph.initializer if v.data_type == onnx.TensorProto.FLOAT]
    return sum(prod(v.dims) for v in floats), total


def _transposed(node) -> bool:
    return any(a.name == "transA" and a.i for a in node.attribute)


@lru_cache
def bandwidth_of(device: str, size: int) -> float:
    """Return bytes read and written per second by copying `size` bytes."""
    if device == "cpu":
        source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
        return 2 * size / _best(lambda: np.copyto(target, source), max(1, (1 << 23) // size))
    import torch

    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), 20, torch.cuda.synchronize)


@lru_cache
def peak_of(device: str, precision: str) -> float:
    """Return operations per second of a product of square matrices."""
    side = SIDE[device]
    if device == "cpu":
        run = _cpu_product(side, "int8" if precision == "int8" else "fp32")
        return 2 * side**3 / _best(run)
    import torch

    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}[precision]
    a = torch.ones(side, side, dtype=kind, device="cuda")
    return 2 * side**3 / _best(lambda: a @ a, 10, torch.cuda.synchronize)


def _cpu_product(side: int, precision: str) -> Callable[[], object]:
    """Return a product of two matrices by ONNX Runtime on one thread; of uint8 and int8 into int32 for int8."""
    from onnx import TensorProto, helper, numpy_helper

    from ros_vdd.backends.onnxruntime import session

    if precision == "int8":
        kind, seen, held, gives = "MatMulInteger", np.uint8, np.int8, TensorProto.INT32
    else:
        kind, seen, held, gives = "MatMul", np.float32, np.float32, TensorProto.FLOAT
    given = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(seen)), (side, side))
    answer = helper.make_tensor_value_info("y", gives, (side, side))
    weights = numpy_helper.from_array(np.ones((side, side), held), "w")
    graph = helper.make_graph([helper.make_node(kind, ["x", "w"], ["y"])], "product", [given], [answer], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    opened, inputs = session(model.SerializeToString()), {"x": np.ones((side, side), seen)}
    return lambda: opened.run(None, inputs)


def _best(run: Callable[[], object], count: int = 1, wait: Callable[[], object] = lambda: None) -> float:
    """Return the least seconds a run, over `REPEATS` times `count` runs."""
    run()
    seconds = []
    for _ in range(REPEATS):
        wait()
        began = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        seconds.append((time.perf_counter() - began) / count)
    return min(seconds)
