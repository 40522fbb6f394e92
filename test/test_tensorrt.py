# SPDX-License-Identifier: Apache-2.0
"""TensorRT's real builder compiles every policy without a GPU, and an engine belongs to what it was built for."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are changed by onnx")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

import tiny_policy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.backends import _cache, _cuda, _precision, _trt_build, _trt_library, tensorrt  # noqa: E402
from ros_vdd.bundle import GRAPH, Bundle  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402
from ros_vdd.resources import share_dir  # noqa: E402

try:
    import tensorrt_rtx as rtx
except ImportError:
    rtx = None

builds = pytest.mark.skipif(rtx is None, reason="TensorRT for RTX isn't installed: pip install 'ros_vdd[tensorrt-rtx]'")
FOLDERS = sorted(p.parent for p in (share_dir() / "models").glob("*/policy.onnx"))
TARGETS = ("sm86", "sm89", "sm120")
ADA = _cuda.Gpu("NVIDIA RTX 4090", "sm89", "CUDA 13.0, 580.95")


@pytest.fixture(autouse=True)
def library_in_use(monkeypatch):
    """These tests know TensorRT for RTX; where standard TensorRT is installed too it stands back."""
    if rtx is not None:
        monkeypatch.setattr(_trt_library, "LIBRARIES", {"tensorrt_rtx": (1, 2)})


@pytest.fixture
def tiny(tmp_path):
    return tiny_policy.write_policy(tmp_path / "policy")


def put_gpu(monkeypatch, gpu):
    monkeypatch.setattr(tensorrt, "gpu", lambda: gpu)


# The builder


def require_whole(made):
    """Nothing was left to others, nothing is unexplained, and the engine's kernels are of the types known."""
    assert made.warnings == ()
    assert not [name for name in made.layers if "PLUGIN" in name]
    assert made.kernels and set(made.kernels) <= {"kgen", "gemm", "correlation", "runtime_fusion"}
    assert len(made.engine) > 10_000


@builds
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_shipped_policy_compiles_in_half_precision(folder):
    """For all three targets at once; for one where a sampler is unrolled, which takes longer."""
    unrolled = Bundle.open(folder).noise_shape is not None
    graph = tensorrt.prepared((folder / GRAPH).read_bytes(), "fp16")
    require_whole(_trt_build.compile_graph(graph, TARGETS[1:2] if unrolled else TARGETS))


@builds
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name.endswith("vdd")], ids=lambda p: p.name)
def test_every_shipped_student_compiles_in_the_other_precisions(folder, precision):
    require_whole(_trt_build.compile_graph(tensorrt.prepared((folder / GRAPH).read_bytes(), precision), TARGETS))


@builds
@pytest.mark.parametrize(("kind", "sizes"), [("mode", {"depth": 1, "sampler": {"steps": 2}}), ("few_step", {})])
def test_a_tiny_mode_and_a_tiny_few_step_student_compile_for_all_targets(kind, sizes, tmp_path):
    pytest.importorskip("torch", reason="export needs torch")
    pytest.importorskip("onnxscript", reason="export needs onnxscript")
    import toy
    from ros_vdd.offline.export import export

    bundle = export(toy.policy(tmp_path / "policy", kind, toy.SEEING, **sizes), draws=1)
    require_whole(_trt_build.compile_graph(tensorrt.prepared(bundle.file(GRAPH).read_bytes(), "fp16"), TARGETS))


@builds
def test_images_enter_the_engine_as_bytes():
    graph = tensorrt.prepared((share_dir() / "models" / "pusht_fast_vdd" / GRAPH).read_bytes(), "fp16")
    said = _trt_library.logger(rtx)
    network = rtx.Builder(said).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, said).parse(graph)
    inputs = {network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)}
    outputs = {network.get_output(i).name: network.get_output(i).dtype for i in range(network.num_outputs)}
    assert inputs == {"images.top": rtx.DataType.UINT8, "state": rtx.DataType.FLOAT}
    assert outputs == {"means": rtx.DataType.FLOAT, "log_gate": rtx.DataType.FLOAT}


