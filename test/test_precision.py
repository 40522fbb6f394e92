# SPDX-License-Identifier: Apache-2.0
"""Precisions: how a user names one, and what it changes in a graph."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are changed by onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import tiny_policy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.backends import _precision  # noqa: E402
from ros_vdd.backends._image_cast import cast_at_inputs  # noqa: E402
from ros_vdd.backends.onnxruntime import session  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402
from ros_vdd.resources import share_dir  # noqa: E402

MODELS = sorted(p.parent.name for p in (share_dir() / "models").glob("*/policy.onnx"))
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of one rounding."""


class Echo:
    """An engine from outside the package that tells how it was loaded."""

    name = "lab"

    def __init__(self, **options):
        self.options = options


@pytest.fixture
def lab(monkeypatch):
    """A module outside the package, known as `lab.engine`."""
    module = types.ModuleType("lab.engine")
    module.load = lambda bundle, **options: Echo(**options)
    monkeypatch.setitem(sys.modules, "lab", types.ModuleType("lab"))
    monkeypatch.setitem(sys.modules, "lab.engine", module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policy") / "tiny")


def test_the_precision_stands_behind_a_colon():
    assert backends.split("tensorrt:fp16") == ("tensorrt", "fp16")
    assert backends.split("eager") == ("eager", None)


@pytest.mark.parametrize("name", ["onnxruntime:", ":fp16", "tensorrt:fp16:fast"])
def test_a_malformed_name_is_refused_with_an_example(name, folder):
    with pytest.raises(EngineError, match=f"engine '{name}' isn't NAME or NAME:PRECISION, .*available: .*onnxruntime"):
        backends.load(folder, name)


def test_an_engine_is_told_the_precision_that_was_asked_for(folder, lab):
    lab.PRECISIONS = ("fp32", "fp16")
    assert backends.load(folder, "lab.engine:fp16").options == {"precision": "fp16"}
    assert backends.load(folder, "lab.engine").options == {}


def test_an_engine_of_one_precision_is_not_told_of_it(folder, lab):
    assert backends.load(folder, "lab.engine:fp32").options == {}


def test_a_precision_that_an_engine_lacks_is_refused_with_those_it_has(folder, lab):
    with pytest.raises(EngineError, match="engine 'lab.engine' has no precision 'fp16'; it computes in fp32$"):
        backends.load(folder, "lab.engine:fp16")


def test_the_likelihood_is_computed_in_single_precision(folder, lab, tmp_path):
    lab.PRECISIONS = ("fp32", "fp16")
    likely = tiny_policy.write_policy(tmp_path / "likely", likelihood=True)
    assert backends.load_likelihood(likely, "lab.engine:fp16").name == "onnxruntime"


def shipped(name):
    return (share_dir() / "models" / name / "policy.onnx").read_bytes()


def chain(weights, gate_weights=None):
    """Return a graph of matrix products in a row from "x" to "means", and from the last but one to "log_gate"."""
    nodes, tensors, given = [], [], "x"
    for k, weight in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [given, f"w{k}"], [f"y{k}"], name=f"product{k}"))
        given = f"y{k}"
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{k}"))
    nodes.append(helper.make_node("Tanh", [given], ["means"]))
    outputs = [helper.make_tensor_value_info("means", TensorProto.FLOAT, (1, weights[-1].shape[1]))]
    if gate_weights is not None:
        tensors.append(numpy_helper.from_array(gate_weights.astype(np.float32), "wg"))
        nodes.append(helper.make_node("MatMul", [f"y{len(weights) - 2}", "wg"], ["logits"], name="gate"))
        nodes.append(helper.make_node("LogSoftmax", ["logits"], ["log_gate"]))
        outputs.append(helper.make_tensor_value_info("log_gate", TensorProto.FLOAT, (1, gate_weights.shape[1])))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, weights[0].shape[0]))]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def types_of(graph):
    """Return {tensor: element type} of a graph, and its nodes by their result."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    return types, {name: node for node in model.graph.node for name in node.output}


@pytest.fixture
def net():
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=shape) / 4 for shape in ((8, 16), (16, 16), (16, 4))]
    return chain(weights, rng.normal(size=(16, 3)))


def test_single_precision_leaves_the_graph_as_it_is(net):
    assert _precision.lowered(net, "fp32") == net == _precision.rounded(net, "fp32")


def test_an_unknown_precision_is_refused(net):
    with pytest.raises(EngineError, match="no precision 'fp8'; available: bf16, fp16, fp32"):
        _precision.lowered(net, "fp8")


def test_heads_are_the_last_products_before_an_output(net):
    assert _precision.heads(onnx.load_model_from_string(net)) == {"y2", "logits"}
    assert _precision.products(net) == (4, 2)


@pytest.mark.parametrize("precision", UNIT)
def test_all_products_but_the_heads_are_lowered_and_nothing_else(precision, net):
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    types, nodes = types_of(_precision.lowered(net, precision))
    for name, node in nodes.items():
        inside = node.op_type == "MatMul" and node.name in ("product0", "product1")
        expected = low if inside or node.op_type == "Cast" and types[node.input[0]] != low else TensorProto.FLOAT
        assert types[name] == expected, name
        assert not inside or {types[i] for i in node.input} == {low}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", UNIT)
def test_in_shipped_policies_only_casts_and_products_know_the_precision(name, precision):
    """So inputs and outputs, image scaling, norms, softmax and the sampler's arithmetic are in fp32."""
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    types, nodes = types_of(_precision.lowered(shipped(name), precision))
    touching = {n.op_type for n in nodes.values() if any(types.get(t) == low for t in (*n.input, *n.output))}
    assert touching - {"Cast"} <= set(_precision.PRODUCTS) and len(touching) > 1


