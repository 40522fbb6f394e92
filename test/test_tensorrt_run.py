# SPDX-License-Identifier: Apache-2.0
"""A built engine at work on a GPU that is played: nothing happens before it is waited for, and the network is ONNX Runtime's."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the tiny graph needs onnx")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

import tiny_policy  # noqa: E402
from ros_vdd import backends  # noqa: E402
from ros_vdd.backends import _cache, _cuda, _trt_build, _trt_library, _trt_run, tensorrt  # noqa: E402
from ros_vdd.backends.onnxruntime import session  # noqa: E402
from ros_vdd.bundle import GRAPH, Bundle  # noqa: E402
from ros_vdd.errors import EngineError  # noqa: E402
from ros_vdd.resources import share_dir  # noqa: E402

FOLDERS = sorted(p.parent for p in (share_dir() / "models").glob("*/policy.onnx"))
ADA = _cuda.Gpu("NVIDIA RTX 4090", "sm89", "CUDA 13.0, 580.95")


@pytest.fixture
def tiny(tmp_path):
    return tiny_policy.write_policy(tmp_path / "policy")


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


def test_a_closed_engine_is_refused_before_it_touches_its_memory(tiny):
    engine, _ = played(tiny)
    inputs = backends.random_inputs(tiny, np.random.default_rng(0))
    engine.close()
    with pytest.raises(EngineError, match="engine 'tensorrt' is closed"):
        engine.run(inputs)
    assert not engine._inputs and not engine._outputs


def test_an_engine_of_another_policy_is_refused(tiny):
    tensors = described(tiny)
    tensorrt.require_inputs(tiny, tensors)
    state = next(t for t in tensors if t.name == "state")
    tensors[tensors.index(state)] = _trt_run.Tensor("state", (1, 2, 9), state.dtype, True)
    with pytest.raises(EngineError, match=r"the engine takes .*state float32 \(1, 2, 9\); .* gives .*state float32 \(1, 2, 2\)"):
        tensorrt.require_inputs(tiny, tensors)


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
    monkeypatch.setattr(tensorrt, "gpu", lambda: ADA)
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
    listing = "Layers:\nName: a, LayerType: gemm\nName: b, LayerType: kgen\nName: c, LayerType: gemm"
    said.log(trt.ILogger.Severity.VERBOSE, listing)
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


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_what_a_context_computes_with_outlives_it(name, monkeypatch, tmp_path, tiny):
    trt, gone = play(monkeypatch, tmp_path, tiny, name=name), []

    def watched(what, make):
        def made(*given):
            found = make(*given)
            weakref.finalize(found, gone.append, what)
            return found

        return made

    trt.engine, trt.Runtime = watched("engine", trt.engine), watched("runtime", trt.Runtime)
    running = tensorrt.open_built(tiny, b"engine")
    weakref.finalize(running._context, gone.append, "context")
    expected = {"context", "engine", "runtime"}
    if name == "tensorrt_rtx":
        weakref.finalize(trt.jit, gone.append, "kernels")
        expected.add("kernels")
    del trt.jit
    trt.calls.clear()
    gc.collect()
    assert not gone
    running.close()
    gc.collect()
    assert gone[0] == "context" and set(gone) == expected


def test_tensorrt_tells_why_a_network_did_not_run(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, tiny)
    engine, said = tensorrt.open_built(tiny, b"engine"), _trt_library._loggers["tensorrt"]
    engine._context.runs = False
    engine._launch = engine._enqueue
    said.log(trt.ILogger.Severity.ERROR, "an illegal memory access")
    with pytest.raises(EngineError, match="engine 'tensorrt:fp32' didn't run: an illegal memory access"):
        engine.run(backends.random_inputs(tiny, np.random.default_rng(0)))


@pytest.mark.parametrize(("name", "use"), [("Builder", "build"), ("Runtime", "open_built")])
def test_a_library_that_does_not_start_tells_what_it_said(name, use, monkeypatch, tmp_path, tiny):
    """Bindings raise a TypeError, and the library calls it a warning that it found no CUDA."""
    trt = play(monkeypatch, tmp_path, tiny)

    def fails(said):
        for text in ("Unable to determine GPU memory usage", "CUDA initialization failure with error: 35"):
            said.log(trt.ILogger.Severity.WARNING, text)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, name, fails, raising=False)
    arguments = {"build": (tiny, "fp16", None, (), print), "open_built": (tiny, b"engine")}
    with pytest.raises(EngineError, match="11.4.0 can't start: CUDA initialization failure with error: 35; does the driver"):
        getattr(tensorrt, use)(*arguments[use])
    assert trt.device.closed == (use == "open_built")


def test_kernels_that_can_not_be_written_down_cost_the_next_start_alone(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, tiny, name="tensorrt_rtx")
    trt.kept = None
    tensorrt.open_built(tiny, b"engine").run(backends.random_inputs(tiny, np.random.default_rng(0)))
    assert not (tmp_path / "cache" / "kernels").exists()


def test_an_engine_that_tensorrt_refuses_gives_the_gpu_back(monkeypatch, tmp_path, tiny):
    trt = play(monkeypatch, tmp_path, tiny)
    trt.refuses = True
    with pytest.raises(EngineError, match="tensorrt 11.4.0 refuses the engine: it gave no reason"):
        tensorrt.open_built(tiny, b"engine")
    assert trt.device.closed