@builds
def test_a_node_that_the_parser_refuses_is_named_with_the_reason():
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y")]
    node = helper.make_node("Fold", ["x"], ["y"], name="folded", domain="lab")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("lab", 1)]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=imports, ir_version=10)
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* can't read the graph: node 0 'folded' \(Fold\): .*[Pp]lugin"):
        _trt_build.compile_graph(model.SerializeToString(), ["sm89"])


@builds
def test_a_precision_that_a_gpu_lacks_is_told_by_the_builder(tmp_path):
    graph = tensorrt.prepared((share_dir() / "models" / "avoiding_vdd" / GRAPH).read_bytes(), "bf16")
    with pytest.raises(EngineError, match="built no engine for sm75: .*sm75.*datatypes"):
        _trt_build.compile_graph(graph, ["sm75"])


@builds
@pytest.mark.parametrize("target", ["sm90", "none", "current", "89", ""])
def test_an_unknown_target_is_refused_with_those_there_are(target, monkeypatch):
    put_gpu(monkeypatch, None)
    with pytest.raises(EngineError, match=f"doesn't compile for '{target}'; available: .*sm120.*sm89"):
        tensorrt.identity("fp16", target)


def test_a_warning_that_nobody_explained_is_told(tiny, monkeypatch):
    made = _trt_build.Built(b"engine", {"CAST": 1}, {}, ("weights of 'w' were clipped",), 0.1)
    monkeypatch.setattr(tensorrt, "library", lambda: Library("tensorrt_rtx"))
    monkeypatch.setattr(tensorrt, "known_targets", lambda trt: ["sm89"])
    monkeypatch.setattr(tensorrt, "compile_graph", lambda *given: made)
    put_gpu(monkeypatch, None)
    said = []
    assert tensorrt.build(tiny, "fp16", "sm89", (), said.append) == b"engine"
    assert said[-1] == "warning of tensorrt_rtx: weights of 'w' were clipped"


def test_only_explained_warnings_are_passed_over():
    known = "WARNING The logger passed into createInferBuilder differs from one already registered for an existing builder"
    assert _trt_library.unexplained([known, "clipped"]) == ["clipped"]


# What an engine is valid with


class Library:
    """Names a library that isn't there."""

    __version__ = "11.0.0"

    def __init__(self, name):
        self.__name__ = name


