# SPDX-License-Identifier: Apache-2.0
"""The parity gate: how far an engine's actions are from those of ONNX Runtime in fp32, on drawn and on recorded observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle
from ros_vdd.data.episodes import Episode, EpisodeStore
from ros_vdd.errors import ConfigError, DataError, EngineError, suggest

DRAWS = 200
"""Observations of each sort that a gate asks by default."""
Observation = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Limit:
    """What a precision may cost."""

    cosine: float
    share: float
    """Largest difference of an action as a share of its joint's range."""
    changed: float
    """Share of observations for which another expert may be the likeliest."""
    drawn: bool = True
    """Whether drawn observations count as well; the ranges of int8 are those of recorded ones."""


LIMITS = {
    "fp32": Limit(cosine=0.999999, share=1e-4, changed=0.005),
    "fp16": Limit(cosine=0.9999, share=2e-3, changed=0.02),
    "bf16": Limit(cosine=0.9999, share=2e-2, changed=0.03),
    "int8": Limit(cosine=0.999, share=5e-2, changed=0.05, drawn=False),
}


@dataclass(frozen=True)
class Difference:
    """Two engines over the same observations."""

    count: int
    cosine: float
    """`<a, b> / (|a| |b|)` over all observations, the smaller of two: of the actions, measured from the middle of their limits in
    shares of the range, and of the gate, as probabilities."""
    largest: tuple[float, ...]
    """Per joint, in the robot's unit, over all experts and steps."""
    share: tuple[float, ...]
    """The same as a share of the joint's range."""
    mean_share: float
    """Mean over everything."""
    gate: float | None
    """Largest difference of an expert's probability; None without experts."""
    experts_changed: int | None
    """Observations for which another expert was the likeliest."""


@dataclass(frozen=True)
class EngineParity:
    """An engine held against another, fp32 ONNX Runtime as a rule."""

    engine: str
    joints: tuple[str, ...]
    unit: str
    drawn: Difference | None
    """Over observations from `backends.random_inputs`."""
    recorded: Difference | None
    """Over observations of an episode store."""


def compare(
    bundle: Bundle,
    engine: backends.Engine,
    observations: Sequence[Observation] = (),
    draws: int = DRAWS,
    seed: int = 1,
    reference: backends.Engine | None = None,
) -> EngineParity:
    """Ask an engine and fp32 ONNX Runtime the same.

    Args:
        bundle: the policy that both run.
        engine: what is held against the reference.
        observations: recorded ones with batch axis and noise, see `recorded_observations`.
        draws: number of random observations beside them.
        seed: of the random ones; take another than those the engine was calibrated with.
        reference: instead of ONNX Runtime in fp32.

    Raises:
        ConfigError: there is nothing to compare.
    """
    if draws < 0 or not (draws or len(observations)):
        raise ConfigError(f"'draws' is {draws}, with {len(observations)} recorded observations; a comparison needs at least 1")
    reference = reference or backends.load(bundle)
    rng = np.random.default_rng(seed)
    drawn = _difference(bundle, engine, reference, [backends.random_inputs(bundle, rng) for _ in range(draws)])
    recorded = _difference(bundle, engine, reference, observations)
    return EngineParity(engine.name, tuple(bundle.robot.action.joints), bundle.robot.action.unit, drawn, recorded)


def require(parity: EngineParity, precision: str = "fp32", tolerance: float | None = None) -> None:
    """Refuse an engine that differs by more than its precision may.

    Args:
        parity: from `compare`.
        precision: which of `LIMITS` hold.
        tolerance: largest accepted difference as a share of a joint's range, instead of the precision's.

    Raises:
        ConfigError: no limits are known for the precision, or the tolerance has no meaning.
        EngineError: a figure is worse than its limit, or one that must be known is missing; all are told.
    """
    if precision not in LIMITS:
        raise ConfigError(f"no limits for precision '{precision}'; {suggest(precision, LIMITS)}")
    limit = LIMITS[precision]
    share = limit.share if tolerance is None else tolerance
    if not 0 < share < 1:
        raise ConfigError(f"'tolerance' is {tolerance}; expected a share of a joint's range between 0 and 1")
    if not limit.drawn and parity.recorded is None:
        raise EngineError(
            f"engine '{parity.engine}' in {precision} is judged by recorded observations, and there are none; "
            "give an episode store with --observations STORE"
        )
    parts = {"recorded": parity.recorded, "drawn": parity.drawn if limit.drawn else None}
    found = {sort: _problems(part, limit, share, parity) for sort, part in parts.items() if part is not None}
    problems = [f"{sort} observations: {problem}" for sort, told in found.items() for problem in told]
    if problems:
        raise EngineError(
            f"engine '{parity.engine}' in {precision} doesn't compute what ONNX Runtime computes in fp32. {'; '.join(problems)}. "
            "It isn't used; take another precision, or a larger --tolerance if the task bears it"
        )


def describe(parity: EngineParity) -> dict:
    """Return the figures as plain data, rounded, for a manifest or JSON."""

    def rounded(value):
        if isinstance(value, float):
            return float(f"{value:.6g}") if abs(value) < 0.99 else round(value, 8)
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items()}
        return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value

    return rounded(asdict(parity))


