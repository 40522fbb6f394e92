# SPDX-License-Identifier: Apache-2.0
"""int8 graphs: what the grid holds passes exactly, the rest by half a step; what decides stays in fp32; refusals are clear."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are rewritten with onnx")
ort = pytest.importorskip("onnxruntime", reason="the engine is ONNX Runtime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import tiny_policy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.backends import _quantise  # noqa: E402
from ros_vdd.backends import onnxruntime as engine  # noqa: E402
from ros_vdd.backends._calibrate import SHARES, Grid, best_grid  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402

SIDE, WIDE = 8, 256


def graph(nodes, inputs, outputs, weights):
    """Return the bytes of a model of nodes with inputs and outputs {name: shape} and weights {name: array}."""

    def floats(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "test", floats(inputs), floats(outputs), values)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def convolving(kernel, offset, last):
    """A convolution, an activation, a last convolution that changes nothing, and a last linear layer `(R, C)` of the mean."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "offset"], ["y"], name="seen"),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Conv", ["z", "unchanged"], ["f"], name="features"),
        helper.make_node("ReduceMean", ["f", "over"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "last"], ["out"], transB=1, name="last"),
    ]
    unchanged = np.eye(len(kernel), dtype=np.float32)[:, :, None, None]
    weights = {"kernel": kernel, "offset": offset, "last": last, "unchanged": unchanged, "over": np.array([2, 3])}
    return graph(nodes, {"x": (1, kernel.shape[1], SIDE, SIDE)}, {"out": (1, len(last))}, weights)


def chain(count, transposed=True, shared=False):
    """`count` wide linear layers and a last one; all with the same weights if `shared`."""
    rng, nodes, weights, name = np.random.default_rng(1), [], {"last": np.eye(WIDE, dtype=np.float32)}, "x"
    for k in range(count):
        matrix, told = f"w{0 if shared else k}", {"transB": 1} if transposed else {}
        weights[matrix] = (rng.standard_normal((WIDE, WIDE)) / np.sqrt(WIDE)).astype(np.float32)
        weights["b"] = rng.standard_normal(WIDE).astype(np.float32)
        nodes.append(helper.make_node("Gemm", [name, matrix, "b"], [f"y{k}"], **told))
        nodes.append(helper.make_node("Tanh", [f"y{k}"], [f"z{k}"]))
        name = f"z{k}"
    nodes.append(helper.make_node("MatMul", [name, "last"], ["out"]))
    return graph(nodes, {"x": (1, WIDE)}, {"out": (1, WIDE)}, weights)


def ran(model, x):
    return engine.session(model).run(None, {"x": x})[0]


def kinds(model):
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


def types(model):
    return {value.name: value.data_type for value in onnx.load_model_from_string(model).graph.initializer}


def test_the_best_grid_has_the_least_squared_error_of_all_that_were_tried():
    values = np.concatenate([np.random.default_rng(0).standard_normal(2000), [40.0]]).astype(np.float32)
    chosen = best_grid(values)

    def error(grid):
        return np.square(grid.rounded(values) - values).mean()

    span, zero = float(values.max() - values.min()), int(np.rint(-values.min() / (values.max() - values.min()) * 255))
    assert all(error(chosen) <= error(Grid(part * span / 255, zero)) * (1 + 1e-6) for part in SHARES)
    assert chosen.scale < span / 255  # the one far value is clipped
    assert chosen.rounded(np.float32([0.0]))[0] == 0.0


def test_a_grid_rounds_by_half_a_step_inside_and_clips_outside():
    grid, values = Grid(0.5, 10), np.linspace(-5, 122.5, 4001)
    assert np.abs(grid.rounded(values) - values).max() <= 0.25 + 1e-6
    assert grid.rounded(np.array([-99.0, 999.0])).tolist() == [-5.0, 122.5]