def test_without_tensorrt_the_packages_are_named(monkeypatch, tiny):
    monkeypatch.setattr(_trt_library, "LIBRARIES", {"no_such_tensorrt": (1, 0), "no_such_rtx": (1, 0)})
    with pytest.raises(EngineError, match=r"neither no_such_tensorrt nor no_such_rtx is installed; pip install 'ros_vdd"):
        backends.load(tiny, "tensorrt:fp16")


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_a_tensorrt_that_misses_a_shared_library_says_which(kind, monkeypatch, tmp_path):
    (tmp_path / "half_tensorrt.py").write_text(f"raise {kind}('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_trt_library, "LIBRARIES", {"half_tensorrt": (1, 0), "no_such_rtx": (1, 0)})
    with pytest.raises(EngineError, match=r"half_tensorrt can't be loaded: libnvinfer\.so\.10: cannot open .*pip install"):
        _trt_library.library()


@builds
def test_an_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setattr(_trt_library, "LIBRARIES", {"tensorrt_rtx": (99, 0)})
    with pytest.raises(EngineError, match="tensorrt_rtx 1.* is installed; 99.0 or newer is needed"):
        _trt_library.library()


def test_standard_tensorrt_builds_for_its_own_gpu_only(monkeypatch):
    monkeypatch.setattr(tensorrt, "library", lambda: Library("tensorrt"))
    put_gpu(monkeypatch, ADA)
    with pytest.raises(EngineError, match=r"'sm120' isn't this machine's GPU \(sm89\), and tensorrt builds for that only"):
        tensorrt.identity("fp16", "sm120")
    facts = tensorrt.identity("fp16", None)
    assert facts == tensorrt.identity("fp16", "sm89")
    assert facts.keys() == {"library", "version", "target", "gpu", "driver", "precision", "ros_vdd"}
    assert (facts["library"], facts["gpu"], facts["driver"]) == ("tensorrt", ADA.name, ADA.driver)


def test_what_was_built_ahead_is_what_a_robot_of_that_gpu_asks_for(monkeypatch):
    monkeypatch.setattr(tensorrt, "library", lambda: Library("tensorrt_rtx"))
    monkeypatch.setattr(tensorrt, "known_targets", lambda trt: ["sm86", "sm89"])
    put_gpu(monkeypatch, None)
    ahead = {target: tensorrt.identity("fp16", target) for target in ("sm86", "sm89")}
    put_gpu(monkeypatch, ADA)
    assert tensorrt.identity("fp16", None) == ahead["sm89"] != ahead["sm86"]


def test_without_a_gpu_a_target_must_be_named(monkeypatch, tiny):
    put_gpu(monkeypatch, None)
    monkeypatch.setattr(tensorrt, "library", lambda: Library("tensorrt_rtx"))
    monkeypatch.setattr(tensorrt, "known_targets", lambda trt: ["sm86", "sm89"])
    with pytest.raises(EngineError, match="no GPU was found.*name the robot's GPU with --target: sm86, sm89"):
        tensorrt.build(tiny, "fp16")
    with pytest.raises(EngineError, match="no GPU was found"):
        tensorrt.load(tiny)
    with pytest.raises(EngineError, match="engine tensorrt:fp16 can't run here: no GPU"):
        tensorrt.open_built(tiny, b"engine", "fp16")


def test_an_engine_runs_on_the_gpu_it_was_built_for(monkeypatch):
    put_gpu(monkeypatch, ADA)
    assert tensorrt.cannot_run("sm89") is None and tensorrt.cannot_run(None) is None
    assert tensorrt.cannot_run("sm120") == "built for sm120, this GPU is sm89"


def test_an_unproven_engine_is_not_loaded(monkeypatch, tiny, tmp_path):
    monkeypatch.setenv(_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt, "library", lambda: Library("tensorrt_rtx"))
    monkeypatch.setattr(tensorrt, "known_targets", lambda trt: ["sm89"])
    put_gpu(monkeypatch, ADA)
    monkeypatch.setattr(tensorrt, "open_built", lambda bundle, built, precision: (built, precision))
    cache, facts = _cache.EngineCache(), tensorrt.identity("fp16")
    with pytest.raises(EngineError, match="no tensorrt:fp16 engine of 'tiny'"):
        backends.load(tiny, "tensorrt:fp16")
    cache.store(tiny, "tensorrt:fp16", facts, b"engine", {"not_run": "no GPU"})
    with pytest.raises(EngineError, match="was not shown yet"):
        backends.load(tiny, "tensorrt:fp16")
    cache.store(tiny, "tensorrt:fp16", facts, b"engine", {"drawn": {}, "host": tensorrt.host()})
    assert backends.load(tiny, "tensorrt:fp16") == (b"engine", "fp16")
    put_gpu(monkeypatch, _cuda.Gpu(ADA.name, ADA.capability, "CUDA 13.1, 590.1"))
    with pytest.raises(EngineError, match="shown on another machine: driver was CUDA 13.0, 580.95, is CUDA 13.1, 590.1"):
        backends.load(tiny, "tensorrt:fp16")


@pytest.mark.parametrize("precision", _precision.PRECISIONS[1:])
def test_the_emulation_is_an_engine_of_the_policy(precision):
    bundle = Bundle.open(FOLDERS[1])
    inputs = backends.random_inputs(bundle, np.random.default_rng(0))
    exact, rounded = backends.load(bundle).run(inputs), tensorrt.emulate(bundle, precision).run(inputs)
    assert 0 < np.abs(exact["means"] - rounded["means"]).max() < 1e-2
