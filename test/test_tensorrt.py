# SPDX-License-Identifier: Apache-2.0
"""TensorRT: its real builder compiles every policy without a GPU; what runs on one is held by a GPU that is played."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are changed by onnx")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

import tiny_policy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.backends import _cache, _cuda, _precision, _trt_build, _trt_library, _trt_run, tensorrt  # noqa: E402
from ros_vdd.backends.onnxruntime import session  # noqa: E402
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


@builds
def test_an_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setattr(_trt_library, "LIBRARIES", {"tensorrt_rtx": (99, 0)})
    with pytest.raises(EngineError, match="tensorrt_rtx 1.* is installed; strongly typed networks need 99.0 or newer"):
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


# Running, on a GPU that is played


class PlayedDevice:
    """A GPU of dictionaries. What is asked for happens in `wait`, not before; while capturing it goes into a graph instead."""

    stream = 7

    def __init__(self):
        self.memory, self.asked, self.recording, self.calls, self.closed = {}, [], None, [], False

    def pinned(self, shape, dtype):
        return np.full(shape, 77, dtype)

    def allocate(self, size):
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def enqueue(self, what, act):
        self.calls.append(what)
        (self.asked if self.recording is None else self.recording).append(act)

    def upload(self, address, values):
        self.enqueue("upload", lambda: self.memory[address].__setitem__(slice(None), np.frombuffer(values.tobytes(), np.uint8)))

    def download(self, values, address):
        self.enqueue("download", lambda: values.__setitem__(..., self.memory[address].view(values.dtype).reshape(values.shape)))

    def capture(self, enqueue):
        self.calls.append("begin")
        self.recording = graph = []
        enqueue()
        self.recording = None
        self.calls.append("end")
        return lambda: self.enqueue("launch", lambda: [act() for act in graph])

    def wait(self):
        self.calls.append("wait")
        asked, self.asked = self.asked, []
        for act in asked:
            act()

    def close(self):
        self.closed = True


class PlayedContext:
    """An execution context that evaluates the graph by ONNX Runtime on the played GPU's memory."""

    def __init__(self, device, graph, described):
        self.device, self.session, self.described, self.addresses = device, session(graph), described, {}
        self.runs, self.fails = True, False

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream == self.device.stream and self.addresses.keys() == {t.name for t in self.described}
        self.device.enqueue("execute", self.evaluate)
        return self.runs

    def evaluate(self):
        held = {t.name: self.device.memory[self.addresses[t.name]].view(t.dtype).reshape(t.shape) for t in self.described}
        outputs = [t.name for t in self.described if not t.is_input]
        answers = self.session.run(outputs, {t.name: held[t.name] for t in self.described if t.is_input})
        for name, value in zip(outputs, answers):
            held[name][...] = value


def described(bundle):
    found = [_trt_run.Tensor(name, shape, dtype, True) for name, (shape, dtype) in backends.input_shapes(bundle).items()]
    outputs = session(bundle.file(GRAPH).read_bytes()).get_outputs()
    return found + [_trt_run.Tensor(o.name, tuple(o.shape), np.dtype(np.float32), False) for o in outputs]


def played(bundle, device=None, context=PlayedContext):
    device = device or PlayedDevice()
    tensors = described(bundle)
    return _trt_run.TensorRtEngine("tensorrt", context(device, bundle.file(GRAPH).read_bytes(), tensors), tensors, device), device


@pytest.mark.parametrize("folder", FOLDERS[:3] + FOLDERS[4:], ids=lambda p: p.name)
def test_what_goes_through_the_gpu_is_what_onnx_runtime_answers(folder):
    bundle, rng = Bundle.open(folder), np.random.default_rng(0)
    engine, _ = played(bundle)
    for _ in range(3):
        inputs = backends.random_inputs(bundle, rng)
        ours, theirs = engine.run(inputs), backends.load(bundle).run(inputs)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_chunk_is_one_launch_and_one_wait(tiny):
    engine, device = played(tiny)
    assert engine.captured
    inputs = backends.random_inputs(tiny, np.random.default_rng(0))
    before = len(device.memory)
    device.calls.clear()
    engine.run(inputs)
    assert device.calls == ["launch", "wait"] and len(device.memory) == before


def test_copies_and_network_are_captured_in_order_after_a_warm_up(tiny):
    _, device = played(tiny)
    at = device.calls.index("begin")
    count = len(backends.input_shapes(tiny))
    chunk = ["upload"] * count + ["execute"] + ["download"] * 2
    assert device.calls[:at] == _trt_run.WARM_UP * [*chunk, "wait"]
    assert device.calls[at:] == ["begin", *chunk, "end", "launch", "wait"]


