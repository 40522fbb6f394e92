# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd export`: the ONNX graphs beside the weights, refused when they don't compute what PyTorch computes."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import CRITIC, GRAPH, LIKELIHOOD, WEIGHTS, Bundle, amend, write
from ros_vdd.errors import ConfigError, EngineError, PolicyError
from ros_vdd.offline.export_sampler import SAMPLER, resampled, typed
from ros_vdd.offline.export_step import CONDITION, STEP, require_gates, step_graphs, step_parity
from ros_vdd.resources import find

HELP = "write the ONNX graphs of a policy, with a parity check"
TOLERANCE = 1e-4
"""Largest accepted difference in the unit of the actions, for joint ranges up to 100 units; see `tolerance`."""
ROUNDINGS = 3
"""Of a deep network: how many times farther than PyTorch from its own result in float64 the graph may be from PyTorch."""
LIKELIHOOD_TOLERANCE = 1e-2
"""Largest accepted difference of a log-density, as a share of it, or in nats where it is below 1."""
ENERGY_TOLERANCE = 1e-3
"""Largest accepted difference of an energy, as a share of it, or as it is where it is below 1."""
DRAWS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policy", help="policy folder")
    parser.add_argument("--steps", type=int, help="diffusion policy: solver steps, instead of the configured ones; needs --out")
    parser.add_argument("--solver", choices=("euler", "heun"), help="diffusion policy: solver; needs --out")
    parser.add_argument("--sigma-max", type=float, help="diffusion policy (VE): noise level of the first evaluation, instead of the configured one; needs --out")
    parser.add_argument("--sigma-min", type=float, help="diffusion policy (VE): that of the last; needs --out")
    parser.add_argument("--guidance", type=float, help="student with a critic: how far down the energy, 0 off; needs --out")
    parser.add_argument("--out", help="write to this folder and leave POLICY as it is")
    parser.add_argument("--single-step", action="store_true", help="MoDE policy: also the graphs of one step, for any schedule")
    parser.add_argument("--inpaint", action="store_true", help="diffusion policy: the graph also takes actions that are certain, and goes on with them")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"random observations of the parity check (default {DRAWS})")


def run(args: argparse.Namespace) -> int:
    """Export, check and write the folder anew."""
    bundle = Bundle.open(find("models", args.policy))
    backends.require_commands(bundle)
    if args.inpaint:
        require_sampler(bundle)  # told before a copy is written
    if args.out:
        if Path(args.out).resolve() == bundle.path.resolve():
            raise PolicyError(f"'{args.out}' is POLICY itself, which is to stay as it is; choose another --out")
        given = {name: getattr(args, name) for name in SAMPLER}
        bundle = resampled(bundle, Path(args.out), guidance=args.guidance, **given)
    elif any(getattr(args, name) is not None for name in (*SAMPLER, "guidance")):
        raise PolicyError(f"{typed(*SAMPLER)} and --guidance change what the policy computes; give --out FOLDER for the result")
    bundle = export(bundle, args.draws, args.single_step, args.inpaint)
    said = bundle.manifest.export
    print(f"{bundle.path / GRAPH}: opset {said['opset']}, {(bundle.path / GRAPH).stat().st_size / 1e6:.1f} MB")
    print(
        f"parity with PyTorch over {said['draws']} draws: {said['parity_max_abs']:.2e} {bundle.robot.action.unit} at most, "
        f"{said['parity_max_normalised']:.2e} of the action range"
    )
    if bundle.kind == "mixture":
        size = (bundle.path / LIKELIHOOD).stat().st_size / 1e6
        print(f"{bundle.path / LIKELIHOOD}: {size:.1f} MB, parity {said['parity_likelihood']:.2e}")
    if bundle.has_critic:
        size = (bundle.path / CRITIC).stat().st_size / 1e6
        print(f"{bundle.path / CRITIC}: {size:.1f} MB, parity {said['parity_energy']:.2e}")
    if args.single_step:
        print(f"{bundle.path / CONDITION}, {bundle.path / STEP}: parity {said['parity_step']:.2e} of the action range")
    return 0


