# SPDX-License-Identifier: Apache-2.0
"""A GPU through `cuda-python`: its name, and one stream with its memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ros_vdd.errors import EngineError

INSTALL = "pip install 'cuda-python>=12.6'"


@dataclass(frozen=True)
class Gpu:
    """The first GPU of a machine."""

    name: str
    capability: str
    """Compute capability, "sm89"."""
    driver: str


def gpu() -> Gpu | None:
    """Return the GPU that an engine would run on, or None without one, without a driver, or without cuda-python."""
    try:
        cuda = _runtime()
        count = _checked(cuda, "cudaGetDeviceCount")
        if not count:
            return None
        properties = _checked(cuda, "cudaGetDeviceProperties", 0)
        driver = _checked(cuda, "cudaDriverGetVersion")
    except EngineError:
        return None
    name = properties.name
    name = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(name.rstrip("\0"), f"sm{properties.major}{properties.minor}", _driver(driver))


def no_gpu() -> str:
    """Return why `gpu` found none, in words."""
    try:
        cuda = _runtime()
        needed, driver = _checked(cuda, "cudaRuntimeGetVersion"), _checked(cuda, "cudaDriverGetVersion")
    except EngineError:
        return "no GPU"
    if not 0 < driver // 1000 < needed // 1000:
        return "no GPU"
    needed, driver = needed // 1000, driver // 1000
    return f"no GPU for cuda-python {needed}: the driver runs CUDA {driver}; pip install 'cuda-python>=12.6,<{driver + 1}'"


class CudaDevice:
    """One stream of the first GPU, and the memory that was allocated through it.

    All calls but `wait` return at once; what they ask for happens in the order of the calls. After `close` it can't be used.
    """

    def __init__(self):
        self._cuda = _runtime()
        self._host, self._device, self._graphs = [], [], []
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    @property
    def stream(self) -> int:
        """Return the handle of the stream."""
        return int(self._stream)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return page-locked memory of the host as an array; only such memory is copied without a wait."""
        size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        address = self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault)
        self._host.append(address)
        memory = (ctypes.c_ubyte * size).from_address(int(address))
        return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU."""
        address = self._call("cudaMalloc", max(size, 1))
        self._device.append(address)
        return int(address)

    def upload(self, address: int, values: np.ndarray) -> None:
        """Ask for a copy from pinned memory to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, self._stream)

    def download(self, values: np.ndarray, address: int) -> None:
        """Ask for a copy from the GPU to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, address, values.nbytes, kind, self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what `enqueue` asks for as one CUDA graph, without doing it, and return what launches it."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may go on using the GPU
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            cuda.cudaStreamEndCapture(self._stream)  # its own error would hide the cause
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            launched = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        self._graphs.append(launched)
        return lambda: self._call("cudaGraphLaunch", launched, self._stream)

    def wait(self) -> None:
        """Wait until everything that was asked for is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back; errors are passed over, since a lost GPU answers every call with one."""
        cuda, stream = self._cuda, self._stream
        if stream is None:
            return
        cuda.cudaStreamSynchronize(stream)
        for free, things in (
            (cuda.cudaGraphExecDestroy, self._graphs),
            (cuda.cudaFree, self._device),
            (cuda.cudaFreeHost, self._host),
            (cuda.cudaStreamDestroy, [stream]),
        ):
            for thing in things:
                free(thing)
        self._stream, self._graphs, self._device, self._host = None, [], [], []

    def _call(self, name: str, *arguments):
        return _checked(self._cuda, name, *arguments)


def _runtime():
    """Return the module of the CUDA runtime API, which moved with cuda-python 12.8."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime
        except ImportError as error:
            raise EngineError(f"the GPU is reached through cuda-python, which isn't installed; {INSTALL}") from error
    return runtime


def _checked(cuda, name: str, *arguments):
    """Call a function of the runtime API and return its value, if it has one."""
    try:
        status, *values = getattr(cuda, name)(*arguments)
    except RuntimeError as error:  # cuda-python 12.6 raises where there is no driver; newer ones return a status
        raise EngineError(f"{name} failed: {error}") from error
    if status != cuda.cudaError_t.cudaSuccess:
        raise EngineError(f"{name} failed: {_words(cuda, status)}")
    return values[0] if values else None


def _words(cuda, status) -> str:
    failed, text = cuda.cudaGetErrorString(status)
    said = text.decode() if isinstance(text, bytes) else str(text)
    return f"{said} (error {int(status)})" if failed == cuda.cudaError_t.cudaSuccess else f"error {int(status)}"


def _driver(version: int) -> str:
    """Return the driver in words: the newest CUDA that it runs, and its own version where the system tells."""
    own = Path("/sys/module/nvidia/version")
    told = f", {own.read_text().strip()}" if own.is_file() else ""
    return f"CUDA {version // 1000}.{version % 1000 // 10}{told}"