def test_what_is_always_zero_has_a_grid_as_well():
    assert best_grid(np.zeros(9, np.float32)).rounded(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_a_convolution_of_numbers_on_its_grids_is_exact():
    """Weights of -127 to 127, inputs of 0 to 255 and sums of 0 to 255 are all whole numbers, so nothing is rounded."""
    kernel = np.zeros((2, 2, 1, 1), np.float32)
    kernel[0, 0], kernel[1, 1] = 127 / 127, 1.0
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 2, SIDE, SIDE)).astype(np.float32)
    x[0, :, 0, 0], x[0, :, 0, 1] = 255, 0
    model = convolving(kernel, np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    made = _quantise.quantised(model, [{"x": x}])
    np.testing.assert_allclose(ran(made, x), x.mean(axis=(2, 3)), rtol=1e-6)


def test_a_convolution_is_the_integer_arithmetic_of_its_docstring():
    """Against the same written in float64: rounded inputs, rounded weights, the sum, its offset, the rounded, clipped answer."""
    rng = np.random.default_rng(3)
    kernel, offset = rng.standard_normal((4, 3, 1, 1)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    kernel[3], offset[3] = kernel[3] / 100, 1.0  # a scale of its own for each output: with that of all it would be nearly lost
    model = convolving(kernel, offset, np.eye(4, dtype=np.float32))
    x = rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    made = _quantise.quantised(model, [{"x": x}])
    held = {v.name: numpy_helper.to_array(v) for v in onnx.load_model_from_string(made).graph.initializer}
    seen, gave = (Grid(float(held[f"{n}_scale"]), int(held[f"{n}_zero"])) for n in ("x", "z"))
    scale = np.abs(kernel).max(axis=(1, 2, 3)) / 127
    rounded = np.rint(kernel[:, :, 0, 0] / scale[:, None]) * scale[:, None]
    sums = np.einsum("oc,bchw->bohw", rounded.astype(np.float64), seen.rounded(x).astype(np.float64)) + offset[:, None, None]
    expected = gave.rounded(np.maximum(sums, 0)).mean(axis=(2, 3))
    np.testing.assert_allclose(ran(made, x), expected, atol=gave.scale / 32)  # a sum at the edge of two steps may fall to either


def test_the_last_layer_the_last_convolution_and_what_stands_between_stay_in_fp32():
    rng = np.random.default_rng(0)
    last = rng.standard_normal((2, 4)).astype(np.float32)
    model = convolving(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), np.zeros(4, np.float32), last)
    made = _quantise.quantised(model, [{"x": rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)}], smallest=1)
    assert types(made)["last"] == types(made)["unchanged"] == TensorProto.FLOAT and "kernel" not in types(made)
    assert types(made)["kernel_int8"] == TensorProto.INT8
    assert [k for k in kinds(made) if "Linear" not in k] == ["Conv", "Relu", "Conv", "ReduceMean", "Gemm"]


@pytest.mark.parametrize("transposed", [True, False])
def test_linear_layers_differ_by_their_rounding_alone(transposed):
    model, x = chain(2, transposed), np.random.default_rng(2).standard_normal((1, WIDE)).astype(np.float32)
    made = _quantise.quantised(model, [], smallest=WIDE * WIDE)
    assert kinds(made).count("MatMulNBits") == 2 and kinds(made)[-1] == "MatMul"
    difference = ran(made, x) - ran(model, x)
    assert 0 < np.abs(difference).max() < 0.05  # of answers between -1 and 1
    assert len(made) < 0.6 * len(model)


def test_weights_that_layers_share_are_kept_once():
    alone, thrice = (_quantise.quantised(chain(n, shared=True), [], smallest=1) for n in (1, 3))
    assert len(thrice) - len(alone) < 2000 and kinds(thrice).count("MatMulNBits") == 3


def test_small_linear_layers_are_left_alone_and_a_policy_of_nothing_else_is_refused():
    with pytest.raises(EngineError, match="wouldn't make this policy faster"):
        _quantise.quantised(chain(2), [])