def export(bundle: Bundle, draws: int = DRAWS, single_step: bool = False, inpaint: bool = False) -> Bundle:
    """Add `policy.onnx` to a folder, of a mixture `likelihood.onnx` and of a critic `critic.onnx`, and record the parity errors.

    Args:
        draws: random observations of the parity check.
        inpaint: the graph takes "prefix" and "prefix_mask" too, see `ros_vdd.backends`.
        single_step: add the two graphs of a MoDE policy that serve any schedule, see `ros_vdd.offline.export_step`.

    The folder changes only when the checks pass.

    Raises:
        EngineError: a graph isn't plain, an action differs from PyTorch's by more than `tolerance` and than three times what PyTorch
            itself rounds away, the log-gate or an action, as a share of its range, by more than 1e-4, a likelihood by more than 1e-2, or an energy by more than 1e-3.
        PolicyError: `single_step` of a policy without noise levels that decide what acts.
    """
    if draws < 1:
        raise ConfigError(f"'draws' is {draws}; a parity check needs at least 1")
    from ros_vdd import policies
    from ros_vdd.policies.graph import OPSET, energy_to_onnx, likelihood_to_onnx, to_onnx

    policy = policies.load(bundle)
    if single_step:
        require_gates(policy, bundle.path)
    described = {"opset": OPSET, "draws": draws, **_state_range(policy)}
    if inpaint:
        require_sampler(bundle)
        described["inpaint"] = True
    bundle = replace(bundle, manifest=replace(bundle.manifest, export=described))
    example = backends.random_inputs(bundle, np.random.default_rng(0))
    graphs, likelihood, energy = {GRAPH: to_onnx(policy, example)}, 0.0, 0.0
    if bundle.kind == "mixture":
        shapes = backends.likelihood_shapes(bundle)
        asked = {name: np.ones(*shapes[name]) for name in ("chunk", "mask")}
        graphs[LIKELIHOOD] = likelihood_to_onnx(policy, {**example, **asked})
    if bundle.has_critic:
        asked = {name: np.ones(*backends.energy_shapes(bundle)[name]) for name in ("chunk", "mask", "noise")}
        graphs[CRITIC] = energy_to_onnx(policy, {**example, **asked})
    stepped = 0.0
    if single_step:
        graphs |= step_graphs(policy, example)
        stepped = step_parity(policy, graphs, bundle, draws)
    with tempfile.TemporaryDirectory() as folder:
        files = {WEIGHTS: bundle.file(WEIGHTS), **graphs}
        copy = write(Path(folder) / "policy", replace(bundle.manifest, export=described), files)
        absolute, normalised = parity(copy, draws)
        accepted = tolerance(bundle)
        if absolute > accepted:
            accepted = max(accepted, ROUNDINGS * rounding(copy, draws))
        if bundle.kind == "mixture":
            likelihood = likelihood_parity(copy, draws)
        if bundle.has_critic:
            energy = energy_parity(copy, draws)
    if not (absolute <= accepted and normalised <= TOLERANCE):
        raise EngineError(
            f"the ONNX graph of '{bundle.path}' differs from PyTorch by {absolute:.2e} {bundle.robot.action.unit} and "
            f"{normalised:.2e} of the action range or of a log-gate; at most {accepted:.2g} and {TOLERANCE:.2g} are accepted. "
            "No graph was written; report this with the policy's configuration"
        )
    if not likelihood <= LIKELIHOOD_TOLERANCE:
        raise EngineError(
            f"the likelihood graph of '{bundle.path}' differs from PyTorch by {likelihood:.2e}; at most "
            f"{LIKELIHOOD_TOLERANCE:.2g} is accepted. No graph was written; report this with the policy's configuration"
        )
    if not energy <= ENERGY_TOLERANCE:
        raise EngineError(
            f"the critic's graph of '{bundle.path}' differs from PyTorch by {energy:.2e}; at most {ENERGY_TOLERANCE:.2g} is "
            "accepted. No graph was written; report this with the policy's configuration"
        )
    if not stepped <= TOLERANCE:
        raise EngineError(
            f"the single step of '{bundle.path}' differs from PyTorch by {stepped:.2e} of the action range; at most "
            f"{TOLERANCE:.2g} is accepted. No graph was written; report this with the policy's configuration"
        )
    described |= {"parity_max_abs": float(f"{absolute:.3g}"), "parity_max_normalised": float(f"{normalised:.3g}")}
    described |= {"parity_likelihood": float(f"{likelihood:.3g}")} if bundle.kind == "mixture" else {}
    described |= {"parity_energy": float(f"{energy:.3g}")} if bundle.has_critic else {}
    described |= {"parity_step": float(f"{stepped:.3g}")} if single_step else {}
    return amend(bundle, graphs, export=described)


def require_sampler(bundle: Bundle) -> None:
    """Refuse to inpaint by a policy that denoises no whole chunk.

    Raises:
        PolicyError: it is such a one.
    """
    if bundle.kind not in ("diffusion", "mode", "few_step"):
        continued = "; choice 'committed' goes on with what is certain in closed form" if bundle.kind == "mixture" else ""
        raise PolicyError(f"'{bundle.path}' is a {bundle.kind} policy, which denoises no whole chunk{continued}; leave --inpaint out")


