# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph in int8 for ONNX Runtime on the CPU: convolutions with ranges from observations, linear layers by their weights.

    convolution   x = s_x (q_x - z_x), q_x uint8, one range a tensor;      w = s_w q_w, q_w int8, one scale an output channel
    linear layer  w = s (q - 128), q uint8, one scale for each block of inputs of an output; activations likewise, as they come

What decides in small numbers stays in fp32: image scaling, normalisation, layer norms, the last layers (means and gate logits, of
a sampler those of every step), the last convolutions, whose features the policy reads, and all arithmetic between layers. Of the
PushT policy in docs/engines.md the rounding of those features alone was two thirds of the error. Convolutions are written with
QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses; linear layers as its operator MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ros_vdd.backends._calibrate import Grid, observed_grids
from ros_vdd.errors import EngineError

BLOCK = 128
"""Inputs of a linear layer that share a scale."""
SMALLEST = 1 << 20
"""Weights below which a linear layer stays in fp32: it fits the cache, so little is won, and accuracy is lost."""
_LAYERS = ("Conv", "Gemm", "MatMul")


def quantised(
    graph: bytes,
    observations: Sequence[Mapping[str, np.ndarray]],
    smallest: int = SMALLEST,
    say: Callable[[str], None] = lambda text: None,
) -> bytes:
    """Return a graph with its layers in int8.

    Args:
        graph: the fp32 graph of a policy, opset 13 or newer.
        observations: inputs of the graph, from which the ranges of what convolutions see and give are taken.
        smallest: weights from which on a linear layer is quantised.
        say: is told how many layers are.

    Raises:
        EngineError: the graph has convolutions and there are no observations, or it has no layer that could be quantised.
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    rewriting = _Rewriting(model)
    convolutions, packed = rewriting.convolutions(), rewriting.linear_layers(smallest)
    if not convolutions and not packed:
        raise EngineError(
            "int8 wouldn't make this policy faster: it has no convolutions but the last, and no linear layer of "
            f"{smallest} weights or more; run it in fp32"
        )
    if convolutions and not len(observations):
        raise EngineError(
            "int8 convolutions need recorded observations for their ranges; give an episode store with --observations STORE"
        )
    grids = observed_grids(graph, rewriting.seen_by(convolutions), observations) if convolutions else {}
    total = sum(node.op_type in _LAYERS for node in model.graph.node)
    rewriting.write(convolutions, packed, grids)
    say(
        f"int8: {len(convolutions)} convolutions and {len(packed)} linear layers of {total} layers, "
        f"ranges from {len(observations)} observations"
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Rewriting:
    """A model's nodes, written anew one after the other."""

    def __init__(self, model):
        from onnx import helper, numpy_helper

        self._graph, self._helper, self._numpy = model.graph, helper, numpy_helper
        self._model = model
        self._weights = {value.name: value for value in model.graph.initializer}
        self._consumers: dict[str, list] = {}
        for node in model.graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._nodes, self._constants = [], {}

    def convolutions(self) -> list:
        """Return the convolutions with known weights from which no output is reached without another convolution."""
        last = self._last_weights(("Conv",))
        return [n for n in self._graph.node if n.op_type == "Conv" and n.input[1] in self._weights and n.input[1] not in last]

    def linear_layers(self, smallest: int) -> list:
        """Return the linear layers with so many known weights from which no output is reached without another."""
        last = self._last_weights(_LAYERS)
        return [n for n in self._graph.node if self._is_linear(n, smallest) and n.input[1] not in last]

    def seen_by(self, convolutions: list) -> list[str]:
        """Return the tensors that int8 convolutions read and write."""
        return list(dict.fromkeys(name for node in convolutions for name in (node.input[0], self._written(node))))

    def write(self, convolutions: list, packed: list, grids: Mapping[str, Grid]) -> None:
        """Replace the graph's nodes: these convolutions and linear layers in int8, these tensors on their grids."""
        convolutions, packed = {id(n) for n in convolutions}, {id(n) for n in packed}
        renamed = {}

        def put_on_grid(name: str) -> None:
            if name in grids:
                renamed[name] = self._rounded(name, grids[name])

        for value in self._graph.input:
            put_on_grid(value.name)
        for node in list(self._graph.node):
            kind, copied = id(node), type(node)()
            copied.CopyFrom(node)
            copied.input[:] = [renamed.get(name, name) for name in node.input]
            if kind in convolutions:
                self._round_weights(copied, grids[node.input[0]].scale)
            if kind in packed:
                self._pack(copied)
            else:
                self._nodes.append(copied)
            for name in node.output:
                put_on_grid(name)
        used = {name for node in self._nodes for name in node.input}
        kept = [w for name, w in self._weights.items() if name in used]
        for field, values in (("node", self._nodes), ("initializer", [*kept, *self._constants.values()]), ("value_info", [])):
            del getattr(self._graph, field)[:]
            getattr(self._graph, field).extend(values)
        if packed and not any(opset.domain == "com.microsoft" for opset in self._model.opset_import):
            self._model.opset_import.append(self._helper.make_opsetid("com.microsoft", 1))

    def _last_weights(self, layers: tuple[str, ...]) -> set[str]:
        """Return the weights of layers from which an output is reached without another; one that shares them is last too."""
        producer = {name: node for node in self._graph.node for name in node.output}
        open_, seen, last = [value.name for value in self._graph.output], set(), set()
        while open_:
            name = open_.pop()
            if name in seen or name not in producer:
                continue
            seen.add(name)
            node = producer[name]
            if node.op_type in layers and len(node.input) > 1 and node.input[1] in self._weights:
                last.add(node.input[1])
            else:
                open_.extend(node.input)
        return last

    def _is_linear(self, node, smallest: int) -> bool:
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in self._weights:
            return False
        weight, options = self._weights[node.input[1]], self._options(node)
        plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
        return plain and len(weight.dims) == 2 and weight.dims[0] * weight.dims[1] >= smallest

    def _written(self, node) -> str:
        """Return what a convolution writes, after its activation where that is all that reads it."""
        readers = self._consumers.get(node.output[0], [])
        return readers[0].output[0] if len(readers) == 1 and readers[0].op_type == "Relu" else node.output[0]

    def _rounded(self, name: str, grid: Grid) -> str:
        """Write a tensor's way to uint8 and back, and return the name of what comes out."""
        terms = [self._constant(f"{name}_scale", np.float32(grid.scale)), self._constant(f"{name}_zero", np.uint8(grid.zero))]
        self._node("QuantizeLinear", [name, *terms], f"{name}_uint8")
        return self._node("DequantizeLinear", [f"{name}_uint8", *terms], f"{name}_rounded")

    def _round_weights(self, node, input_scale: float) -> None:
        """Give a convolution int8 weights and the int32 offset that belongs to them."""
        weight = self._array(node.input[1])
        scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127, 1e-12).astype(np.float32)
        rounded = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        node.input[1] = self._dequantised(node.input[1], rounded, scale)
        if len(node.input) > 2:
            steps = scale * np.float32(input_scale)
            offset = np.clip(np.rint(self._array(node.input[2]) / steps.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
            node.input[2] = self._dequantised(f"{node.input[2]}_{node.name or node.output[0]}", offset, steps)

    def _dequantised(self, name: str, values: np.ndarray, scale: np.ndarray) -> str:
        terms = [self._constant(f"{name}_{values.dtype}", values), self._constant(f"{name}_{values.dtype}_scale", scale)]
        return self._node("DequantizeLinear", terms, f"{name}_rounded", axis=0)

    def _pack(self, node) -> None:
        """Write a linear layer with its weights in blocks of int8."""
        name, weight = node.input[1], self._array(node.input[1])
        weight = weight if node.op_type == "Gemm" and self._options(node).get("transB", 0) else weight.T  # (N, K)
        outputs, inputs = weight.shape
        blocks = -(-inputs // BLOCK)
        padded = np.pad(weight, ((0, 0), (0, blocks * BLOCK - inputs))).reshape(outputs, blocks, BLOCK)
        scale = np.maximum(np.abs(padded).max(axis=2) / 127, 1e-12).astype(np.float32)
        values = (np.rint(padded / scale[..., None]) + 128).astype(np.uint8)
        terms = [node.input[0], self._constant(f"{name}_blocks", values), self._constant(f"{name}_blocks_scale", scale.ravel())]
        sizes = {"K": inputs, "N": outputs, "bits": 8, "block_size": BLOCK, "accuracy_level": 4, "domain": "com.microsoft"}
        if len(node.input) == 2:
            self._node("MatMulNBits", terms, node.output[0], **sizes)
        else:
            product = self._node("MatMulNBits", terms, f"{node.output[0]}_product", **sizes)
            self._node("Add", [product, node.input[2]], node.output[0])

    def _options(self, node) -> dict:
        return {a.name: self._helper.get_attribute_value(a) for a in node.attribute}

    def _array(self, name: str) -> np.ndarray:
        return self._numpy.to_array(self._weights[name])

    def _constant(self, name: str, value) -> str:
        self._constants.setdefault(name, self._numpy.from_array(np.asarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **options) -> str:
        self._nodes.append(self._helper.make_node(kind, inputs, [output], **options))
        return output
