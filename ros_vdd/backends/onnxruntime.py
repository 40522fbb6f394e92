# SPDX-License-Identifier: Apache-2.0
"""The embedded default engine: ONNX Runtime on the CPU, one thread, no spinning, no torch; fp32, or int8 built ahead."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ros_vdd.backends import energy_shapes, input_shapes, likelihood_shapes
from ros_vdd.bundle import CRITIC, GRAPH, LIKELIHOOD, Bundle
from ros_vdd.errors import EngineError

PRECISIONS = ("fp32", "int8")
CPU = "CPUExecutionProvider"
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""Of execution providers; fp32 means fp32: TF32 has the mantissa of fp16."""
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""What decides which int8 kernels run, and how they round."""


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session."""

    def __init__(self, session, name: str = "onnxruntime"):
        self.name, self._session = name, session
        self._outputs = [o.name for o in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the graph once; see `ros_vdd.backends`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs))))


def load(bundle: Bundle, precision: str = "fp32", threads: int = 1) -> OnnxRuntimeEngine:
    """Open `policy.onnx` of a folder, or what was built of it.

    Args:
        precision: of `PRECISIONS`; int8 must have been built by `ros-vdd compile`.
        threads: threads inside one operator; more than one helps only on idle cores.

    Raises:
        EngineError: the graph can't be loaded, its inputs aren't those of the manifest, or there is none in this precision.
    """
    if precision == "fp32":
        return open_graph(bundle, threads=threads)
    from ros_vdd.backends._cache import EngineCache

    built = EngineCache().find(bundle, f"onnxruntime:{precision}", identity(precision), host())
    return open_built(bundle, built, precision, threads)


def load_likelihood(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """Open `likelihood.onnx` of a folder.

    Raises:
        EngineError: as `load`.
    """
    return open_graph(bundle, LIKELIHOOD, set(likelihood_shapes(bundle)), threads)


def load_energy(bundle: Bundle, threads: int = 1) -> OnnxRuntimeEngine:
    """Open `critic.onnx` of a folder.

    Raises:
        EngineError: as `load`.
    """
    return open_graph(bundle, CRITIC, set(energy_shapes(bundle)), threads)


def open_built(bundle: Bundle, built: bytes, precision: str, threads: int = 1) -> OnnxRuntimeEngine:
    """Start an engine from what `build` returned.

    Raises:
        EngineError: as `opened`.
    """
    origin = f"the {precision} graph of '{bundle.path}'"
    return opened(built, set(input_shapes(bundle)), origin, threads, CPU, f"onnxruntime:{precision}")


def cannot_run(target: str | None = None) -> str | None:
    """Return why a built engine can't run on this machine, or None where it can: always, for it was built here."""
    return None


def host() -> dict[str, str]:
    """Return what parity must have been shown on; the identity holds it already."""
    return {}


def identity(precision: str, target: str | None = None) -> dict[str, str]:
    """Return what a graph in this precision is only valid with.

    Raises:
        EngineError: a target is given; the CPU that it will run on is this one.
    """
    if target:
        raise EngineError(
            f"target '{target}': onnxruntime:{precision} is built and checked on the machine that runs it; leave --target out"
        )
    import onnxruntime

    return {
        "library": "onnxruntime",
        "version": onnxruntime.__version__,
        "instructions": " ".join([platform.machine(), *sorted(_flags().intersection(_INSTRUCTIONS))]),
        "precision": precision,
    }


def build(
    bundle: Bundle,
    precision: str,
    target: str | None = None,
    observations: Sequence[Mapping[str, np.ndarray]] = (),
    say: Callable[[str], None] = print,
) -> bytes:
    """Return the graph of a policy in int8; see `ros_vdd.backends._quantise`.

    Args:
        observations: recorded ones, with which convolutions are calibrated.
        say: told what is done.

    Raises:
        EngineError: nothing of the graph could be int8, it has convolutions and there are no observations, or a target is given.
    """
    from ros_vdd.backends._quantise import quantised

    if precision == "fp32":
        raise EngineError("onnxruntime runs 'policy.onnx' in fp32 as it is; there is nothing to build")
    identity(precision, target)
    path = bundle.file(GRAPH, f"Make it with ros-vdd export {bundle.path}")
    return quantised(path.read_bytes(), observations, say=say)


def session(graph: bytes, threads: int = 1, provider: str = CPU):
    """Return a graph's session as the engine sets it up: without spinning, and on no other device than that of the provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(provider, OPTIONS.get(provider, {}))]
    # Its Python side would catch an error of the provider, and try again on the CPU.
    return onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)


def open_graph(
    bundle: Bundle,
    name: str = GRAPH,
    wanted: set[str] | None = None,
    threads: int = 1,
    provider: str = CPU,
    engine: str = "onnxruntime",
) -> OnnxRuntimeEngine:
    """Open a graph of a folder on a provider.

    Raises:
        EngineError: as `opened`.
    """
    path = bundle.file(name, f"Make it with ros-vdd export {bundle.path}")
    return opened(path.read_bytes(), wanted or set(input_shapes(bundle)), f"'{path}'", threads, provider, engine)


def opened(graph: bytes, wanted: set[str], origin: str, threads: int, provider: str, engine: str) -> OnnxRuntimeEngine:
    """Return the engine of a graph.

    Raises:
        EngineError: ONNX Runtime lacks the provider or falls back to another, can't load the graph, or its inputs aren't
            `wanted`.
    """
    require_provider(provider, engine)
    try:
        made = session(graph, threads, provider)
    except Exception as error:  # ONNX Runtime raises a kind of its own for each failure
        remedy = "export the policy again"
        if provider != CPU:
            remedy = (
                f"either {provider} couldn't start (are driver, CUDA and cuDNN those that this build asks for?) or it lacks an "
                "operator of the graph; ONNX Runtime's own log, above, tells"
            )
        raise EngineError(f"engine '{engine}' can't load {origin}: {error}; {remedy}") from error
    if made.get_providers()[0] != provider:
        raise EngineError(
            f"engine '{engine}': ONNX Runtime couldn't start {provider} and would run on {made.get_providers()[0]}; "
            "are driver, CUDA and cuDNN those that this build asks for? Its own log, above, tells"
        )
    found = {i.name for i in made.get_inputs()}
    if found != wanted:
        raise EngineError(f"{origin} takes inputs {sorted(found)}, its manifest says {sorted(wanted)}; export the policy again")
    return OnnxRuntimeEngine(made, engine)


def require_provider(provider: str, engine: str) -> None:
    """Check that the installed ONNX Runtime was built with an execution provider.

    Raises:
        EngineError: it wasn't; those that it has are listed.
    """
    import onnxruntime

    held = onnxruntime.get_available_providers()
    if provider not in held:
        raise EngineError(
            f"engine '{engine}' needs {provider}; the installed ONNX Runtime {onnxruntime.__version__} has {', '.join(held)}. "
            "Install onnxruntime-gpu in its place, or take another engine"
        )


def _flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