def test_convolutions_without_observations_are_refused():
    model = convolving(np.ones((1, 1, 3, 3), np.float32), np.zeros(1, np.float32), np.ones((1, 1), np.float32))
    with pytest.raises(EngineError, match="--observations STORE"):
        _quantise.quantised(model, [])


@pytest.fixture
def bundle(tmp_path):
    return tiny_policy.write_policy(tmp_path / "tiny")


def test_an_int8_engine_is_taken_from_the_cache_and_only_from_there(bundle, tmp_path, monkeypatch):
    from ros_vdd.backends._cache import EngineCache

    monkeypatch.setenv("ROS_VDD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EngineError, match="ros-vdd compile .* --backend onnxruntime:int8"):
        backends.load(bundle, "onnxruntime:int8")
    built = bundle.file("policy.onnx").read_bytes()
    EngineCache().store(bundle, "onnxruntime:int8", engine.identity("int8"), built, {"engine": "x"})
    loaded = backends.load(bundle, "onnxruntime:int8")
    inputs = backends.random_inputs(bundle, np.random.default_rng(0))
    assert loaded.name == "onnxruntime:int8"
    np.testing.assert_array_equal(loaded.run(inputs)["means"], backends.load(bundle).run(inputs)["means"])


def test_another_version_or_processor_makes_another_identity(monkeypatch):
    mine = engine.identity("int8")
    monkeypatch.setattr(engine, "_flags", lambda: {"avx2"})
    other = engine.identity("int8")
    assert other["instructions"].endswith(" avx2") and mine["version"] == ort.__version__
    with pytest.raises(EngineError, match="target 'sm89'.*leave --target out"):
        engine.identity("int8", "sm89")


@pytest.mark.parametrize(
    ("name", "provider"), [("onnxruntime_cuda", "CUDAExecutionProvider"), ("onnxruntime_tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_the_build_lacks_is_refused_with_those_it_has(bundle, name, provider):
    if provider in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    with pytest.raises(EngineError, match=f"{name}.*needs {provider}.*has .*CPUExecutionProvider"):
        backends.load(bundle, name)


@pytest.mark.parametrize(
    ("provider", "options"), [("CUDAExecutionProvider", {"use_tf32": "0"}), ("TensorrtExecutionProvider", {}), (engine.CPU, {})]
)
def test_a_session_computes_in_fp32_and_never_tries_another_device(provider, options, monkeypatch):
    asked = {}
    monkeypatch.setattr(ort, "InferenceSession", lambda graph, settings, **told: asked.update(told, settings=settings))
    engine.session(b"", 1, provider)
    assert asked["providers"] == [(provider, options)] and asked["enable_fallback"] == 0
    if provider != engine.CPU:
        assert asked["settings"].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_a_provider_that_did_not_start_is_told_apart_from_a_bad_policy(bundle):
    provider = "AzureExecutionProvider"
    if provider not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes no node")
    with pytest.raises(EngineError, match="CPU EP.*either Azure.* couldn't start .*driver, CUDA and cuDNN.*or it lacks an operator"):
        engine.open_graph(bundle, provider=provider, engine="azure")


def test_a_provider_that_gives_way_to_the_cpu_is_noticed(bundle, monkeypatch):
    """ONNX Runtime itself goes on with the CPU when a provider can't start."""
    monkeypatch.setattr(engine, "require_provider", lambda provider, name: None)
    real = engine.session

    def lenient(graph, threads, provider):
        with pytest.warns(UserWarning, match="not in available provider names"):
            return ort.InferenceSession(graph, providers=[provider, engine.CPU])

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has a GPU")
    monkeypatch.setattr(engine, "session", lenient)
    with pytest.raises(EngineError, match="couldn't start CUDAExecutionProvider and would run on CPUExecutionProvider"):
        backends.load(bundle, "onnxruntime_cuda")
    monkeypatch.setattr(engine, "session", real)
    with pytest.raises(EngineError, match="onnxruntime_cuda"), pytest.warns(UserWarning, match="not in available"):
        backends.load(bundle, "onnxruntime_cuda")
