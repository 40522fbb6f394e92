# SPDX-License-Identifier: Apache-2.0
"""A precision baked into a graph: products in half precision, everything else in fp32.

Lowered are matrix products and convolutions: their inputs and weights are cast, their result is cast back. All else stays in
fp32: image scaling, normalisation, layer norm, softmax, sampler arithmetic. So do the *heads*, the products from which an output
is reached without another product between: what they give is commanded, or decides which expert is. In `policy.onnx` these are
the gate's logits, the experts' means and each denoiser's estimate; they cost next to nothing.

Needs `onnx`, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ros_vdd.errors import EngineError, suggest

PRECISIONS = ("fp32", "fp16", "bf16")
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38}
"""Largest finite number."""


def lowered(graph: bytes, precision: str) -> bytes:
    """Return a graph whose products but the heads compute in a precision; "fp32" leaves it as it is.

    Raises:
        EngineError: there is no such precision, or a weight is larger than its largest number.
    """
    return _changed(graph, precision, emulate=False)


def rounded(graph: bytes, precision: str) -> bytes:
    """Return an fp32 graph that rounds to a precision wherever `lowered` would: what the precision costs, told by any engine.

    Raises:
        EngineError: as `lowered`.
    """
    return _changed(graph, precision, emulate=True)


def heads(model) -> set[str]:
    """Return the results of those products from which an output of a model is reached without another product between."""
    producer = {name: node for node in model.graph.node for name in node.output}
    waiting, seen, found = [o.name for o in model.graph.output], set(), set()
    while waiting:
        name = waiting.pop()
        node = producer.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in PRODUCTS:
            found.add(node.output[0])
        else:
            waiting.extend(node.input)
    return found


def products(graph: bytes) -> tuple[int, int]:
    """Return how many products a graph has, and how many of them aren't heads."""
    import onnx

    model = onnx.load_model_from_string(graph)
    count = sum(node.op_type in PRODUCTS for node in model.graph.node)
    return count, count - len(heads(model))


def _changed(graph: bytes, precision: str, emulate: bool) -> bytes:
    if precision not in PRECISIONS:
        raise EngineError(f"no precision '{precision}'; {suggest(precision, PRECISIONS)}")
    if precision == "fp32":
        return graph
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    nodes = list(_Lowering(model, precision, emulate).nodes())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {o.name for o in model.graph.output}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Lowering:
    """One pass over the nodes of a model; weights are added to its initializers as they are met."""

    def __init__(self, model, precision: str, emulate: bool):
        import ml_dtypes
        from onnx import TensorProto

        self._graph, self._precision, self._emulate = model.graph, precision, emulate
        self._type, self._dtype = {
            "fp16": (TensorProto.FLOAT16, np.float16),
            "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        }[precision]
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._heads, self._float = heads(model), _float_tensors(model.graph)
        self._made = {}

    def nodes(self) -> Iterator:
        """Yield all nodes in an order that can be evaluated."""
        for node in self._graph.node:
            given = [name for name in node.input if name]
            if node.op_type not in PRODUCTS or node.output[0] in self._heads or not self._float.issuperset(given):
                yield node
                continue
            for name in given:
                if name not in self._made:
                    yield from self._input(name)
            result = node.output[0]
            node.input[:] = [self._made[name] if name else "" for name in node.input]
            node.output[0] = f"{result}__{self._precision}"
            yield node
            yield from self._back(node.output[0], result)

    def _input(self, name: str) -> Iterator:
        low = self._made[name] = f"{name}__as_{self._precision}"
        if name in self._weights:
            self._add_weight(name, low)
        elif self._emulate:
            yield self._cast(name, f"{low}_low", self._type)
            yield self._cast(f"{low}_low", low)
        else:
            yield self._cast(name, low, self._type)

    def _back(self, low: str, result: str) -> Iterator:
        if self._emulate:
            yield self._cast(low, f"{low}_low", self._type)
            low = f"{low}_low"
        yield self._cast(low, result)

    def _add_weight(self, name: str, low: str) -> None:
        from onnx import numpy_helper

        values = numpy_helper.to_array(self._weights[name])
        if not np.abs(values).max(initial=0.0) <= LARGEST[self._precision]:
            raise EngineError(
                f"weight '{name}' holds {np.abs(values).max():.3g}, the largest number in {self._precision} is "
                f"{LARGEST[self._precision]:.5g}; take bf16 or fp32"
            )
        values = values.astype(self._dtype)
        self._graph.initializer.append(numpy_helper.from_array(values.astype(np.float32) if self._emulate else values, low))

    @staticmethod
    def _cast(source: str, target: str, to: int | None = None):
        from onnx import TensorProto, helper

        return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=TensorProto.FLOAT if to is None else to)


def _float_tensors(graph) -> set[str]:
    from onnx import TensorProto

    values = (*graph.input, *graph.value_info, *graph.output)
    typed = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return typed | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