@pytest.mark.parametrize("name", [m for m in MODELS if m.endswith("vdd")])
def test_the_gates_logits_stay_in_single_precision(name):
    types, nodes = types_of(_precision.lowered(shipped(name), "fp16"))
    assert nodes["log_gate"].op_type == "LogSoftmax"
    logits = nodes[nodes["log_gate"].input[0]]
    assert logits.op_type == "Gemm" and {types[i] for i in (*logits.input, *logits.output)} == {TensorProto.FLOAT}


def test_half_precision_is_what_numpy_computes_in_it(net):
    """Independently: float16 operands, the sum in single precision, the result rounded."""
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(net).graph.initializer}
    x = np.random.default_rng(5).normal(size=(1, 8)).astype(np.float32)

    def half(values):
        return values.astype(np.float16).astype(np.float32)

    y = x
    for name in ("w0", "w1"):
        y = half(half(y) @ half(weights[name]))
    expected = {"means": np.tanh(y @ weights["w2"]), "logits": y @ weights["wg"]}
    means, log_gate = session(_precision.rounded(net, "fp16")).run(["means", "log_gate"], {"x": x})
    np.testing.assert_allclose(means, expected["means"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(log_gate, expected["logits"] - np.log(np.exp(expected["logits"]).sum()), rtol=0, atol=1e-5)


def test_what_is_emulated_is_what_the_lowered_graph_computes(net):
    """ONNX's own reference runs the lowered graph in real half precision."""
    x = np.random.default_rng(6).normal(size=(1, 8)).astype(np.float32)
    real = ReferenceEvaluator(_precision.lowered(net, "fp16")).run(None, {"x": x})
    emulated = session(_precision.rounded(net, "fp16")).run(None, {"x": x})
    for a, b in zip(real, emulated):
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * UNIT["fp16"])


@pytest.mark.parametrize("precision", UNIT)
def test_the_error_of_one_product_is_that_of_its_roundings(precision):
    """|y' - y| <= ~3 u sum |x| |w|: operands and result are rounded once each; and it isn't zero."""
    rng = np.random.default_rng(7)
    weight, x = rng.normal(size=(8, 64)), rng.normal(size=(1, 8)).astype(np.float32)
    graph = chain([weight, np.eye(64)])
    exact, low = (session(g).run(None, {"x": x})[0] for g in (graph, _precision.rounded(graph, precision)))
    error = np.abs(np.arctanh(low.astype(np.float64)) - np.arctanh(exact.astype(np.float64)))
    bound = 3.1 * UNIT[precision] * (np.abs(x) @ np.abs(weight))
    near = np.abs(exact) < 0.9  # elsewhere arctanh loses the digits
    assert (error <= bound)[near].all() and error[near].max() > 0.05 * bound.max()


def test_a_weight_beyond_half_precision_is_refused():
    big = np.eye(4) * 1e5
    with pytest.raises(EngineError, match="weight 'w0' holds 1e\\+05, the largest number in fp16 is 65504; take bf16 or fp32"):
        _precision.lowered(chain([big, np.eye(4)]), "fp16")
    _precision.lowered(chain([big, np.eye(4)]), "bf16")


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_halves_the_file(name):
    assert len(_precision.lowered(shipped(name), "fp16")) < 0.7 * len(shipped(name))


@pytest.mark.parametrize("name", [m for m in MODELS if m.startswith("pusht")])
def test_bytes_are_cast_at_the_input_and_the_graph_computes_the_same(name):
    graph = cast_at_inputs(shipped(name))
    model = onnx.load_model_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    types = {i.name: i.type.tensor_type for i in model.graph.input}
    images = {name: [d.dim_value for d in t.shape.dim] for name, t in types.items() if t.elem_type == TensorProto.UINT8}
    assert {n.op_type for n in model.graph.node if images.keys() & set(n.input)} == {"Cast"}
    rng = np.random.default_rng(0)
    ours, theirs = session(graph), session(shipped(name))
    inputs = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in ours.get_inputs() if i.name not in images}
    inputs |= {key: rng.integers(0, 256, shape, dtype=np.uint8) for key, shape in images.items()}
    for a, b in zip(ours.run(None, inputs), theirs.run(None, inputs)):
        np.testing.assert_array_equal(a, b)


def test_a_graph_without_images_has_no_cast():
    assert b"__float" not in cast_at_inputs(shipped("avoiding_vdd"))


def test_a_graph_that_computes_with_bytes_is_refused():
    nodes = [helper.make_node("Max", ["picture", "picture"], ["brightest"], name="brightest_of")]
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, (1, 4)) for name in ("picture", "brightest")]
    model = helper.make_model(helper.make_graph(nodes, "bytes", values[:1], values[1:]))
    with pytest.raises(EngineError, match=r"node 'brightest_of' \(Max\) .* computes with the bytes of an image \(picture\)"):
        cast_at_inputs(model.SerializeToString())