def tolerance(bundle: Bundle) -> float:
    """Return 1e-4 in the unit of the actions, or a millionth of the widest joint range where that is more (PushT: 512 px).

    float32 resolves one part in 8 million and a network adds thousands of terms: below a millionth the order of a sum decides.
    """
    span = max(high - low for low, high in zip(bundle.robot.action.lower, bundle.robot.action.upper))
    return max(TOLERANCE, 1e-6 * span)


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
            difference = np.abs(ours[name].astype(np.float64) - theirs[name])  # np.maximum keeps NaN, max() may not
            if name != "log_gate":
                absolute = np.maximum(absolute, difference.max())
                difference = difference / span
            normalised = np.maximum(normalised, difference.max())
    return float(absolute), float(normalised)


def rounding(bundle: Bundle, draws: int) -> float:
    """Return by how much PyTorch in float32 differs from itself in float64, at most, over the observations of `parity`; in action units.

    0 for policies that compute a part of themselves in float32 whatever their weights are, as MoDE's routers.
    """
    from ros_vdd import policies
    from ros_vdd.backends.eager import EagerEngine

    single, double = EagerEngine(policies.load(bundle)), EagerEngine(policies.load(bundle).double())
    rng, worst = np.random.default_rng(1), 0.0
    for _ in range(draws):
        inputs = backends.random_inputs(bundle, rng)
        try:
            exact = double.run({k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in inputs.items()})
        except RuntimeError:  # two types meet
            return 0.0
        for name, values in single.run(inputs).items():
            if name != "log_gate":
                worst = np.maximum(worst, np.abs(exact[name] - values).max())
    return float(worst)


def likelihood_parity(bundle: Bundle, draws: int) -> float:
    """Return the largest difference of PyTorch and ONNX Runtime over random observations and chunks drawn from the mixture.

    Of means, stds and continued chunks in shares of the action range; of log-densities, responsibilities and entropies in shares of
    themselves, or in nats where they are below 1: what is far from every expert has a log-density of many digits.
    """
    engines = [backends.load_likelihood(bundle, name) for name in ("eager", "onnxruntime")]
    span = np.asarray(bundle.robot.action.upper) - np.asarray(bundle.robot.action.lower)
    rng, worst = np.random.default_rng(2), 0.0
    for _ in range(draws):
        inputs = backends.random_inputs(bundle, rng)
        inputs |= _drawn_chunk(bundle, inputs, engines[0], rng)
        ours, theirs = (engine.run(inputs) for engine in engines)
        for name in ours:
            difference = np.abs(ours[name].astype(np.float64) - theirs[name])
            difference /= span if name in ("means", "stds", "continued") else np.maximum(np.abs(ours[name]), 1.0)
            worst = np.maximum(worst, difference.max())
    return float(worst)


def energy_parity(bundle: Bundle, draws: int) -> float:
    """Return the largest difference of PyTorch and ONNX Runtime over random observations and chunks.

    In shares of an energy, or as it is where that is below 1.
    """
    engines = [backends.load_energy(bundle, name) for name in ("eager", "onnxruntime")]
    action, shapes = bundle.robot.action, backends.energy_shapes(bundle)
    rng, worst = np.random.default_rng(4), 0.0
    for _ in range(draws):
        inputs = backends.random_inputs(bundle, rng)
        length = rng.integers(1, bundle.horizon + 1)
        inputs["chunk"] = rng.uniform(action.lower, action.upper, shapes["chunk"][0]).astype(np.float32)
        inputs["mask"] = (np.arange(bundle.horizon) < length).astype(np.float32)[None]
        inputs["noise"] = rng.standard_normal(shapes["noise"][0], np.float32)
        ours, theirs = (engine.run(inputs) for engine in engines)
        for name in ours:
            difference = np.abs(ours[name].astype(np.float64) - theirs[name])
            worst = np.maximum(worst, (difference / np.maximum(np.abs(ours[name]), 1.0)).max())
    return float(worst)


def _drawn_chunk(bundle: Bundle, observation: dict, engine: backends.Engine, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a chunk near a random expert for an observation, and a mask of a random length."""
    shapes = backends.likelihood_shapes(bundle)
    chunk, mask = (np.ones(*shapes[name]) for name in ("chunk", "mask"))
    said = engine.run({**observation, "chunk": chunk, "mask": mask})
    expert = rng.integers(bundle.experts)
    drawn = said["means"][:, expert] + said["stds"][:, expert] * rng.standard_normal(chunk.shape, np.float32)
    return {"chunk": drawn, "mask": (np.arange(mask.shape[1]) <= rng.integers(mask.shape[1])).astype(np.float32)[None]}


def _state_range(policy) -> dict[str, list[float]]:
    if policy.state_normalizer is None:
        return {}
    return {f"state_{k}": [round(float(v), 6) for v in getattr(policy.state_normalizer, k)] for k in ("low", "high")}
