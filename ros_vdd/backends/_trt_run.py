# SPDX-License-Identifier: Apache-2.0
"""A built engine at work: memory allocated once, upload, network and download in one CUDA graph, one wait per chunk."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ros_vdd.backends._blob import read_blob, write_blob
from ros_vdd.backends._trt_library import reasons
from ros_vdd.errors import EngineError

WARM_UP = 3
"""Runs before the graph is captured: the first one compiles and allocates."""


class Device(Protocol):
    """What an engine needs of a GPU; `_cuda.CudaDevice` is one. All but `wait` return at once."""

    stream: int

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return page-locked memory of the host."""

    def allocate(self, size: int) -> int:
        """Return the address of memory on the GPU."""

    def upload(self, address: int, values: np.ndarray) -> None:
        """Ask for a copy to the GPU."""

    def download(self, values: np.ndarray, address: int) -> None:
        """Ask for a copy from the GPU."""

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what `enqueue` asks for, and return what does it all at once."""

    def wait(self) -> None:
        """Wait until everything that was asked for is done."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_input: bool


def tensors(trt, engine) -> list[Tensor]:
    """Return the inputs and outputs of a deserialised engine."""
    found = []
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found.append(Tensor(name, tuple(engine.get_tensor_shape(name)), dtype, is_input))
    return found


class Kernels:
    """What TensorRT for RTX compiles of an engine on the GPU itself, kept so that the next start needn't.

    Args:
        folder: of the engine cache.
        built: the engine.
    """

    def __init__(self, folder: Path, built: bytes):
        self._path = folder / "kernels" / f"{hashlib.sha256(built).hexdigest()[:16]}.bin"
        self._known, self._config, self._cache = read_blob(self._path), None, None

    def context(self, engine):
        """Return an execution context that takes kernels from the cache, and puts new ones there."""
        self._config = config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        if self._known and not self._cache.deserialize(self._known):
            self._known = b""  # of another driver, GPU or library: TensorRT for RTX looks at that itself
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def keep(self) -> None:
        """Write what is there now, if it is new; after a warm-up."""
        held = self._cache.serialize()
        now = b"" if held is None else bytes(held)
        if now and now != self._known:
            write_blob(self._path, now)


class TensorRtEngine:
    """An execution context with its memory; one thread at a time may call it, and a second one is refused.

    Args:
        name: `tensorrt` or `tensorrt:fp16`.
        context: TensorRT's execution context.
        described: its inputs and outputs, from `tensors`.
        device: where it runs; closed with the engine.
        said: TensorRT's logger, which knows why something failed.
        owners: what the context computes with and doesn't own, given back after it: cached kernels, engine, runtime.
    """

    def __init__(self, name: str, context, described: list[Tensor], device: Device, said=None, owners: tuple = ()):
        self.name, self._said, self._owners = name, said, owners
        self._context, self._device, self._turn = context, device, threading.Lock()
        self._inputs, self._outputs = {}, {}
        for tensor in described:
            host = device.pinned(tensor.shape, tensor.dtype)
            host[...] = 0
            address = device.allocate(host.nbytes)
            if not context.set_tensor_address(tensor.name, address):
                raise EngineError(f"engine '{name}' refuses memory for '{tensor.name}' {tensor.shape}; build it again")
            (self._inputs if tensor.is_input else self._outputs)[tensor.name] = (host, address)
        for _ in range(WARM_UP):
            self._enqueue()
            device.wait()
        self.captured = self._capturable()
        """Whether a chunk is one launch; otherwise each kernel is launched anew, which is slower."""
        self._launch = device.capture(self._enqueue) if self.captured else self._enqueue
        self._launch()
        device.wait()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the policy once; see `ros_vdd.backends`.

        Raises:
            EngineError: inputs are missing, unknown or of another shape or type, the GPU failed, another thread is inside, or the
                engine is closed.
        """
        if self._device is None:
            raise EngineError(f"engine '{self.name}' is closed; load it again")
        if inputs.keys() != self._inputs.keys():
            raise EngineError(f"engine '{self.name}' was given {sorted(inputs)}; expected {sorted(self._inputs)}")
        if not self._turn.acquire(blocking=False):
            raise EngineError(f"engine '{self.name}' is running in another thread; let one thread call it")
        try:
            for name, (host, _) in self._inputs.items():
                value = inputs[name]
                if value.shape != host.shape or value.dtype != host.dtype:
                    given, expected = (f"{a.dtype} {a.shape}" for a in (value, host))
                    raise EngineError(f"input '{name}' of engine '{self.name}' is {given}; expected {expected}")
                np.copyto(host, value)
            self._launch()
            self._device.wait()
            return {name: host.copy() for name, (host, _) in self._outputs.items()}
        finally:
            self._turn.release()

    def close(self) -> None:
        """Give graph and memory back, then the context, then what it computes with; it may be called again."""
        device, self._device = self._device, None
        if device is not None:
            device.close()
        self._inputs, self._outputs = {}, {}  # they lie in memory that is gone
        self._launch = self._context = None
        self._owners = ()

    def __del__(self):
        if getattr(self, "_device", None) is not None:
            self.close()

    def _enqueue(self) -> None:
        for host, address in self._inputs.values():
            self._device.upload(address, host)
        if not self._context.execute_async_v3(self._device.stream):
            why = "it gave no reason" if self._said is None else reasons(self._said)
            raise EngineError(f"engine '{self.name}' didn't run: {why}")
        for host, address in self._outputs.values():
            self._device.download(host, address)

    def _capturable(self) -> bool:
        asked = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX tells; standard TensorRT always is here
        if asked is None or asked(self._device.stream):
            return True
        told = "engine '%s' can't be captured as a CUDA graph; each kernel is launched anew"
        logging.getLogger(__name__).warning(told, self.name)
        return False
