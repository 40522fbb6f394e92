# SPDX-License-Identifier: Apache-2.0
"""Images cast to float before they are laid out anew: TensorRT takes bytes as inputs, but only to cast them.

Layout and cast commute exactly, so the graph computes what it did; images still travel as bytes.
"""

from __future__ import annotations

from ros_vdd.errors import EngineError

LAYOUT = ("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that move values and change none."""


def cast_at_inputs(graph: bytes) -> bytes:
    """Return a graph whose byte inputs are cast to float at once.

    Raises:
        EngineError: a graph computes with bytes.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(graph)
    images = [i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.UINT8]
    cast = {name: f"{name}__float" for name in images}
    moved = set(images)
    for node in model.graph.node:
        if moved.isdisjoint(node.input):
            continue
        if node.op_type == "Cast":
            _as_identity_if_float(node)
        elif node.op_type in LAYOUT:
            moved.update(node.output)
        else:
            raise EngineError(
                f"node '{node.name}' ({node.op_type}) of the graph computes with the bytes of an image ({', '.join(images)}); "
                f"expected a Cast, or one of {', '.join(LAYOUT)}. Export the policy again"
            )
        node.input[:] = [cast.get(name, name) for name in node.input]
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name in moved:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [helper.make_node("Cast", [a], [b], name=f"cast_{b}", to=TensorProto.FLOAT) for a, b in cast.items()]
    nodes.extend(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def _as_identity_if_float(node) -> None:
    from onnx import TensorProto

    if any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute):
        node.op_type = "Identity"
        del node.attribute[:]
