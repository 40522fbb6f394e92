# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT is installed, and what it says: `tensorrt` or `tensorrt_rtx`, one API."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from ros_vdd.errors import EngineError

LIBRARIES = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 2)}
"""Accepted libraries with the oldest version of each, the preferred one first."""
EXPLAINED = {
    r"logger passed into .* differs from one already registered": "another part of the process made TensorRT's logger first",
    r"Unable to determine GPU memory usage": "there is no GPU, and none is needed to build ahead",
}
"""Warnings that say nothing about a graph, and why; every other one is shown."""
EXTRAS = "pip install 'ros_vdd[tensorrt]' (data centre; Jetson: JetPack 7 brings it) or 'ros_vdd[tensorrt-rtx]' (GeForce and RTX)"
_loggers: dict[str, object] = {}


def library() -> ModuleType:
    """Return the installed TensorRT, the standard one where both are.

    Raises:
        EngineError: none is installed, or it is too old, or can't be loaded.
    """
    broken = []
    for name, oldest in LIBRARIES.items():
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:  # one of its shared libraries is missing
            broken.append(f"{name} can't be loaded: {error}")
            continue
        if version(found) < oldest:
            told = ".".join(map(str, oldest))
            raise EngineError(f"{title(found)} is installed; {told} or newer is needed. {EXTRAS}")
        return found
    if broken:
        raise EngineError(f"{'; '.join(broken)}. {EXTRAS}")
    raise EngineError(f"neither {' nor '.join(LIBRARIES)} is installed; {EXTRAS}")


def version(trt: ModuleType) -> tuple[int, ...]:
    """Return the version as numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:4])


def title(trt: ModuleType) -> str:
    """Return name and version, as messages tell them."""
    return f"{trt.__name__} {trt.__version__}"


def is_rtx(trt: ModuleType) -> bool:
    """Return whether this is TensorRT for RTX, which compiles for GPUs that aren't there."""
    return trt.__name__ == "tensorrt_rtx"


def logger(trt: ModuleType):
    """Return the one logger of this process; TensorRT keeps the first that it is given.

    `warnings` and `errors` hold what was said since `forget()`, `kernels` the listing of a built engine's layers.
    """
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = _logger_class(trt)()
    _loggers[trt.__name__].forget()
    return _loggers[trt.__name__]


def started(trt: ModuleType, name: str, said):
    """Return a `Builder` or `Runtime`.

    Raises:
        EngineError: it can't start, as a rule because the driver is older than the CUDA that it was made for.
    """
    try:
        return getattr(trt, name)(said)
    except TypeError as error:  # so its bindings tell that nothing came out
        why = f"{reasons(said)}; does the driver run the CUDA that it was made for?"
        raise EngineError(f"{title(trt)} can't start: {why}") from error


def reasons(said) -> str:
    """Return what a logger was told of a failure, which TensorRT calls a warning where it finds no CUDA."""
    return "; ".join((said.errors or unexplained(said.warnings))[:3]) or "it gave no reason"


def unexplained(warnings: list[str]) -> list[str]:
    """Return the warnings that none of `EXPLAINED` covers."""
    return [text for text in warnings if not any(re.search(known, text) for known in EXPLAINED)]


def _logger_class(trt: ModuleType):
    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        """Collects what matters; a build says tens of thousands of lines."""

        def __init__(self):
            super().__init__()
            self.forget()

        def forget(self):
            self.warnings, self.errors, self.kernels = [], [], []

        def log(self, severity, msg):
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))
            elif severity == severities.WARNING:
                self.warnings.append(" ".join(msg.split()))
            elif severity == severities.VERBOSE and msg.startswith("Layers:"):
                self.kernels = re.findall(r"LayerType: (\w+)", msg)

    return Logger
