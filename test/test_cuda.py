# SPDX-License-Identifier: Apache-2.0
"""The calls that reach the GPU: right order, right direction, every byte, everything given back."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from ros_vdd.backends import _cuda, tensorrt
from ros_vdd.errors import EngineError


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


def test_cuda_python_that_raises_without_a_driver_finds_no_gpu(monkeypatch):
    """12.6 does; newer ones return a status."""

    class Raising(PlayedRuntime):
        def cudaGetDeviceCount(self):  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1")

        cudaGetDeviceProperties = cudaDriverGetVersion = cudaGetDeviceCount

    monkeypatch.setattr(_cuda, "_runtime", Raising)
    assert _cuda.gpu() is None and tensorrt.host() == {} and tensorrt.cannot_run() == "no GPU"


@pytest.mark.parametrize(
    ("needed", "driver", "told"),
    [
        (13040, 12060, "no GPU for cuda-python 13: the driver runs CUDA 12; pip install 'cuda-python>=12.6,<13'"),
        (12090, 12060, "no GPU"),
        (12090, 13000, "no GPU"),
        (13040, 0, "no GPU"),
    ],
)
def test_a_driver_that_is_too_old_for_cuda_python_is_named(needed, driver, told, monkeypatch):
    class Old(PlayedRuntime):
        def cudaGetDeviceCount(self):  # noqa: N802
            return 35, None

        def cudaRuntimeGetVersion(self):  # noqa: N802
            return 0, needed

        def cudaDriverGetVersion(self):  # noqa: N802
            return 0, driver

    monkeypatch.setattr(_cuda, "_runtime", Old)
    assert _cuda.gpu() is None and tensorrt.cannot_run() == told


def test_the_gpu_is_told_by_name_capability_and_driver(monkeypatch):
    class Properties:
        name, major, minor = b"NVIDIA RTX 4090\0", 8, 9

    answers = {"cudaGetDeviceCount": 1, "cudaGetDeviceProperties": Properties, "cudaDriverGetVersion": 13000}
    monkeypatch.setattr(_cuda, "_runtime", lambda: None)
    monkeypatch.setattr(_cuda, "_checked", lambda cuda, name, *given: answers[name])
    found = _cuda.gpu()
    assert (found.name, found.capability) == ("NVIDIA RTX 4090", "sm89") and found.driver.startswith("CUDA 13.0")