def test_an_answer_stays_when_the_next_chunk_comes(tiny):
    engine, _ = played(tiny)
    rng = np.random.default_rng(0)
    first = engine.run(backends.random_inputs(tiny, rng))
    kept = {name: value.copy() for name, value in first.items()}
    second = engine.run(backends.random_inputs(tiny, rng))
    assert not np.array_equal(first["means"], second["means"])
    np.testing.assert_array_equal(first["means"], kept["means"])


def test_what_can_not_be_captured_runs_without_a_graph_and_says_so(tiny, caplog):
    class Restless(PlayedContext):
        def is_stream_capturable(self, stream):
            return False

    engine, device = played(tiny, context=Restless)
    assert not engine.captured and "begin" not in device.calls and "can't be captured as a CUDA graph" in caplog.text
    inputs = backends.random_inputs(tiny, np.random.default_rng(0))
    np.testing.assert_array_equal(engine.run(inputs)["means"], backends.load(tiny).run(inputs)["means"])


def test_a_network_that_does_not_run_is_an_error(tiny):
    class Broken(PlayedContext):
        def execute_async_v3(self, stream):
            return False

    with pytest.raises(EngineError, match="engine 'tensorrt' didn't run"):
        played(tiny, context=Broken)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda given: given.pop("state"), "was given .*'images.top'.*; expected .*'state'"),
        (lambda given: given.update(goal=given["state"]), "was given .*'goal'"),
        (lambda given: given.update(state=given["state"][0]), r"'state' .* is float32 \(2, 2\); expected float32 \(1, 2, 2\)"),
        (lambda given: given.update(state=given["state"].astype(np.float64)), r"is float64 \(1, 2, 2\); expected float32"),
    ],
)
def test_inputs_of_another_name_shape_or_type_are_refused(change, told, tiny):
    engine, _ = played(tiny)
    inputs = backends.random_inputs(tiny, np.random.default_rng(0))
    change(inputs)
    with pytest.raises(EngineError, match=told):
        engine.run(inputs)
    engine.run(backends.random_inputs(tiny, np.random.default_rng(0)))


def test_a_second_thread_is_refused_while_one_is_inside(tiny):
    device = PlayedDevice()
    engine, _ = played(tiny, device)
    inside, leave, wait = threading.Event(), threading.Event(), device.wait
    device.wait = lambda: (inside.set(), leave.wait(10), wait())
    inputs = backends.random_inputs(tiny, np.random.default_rng(0))
    first = threading.Thread(target=engine.run, args=(inputs,))
    first.start()
    try:
        assert inside.wait(10)
        with pytest.raises(EngineError, match="is running in another thread"):
            engine.run(inputs)
    finally:
        leave.set()
        first.join()
    engine.run(inputs)


def test_closing_gives_the_gpu_back_once(tiny):
    engine, device = played(tiny)
    engine.close()
    assert device.closed
    engine.close()
    other, device = played(tiny)
    del other
    assert device.closed


def test_an_engine_of_another_policy_is_refused(tiny):
    tensors = described(tiny)
    tensorrt.require_inputs(tiny, tensors)
    state = next(t for t in tensors if t.name == "state")
    tensors[tensors.index(state)] = _trt_run.Tensor("state", (1, 2, 9), state.dtype, True)
    with pytest.raises(EngineError, match=r"the engine takes .*state float32 \(1, 2, 9\); .* gives .*state float32 \(1, 2, 2\)"):
        tensorrt.require_inputs(tiny, tensors)


# The CUDA calls


class PlayedRuntime:
    """Stands for `cuda.bindings.runtime`: notes every call, gives handles, fails where it is told to."""

    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    class cudaError_t:
        cudaSuccess = 0

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 1, 2

    class cudaStreamCaptureMode:
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, fails=None):
        self.calls, self.fails, self.kept = [], fails, []

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*given):
            self.calls.append((name, *given))
            if name == "cudaGetErrorString":
                return 0, b"out of memory"
            if name == self.fails:
                return (2,)
            if name == "cudaHostAlloc":
                self.kept.append(np.zeros(given[0], np.uint8))
                return 0, self.kept[-1].ctypes.data
            return (0, 1000 + len(self.calls)) if name in GIVING else (0,)

        return call