def table(parity: EngineParity) -> str:
    """Return the figures for people, one line a joint."""
    parts = [(sort, part) for sort, part in (("recorded", parity.recorded), ("drawn", parity.drawn)) if part is not None]
    width = max(5, *map(len, parity.joints))
    heads = [f"  {'largest, ' + sort + f' [{parity.unit}]':>24}  {'of range':>9}" for sort, _ in parts]
    lines = [f"{'joint':{width}}" + "".join(heads)]
    for k, joint in enumerate(parity.joints):
        lines.append(f"{joint:{width}}" + "".join(f"  {part.largest[k]:24.3g}  {part.share[k]:9.2e}" for _, part in parts))
    for sort, part in parts:
        gate = "" if part.gate is None else f", gate within {part.gate:.2g}, another expert for {part.experts_changed}"
        lines.append(f"{part.count} {sort} observations: cosine {part.cosine:.7f}{gate}")
    return "\n".join(lines)


def recorded_observations(bundle: Bundle, store: str | Path, count: int = DRAWS, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Draw observations from an episode store, as a policy is asked them on the robot.

    Args:
        bundle: the policy; decides how many ticks, and whether noise and past actions are needed.
        store: folder of the episode store, made for the policy's robot.
        count: observations, without repetition; all frames where there are fewer.
        seed: of frames and noise.

    Returns:
        Each observation with batch axis, "noise" and past actions included, ready for `Engine.run`.

    Raises:
        DataError: there is no such store, it is empty, or it was made for another robot.
    """
    if count < 1:
        raise ConfigError(f"'count' is {count}; expected at least 1 observation")
    opened = EpisodeStore(store)
    differences = bundle.robot.difference(opened.robot)
    if differences:
        raise DataError(f"store '{store}' was made for another robot than '{bundle.path}': {'; '.join(differences)}")
    episodes = list(opened)
    if not episodes:
        raise DataError(f"store '{store}' holds no episode; record or convert some")
    ends = np.cumsum([episode.length for episode in episodes])
    rng = np.random.default_rng(seed)
    frames = np.sort(rng.choice(ends[-1], min(count, ends[-1]), replace=False))
    owners = np.searchsorted(ends, frames, side="right")
    return [_observation(bundle, episodes[k], int(f - ends[k] + episodes[k].length), rng) for k, f in zip(owners, frames)]


def _observation(bundle: Bundle, episode: Episode, frame: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return what a policy sees at a frame; before the first frame it is repeated, as in training.

    Of one that inpaints, the recorded actions from that frame on are certain, as many as are drawn.
    """
    ticks, past = frame + np.arange(1 - bundle.n_obs_steps, 1), frame + np.arange(1 - bundle.n_obs_steps, 0)
    inputs, coming = {}, np.minimum(frame + np.arange(bundle.horizon), episode.length - 1)
    for name, (shape, dtype) in backends.input_shapes(bundle).items():
        if name == "noise":
            inputs[name] = rng.standard_normal(shape, np.float32)
        elif name == "prefix":
            inputs[name] = np.array(episode["action"][coming], dtype)[None]
        elif name == "prefix_mask":
            inputs[name] = (np.arange(shape[1]) < rng.integers(shape[1] + 1)).astype(dtype)[None]
        elif name == "past_mask":
            inputs[name] = (past >= 0).astype(np.float32)[None]
        elif name == "past_actions":
            inputs[name] = np.asarray(episode["action"][np.maximum(past, 0)], dtype)[None]
        else:
            chosen = frame if name == "goal" else np.maximum(ticks, 0)
            inputs[name] = np.array(episode[name][chosen], dtype)[None]
    return inputs


def _difference(bundle: Bundle, engine, reference, observations: Sequence[Observation]) -> Difference | None:
    if not len(observations):
        return None
    pairs = [(engine.run(inputs), reference.run(inputs)) for inputs in observations]
    lower, upper = (np.asarray(limit, np.float64) for limit in (bundle.robot.action.lower, bundle.robot.action.upper))
    name = "means" if bundle.kind == "mixture" else "actions"
    ours, theirs = (np.concatenate([pair[k][name] for pair in pairs]).astype(np.float64) for k in (0, 1))
    off = np.abs(ours - theirs)
    span, middle = upper - lower, (upper + lower) / 2
    largest = off.reshape(-1, off.shape[-1]).max(axis=0)
    cosine, gate, changed = _cosine((ours - middle) / span, (theirs - middle) / span), None, None
    if bundle.kind == "mixture":
        gates = [np.exp(np.concatenate([pair[k]["log_gate"] for pair in pairs]).astype(np.float64)) for k in (0, 1)]
        cosine = float(np.minimum(cosine, _cosine(*gates)))
        gate = float(np.abs(gates[0] - gates[1]).max())
        changed = int(np.sum(gates[0].argmax(axis=1) != gates[1].argmax(axis=1)))
    shares = tuple(map(float, largest / span))
    return Difference(len(pairs), cosine, tuple(map(float, largest)), shares, float((off / span).mean()), gate, changed)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / scale) if scale else float(np.array_equal(a, b))


def _problems(part: Difference, limit: Limit, share: float, parity: EngineParity) -> list[str]:
    """Return what is worse than its limit; NaN is."""
    found = [] if part.cosine >= limit.cosine else [f"cosine {part.cosine:.6f}, at least {limit.cosine} is accepted"]
    for joint, largest, of_range in zip(parity.joints, part.largest, part.share):
        if not of_range <= share:
            found.append(
                f"'{joint}' differs by {largest:.3g} {parity.unit}, {of_range:.2e} of its range, at most {share:.2g} is accepted"
            )
    if part.experts_changed is not None and part.experts_changed > limit.changed * part.count:
        found.append(
            f"another expert is the likeliest for {part.experts_changed} of {part.count}, at most {limit.changed:.1%} accepted"
        )
    return found
