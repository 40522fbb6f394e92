# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd export`: the ONNX graph beside the weights, refused when it doesn't compute what PyTorch computes."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import GRAPH, WEIGHTS, Bundle, amend, write
from ros_vdd.errors import EngineError, PolicyError
from ros_vdd.resources import find

HELP = "write the ONNX graph of a policy, with a parity check"
TOLERANCE = 1e-4
"""Largest accepted difference in the unit of the actions, where float32 can resolve it; see `tolerance`."""
DRAWS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policy", help="policy folder")
    parser.add_argument("--steps", type=int, help="diffusion policy: solver steps, instead of the configured ones; needs --out")
    parser.add_argument("--solver", choices=("euler", "heun"), help="diffusion policy: solver; needs --out")
    parser.add_argument("--out", help="write to this folder and leave POLICY as it is")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"random observations of the parity check (default {DRAWS})")


def run(args: argparse.Namespace) -> int:
    """Export, check and write the folder anew."""
    bundle = Bundle.open(find("models", args.policy))
    if args.out:
        bundle = resampled(bundle, Path(args.out), args.steps, args.solver)
    elif args.steps or args.solver:
        raise PolicyError("--steps and --solver change what the policy computes; give --out FOLDER for the result")
    bundle = export(bundle, args.draws)
    said = bundle.manifest.export
    print(f"{bundle.path / GRAPH}: opset {said['opset']}, {(bundle.path / GRAPH).stat().st_size / 1e6:.1f} MB")
    print(
        f"parity with PyTorch over {said['draws']} draws: {said['parity_max_abs']:.2e} {bundle.robot.action.unit} at most, "
        f"{said['parity_max_normalised']:.2e} of the action range"
    )
    return 0


def export(bundle: Bundle, draws: int = DRAWS) -> Bundle:
    """Add `policy.onnx` to a folder and record the measured parity error; the folder changes only when the check passes.

    Raises:
        EngineError: the graph isn't plain, or an action differs from PyTorch's by more than `tolerance`.
    """
    from ros_vdd import policies
    from ros_vdd.policies.graph import OPSET, to_onnx

    policy = policies.load(bundle)
    described = {"opset": OPSET, "draws": draws, **_state_range(policy)}
    graph = to_onnx(policy, backends.random_inputs(bundle, np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder:
        files = {WEIGHTS: bundle.file(WEIGHTS), GRAPH: graph}
        absolute, normalised = parity(write(Path(folder) / "policy", bundle.manifest, files), draws)
    accepted = tolerance(bundle)
    if not absolute <= accepted:
        raise EngineError(
            f"the ONNX graph of '{bundle.path}' differs from PyTorch by {absolute:.2e} {bundle.robot.action.unit}; at most "
            f"{accepted:.2g} is accepted. Nothing was written; report this with the policy's configuration"
        )
    described |= {"parity_max_abs": float(f"{absolute:.3g}"), "parity_max_normalised": float(f"{normalised:.3g}")}
    return amend(bundle, {GRAPH: graph}, export=described)


def resampled(bundle: Bundle, out: Path, steps: int | None, solver: str | None) -> Bundle:
    """Return a copy of a folder whose sampler has other steps or another solver; its scores stay behind.

    Raises:
        PolicyError: the policy has no sampler.
    """
    from ros_vdd import policies

    given = {k: v for k, v in (("steps", steps), ("solver", solver)) if v}
    if given and bundle.kind != "diffusion":
        raise PolicyError(f"'{bundle.path}' is a {bundle.kind} policy, which has no sampler; leave --steps and --solver out")
    network = dict(bundle.manifest.network)
    if given:
        network["sampler"] = {**network["sampler"], **given}
    changed = replace(bundle.manifest, network=network, scores={}, export={})
    copy = write(out, changed, {WEIGHTS: bundle.file(WEIGHTS)})
    return amend(copy, nfe=policies.load(copy).nfe) if given else copy


def tolerance(bundle: Bundle) -> float:
    """Return 1e-4 in the unit of the actions, or four float32 steps of the largest action where those are coarser (512 px)."""
    largest = np.float32(max(map(abs, [*bundle.robot.action.lower, *bundle.robot.action.upper])))
    return max(TOLERANCE, 4 * float(np.spacing(largest)))


def parity(bundle: Bundle, draws: int) -> tuple[float, float]:
    """Return the largest difference of PyTorch and ONNX Runtime over random observations: in action units, and in
    shares of the action range (log-gates count as they are in the latter)."""
    engines = [backends.load(bundle, "eager"), backends.load(bundle, "onnxruntime")]
    span = np.asarray(bundle.robot.action.upper) - np.asarray(bundle.robot.action.lower)
    rng, absolute, normalised = np.random.default_rng(1), 0.0, 0.0
    for _ in range(draws):
        inputs = backends.random_inputs(bundle, rng)
        ours, theirs = (engine.run(inputs) for engine in engines)
        for name in ours:
            difference = np.abs(ours[name].astype(np.float64) - theirs[name])
            if name == "log_gate":
                normalised = max(normalised, float(difference.max()))
            else:
                absolute = max(absolute, float(difference.max()))
                normalised = max(normalised, float((difference / span).max()))
    return absolute, normalised


def _state_range(policy) -> dict[str, list[float]]:
    if policy.state_normalizer is None:
        return {}
    return {f"state_{k}": [round(float(v), 6) for v in getattr(policy.state_normalizer, k)] for k in ("low", "high")}