GIVING = {"cudaStreamCreateWithFlags", "cudaMalloc", "cudaStreamEndCapture", "cudaGraphInstantiate"}


def cuda_device(monkeypatch, fails=None):
    runtime = PlayedRuntime(fails)
    monkeypatch.setattr(_cuda, "_runtime", lambda: runtime)
    return _cuda.CudaDevice(), runtime


def test_copies_go_the_right_way_with_all_their_bytes(monkeypatch):
    device, runtime = cuda_device(monkeypatch)
    host, address = device.pinned((2, 3), np.dtype(np.float32)), device.allocate(24)
    host[...] = np.arange(6).reshape(2, 3)
    assert runtime.kept[0].view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    runtime.calls.clear()
    device.upload(address, host)
    device.download(host, address)
    device.wait()
    stream = device.stream
    assert runtime.calls == [
        ("cudaMemcpyAsync", address, host.ctypes.data, 24, 1, stream),
        ("cudaMemcpyAsync", host.ctypes.data, address, 24, 2, stream),
        ("cudaStreamSynchronize", stream),
    ]


def test_a_capture_is_instantiated_once_and_launched_often(monkeypatch):
    device, runtime = cuda_device(monkeypatch)
    runtime.calls.clear()
    launch = device.capture(lambda: runtime.calls.append("inside"))
    names = [c if isinstance(c, str) else c[0] for c in runtime.calls]
    assert names == ["cudaStreamBeginCapture", "inside", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
    runtime.calls.clear()
    launch()
    launch()
    assert [c[0] for c in runtime.calls] == ["cudaGraphLaunch"] * 2 and runtime.calls[0][2] == device.stream


def test_a_failing_capture_is_ended_and_the_cause_told(monkeypatch):
    device, runtime = cuda_device(monkeypatch)
    with pytest.raises(EngineError, match="the cause"):
        device.capture(lambda: (_ for _ in ()).throw(EngineError("the cause")))
    assert runtime.calls[-1][0] == "cudaStreamEndCapture"


def test_an_error_of_cuda_is_told_in_words(monkeypatch):
    device, _ = cuda_device(monkeypatch, fails="cudaMalloc")
    with pytest.raises(EngineError, match=r"cudaMalloc failed: out of memory \(error 2\)"):
        device.allocate(8)


def test_closing_frees_everything_once_even_when_the_gpu_is_lost(monkeypatch):
    device, runtime = cuda_device(monkeypatch, fails="cudaFree")
    addresses = [device.allocate(8), device.allocate(8)]
    device.pinned((1,), np.dtype(np.uint8))
    device.capture(lambda: None)
    runtime.calls.clear()
    device.close()
    device.close()
    names = [c[0] for c in runtime.calls]
    assert names == ["cudaStreamSynchronize", "cudaGraphExecDestroy", "cudaFree", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"]
    assert [c[1] for c in runtime.calls if c[0] == "cudaFree"] == addresses


def test_every_cuda_function_and_constant_exists_in_cuda_python():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python isn't installed")
    tree = ast.parse(Path(_cuda.__file__).read_text(encoding="utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    named = {text for text in texts if text.startswith("cuda") and text.isalnum()}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("cuda")}
    known = {*dir(runtime), *dir(runtime.cudaMemcpyKind), *dir(runtime.cudaStreamCaptureMode), *dir(runtime.cudaError_t)}
    assert len(named) >= 10 and named | attributes <= known


def test_without_a_driver_there_is_no_gpu():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python isn't installed")
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    assert _cuda.gpu() is None and tensorrt.host() == {} and tensorrt.cannot_run() == "no GPU"


def test_the_gpu_is_told_by_name_capability_and_driver(monkeypatch):
    class Properties:
        name, major, minor = b"NVIDIA RTX 4090\0", 8, 9

    answers = {"cudaGetDeviceCount": 1, "cudaGetDeviceProperties": Properties, "cudaDriverGetVersion": 13000}
    monkeypatch.setattr(_cuda, "_runtime", lambda: None)
    monkeypatch.setattr(_cuda, "_checked", lambda cuda, name, *given: answers[name])
    found = _cuda.gpu()
    assert (found.name, found.capability) == ("NVIDIA RTX 4090", "sm89") and found.driver.startswith("CUDA 13.0")


@pytest.mark.parametrize("precision", _precision.PRECISIONS[1:])
def test_the_emulation_is_an_engine_of_the_policy(precision):
    bundle = Bundle.open(FOLDERS[1])
    inputs = backends.random_inputs(bundle, np.random.default_rng(0))
    exact, rounded = backends.load(bundle).run(inputs), tensorrt.emulate(bundle, precision).run(inputs)
    assert 0 < np.abs(exact["means"] - rounded["means"]).max() < 1e-2


# The library, played: standard TensorRT can't be installed here, and no engine runs


class Enum:
    """Members by name, as TensorRT's enumerations."""

    def __init__(self, *names):
        for number, name in enumerate(names):
            setattr(self, name, number)


class Played:
    """Any TensorRT object: notes what is called, and answers by what it was given."""

    def __init__(self, calls, **answers):
        self.__dict__.update(calls=calls, answers=answers)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.answers and not callable(self.answers[name]):
            return self.answers[name]

        def call(*given, **named):
            self.calls.append((name, *given, *named.values()))
            return self.answers[name](*given) if name in self.answers else None

        return call

    def __setattr__(self, name, value):
        self.calls.append((f"{name} =", value))


class PlayedTensorRt:
    """A library whose builder gives an engine, or doesn't, and whose engine has the tensors of a policy."""

    nptype = staticmethod(lambda dtype: dtype)
    TensorIOMode = Enum("NONE", "INPUT", "OUTPUT")
    NetworkDefinitionCreationFlag = Enum("EXPLICIT_BATCH", "STRONGLY_TYPED")
    BuilderFlag = Enum("FP16", "TF32")
    ProfilingVerbosity = Enum("NONE", "DETAILED")

    class ILogger:
        Severity = Enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    def __init__(self, name="tensorrt", plan=b"engine", layer="CAST", fits=True):
        self.__name__, self.__version__, self.calls, self.kept = name, "11.4.0", [], b"kernels"
        self.layer, self.fits, self.plan, self.bundle, self.device, self.refuses = layer, fits, plan, None, None, False

    def Builder(self, said):  # noqa: N802
        layer = Played([], type=Played([], name=self.layer))
        network = Played(self.calls, num_layers=1, get_layer=lambda i: layer)
        config = Played(
            self.calls,
            create_timing_cache=lambda data: Played([], serialize=lambda: b"measured") if self.fits or not data else None,
            set_timing_cache=lambda cache, *rest: True,
        )
        return Played(
            self.calls,
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            build_serialized_network=lambda network, config: self.plan,
        )

    def OnnxParser(self, network, said):  # noqa: N802
        return Played(self.calls, parse=lambda graph: True)

    def Runtime(self, said):  # noqa: N802
        return Played(self.calls, deserialize_cuda_engine=lambda built: None if self.refuses else self.engine())

    def engine(self):
        found = described(self.bundle)
        by_name = {t.name: t for t in found}
        self.jit = Played(self.calls, deserialize=lambda data: self.fits, serialize=lambda: self.kept)
        config = Played(self.calls, create_runtime_cache=lambda: self.jit)
        return Played(
            self.calls,
            num_io_tensors=len(found),
            get_tensor_name=lambda i: found[i].name,
            get_tensor_dtype=lambda name: by_name[name].dtype,
            get_tensor_shape=lambda name: by_name[name].shape,
            get_tensor_mode=lambda name: self.TensorIOMode.INPUT if by_name[name].is_input else self.TensorIOMode.OUTPUT,
            create_execution_context=lambda *config: PlayedContext(self.device, self.bundle.file(GRAPH).read_bytes(), found),
            create_runtime_config=lambda: config,
        )


def play(monkeypatch, tmp_path, bundle=None, **options):
    """Put a played library, GPU and cache in place."""
    trt = PlayedTensorRt(**options)
    trt.bundle, trt.device = bundle, PlayedDevice()
    for module in (tensorrt, _trt_build):
        monkeypatch.setattr(module, "library", lambda: trt)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda: trt.device)
    monkeypatch.setenv(_cache.VARIABLE, str(tmp_path / "cache"))
    _trt_library._loggers.pop(trt.__name__, None)
    put_gpu(monkeypatch, ADA)
    return trt


@pytest.fixture(autouse=True)
def loggers_of_their_own(monkeypatch):
    monkeypatch.setattr(_trt_library, "_loggers", {})


def test_standard_tensorrt_builds_strongly_typed_without_tf32_and_keeps_its_timings(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path)
    said = []
    assert tensorrt.build(tiny, "fp16", None, (), said.append) == b"engine"
    assert ("create_network", 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) in trt.calls
    assert ("clear_flag", trt.BuilderFlag.TF32) in trt.calls
    assert ("builder_optimization_level =", _trt_build.LEVEL) in trt.calls
    assert ("create_timing_cache", b"") in trt.calls and not [c for c in trt.calls if c[0] == "set_compute_capability"]
    trt.calls.clear()
    tensorrt.build(tiny, "fp16", None, (), said.append)
    assert ("create_timing_cache", b"measured") in trt.calls
    assert said[0].startswith("tensorrt 11.4.0 for sm89: 1 layers, 0 of 0 products in fp16")


def test_timings_that_do_not_fit_are_taken_anew(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, fits=False)
    for _ in range(2):
        trt.calls.clear()
        tensorrt.build(tiny, "fp16", None, (), lambda text: None)
    created = [c[1] for c in trt.calls if c[0] == "create_timing_cache"]
    assert created == [b"measured", b""]


def test_a_build_without_an_engine_tells_what_the_library_said(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, plan=None)
    with pytest.raises(EngineError, match="tensorrt 11.4.0 built no engine for this GPU: it gave no reason"):
        tensorrt.build(tiny, "fp16", None, (), print)
    said = _trt_library.logger(trt)
    monkeypatch.setattr(_trt_build, "logger", lambda trt: said)
    said.log(trt.ILogger.Severity.ERROR, "out of\n memory")
    said.log(trt.ILogger.Severity.WARNING, "slow")
    said.log(trt.ILogger.Severity.VERBOSE, "Layers:\nName: a, LayerType: gemm\nName: b, LayerType: kgen\nName: c, LayerType: gemm")
    assert (said.warnings, said.kernels) == (["slow"], ["gemm", "kgen", "gemm"])
    with pytest.raises(EngineError, match="built no engine for this GPU: out of memory"):
        tensorrt.build(tiny, "fp16", None, (), print)


def test_a_layer_from_outside_tensorrt_is_refused(monkeypatch, tmp_path, tiny):
    play(monkeypatch, tmp_path, layer="PLUGIN_V3")
    with pytest.raises(EngineError, match="needs layers from outside TensorRT: PLUGIN_V3"):
        tensorrt.build(tiny, "fp16", None, (), print)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_is_opened_and_answers(name, monkeypatch, tmp_path, tiny):
    play(monkeypatch, tmp_path, tiny, name=name)
    inputs = backends.random_inputs(tiny, np.random.default_rng(0))
    engine = tensorrt.open_built(tiny, b"engine", "fp16")
    np.testing.assert_array_equal(engine.run(inputs)["means"], backends.load(tiny).run(inputs)["means"])
    assert engine.name == "tensorrt:fp16"


def test_kernels_compiled_on_the_gpu_are_kept_and_taken_again(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, tiny, name="tensorrt_rtx")
    tensorrt.open_built(tiny, b"engine")
    assert not [c for c in trt.calls if c[0] == "deserialize"] and [c for c in trt.calls if c[0] == "set_runtime_cache"]
    trt.calls.clear()
    tensorrt.open_built(tiny, b"engine")
    assert ("deserialize", b"kernels") in trt.calls
    trt.calls.clear()
    tensorrt.open_built(tiny, b"another engine")
    assert not [c for c in trt.calls if c[0] == "deserialize"]


@pytest.mark.parametrize("damage", ["byte", "cut", "mode"])
def test_kept_kernels_that_were_touched_are_not_taken(damage, monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, tiny, name="tensorrt_rtx")
    tensorrt.open_built(tiny, b"engine")
    (path,) = (tmp_path / "cache" / "kernels").iterdir()
    held = path.read_bytes()
    for at in range(len(held)) if damage == "byte" else [0]:
        trt.calls.clear()
        path.write_bytes(held[:at] + bytes([held[at] ^ 4]) + held[at + 1 :] if damage == "byte" else held[:-1])
        if damage == "mode":
            path.write_bytes(held)
            path.chmod(0o666)
        tensorrt.open_built(tiny, b"engine")
        assert not [c for c in trt.calls if c[0] == "deserialize"]
        assert path.read_bytes() == held and path.stat().st_mode & 0o077 == 0


def test_an_engine_that_tensorrt_refuses_gives_the_gpu_back(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, tiny)
    trt.refuses = True
    with pytest.raises(EngineError, match="tensorrt 11.4.0 refuses the engine: it gave no reason"):
        tensorrt.open_built(tiny, b"engine")
    assert trt.device.closed
