# SPDX-License-Identifier: Apache-2.0
"""A policy folder with another sampler: steps, solver, noise levels or guidance, as far as its training allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ros_vdd.bundle import SAMPLED, WEIGHTS, Bundle, amend, write
from ros_vdd.config import build
from ros_vdd.errors import PolicyError

SAMPLER = ("steps", "solver", "sigma_max", "sigma_min")
"""Options that change the sampler."""


def resampled(
    bundle: Bundle,
    out: Path,
    steps: int | None = None,
    solver: str | None = None,
    guidance: float | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
) -> Bundle:
    """Return a copy of a folder with other steps, solver, levels or guidance; its scores and its calibration stay behind.

    Raises:
        PolicyError: the policy has no sampler, weights for each of its steps, or wasn't trained at the levels asked for.
        ConfigError: it has none of so many steps.
    """
    from ros_vdd import policies

    asked = {"steps": steps, "solver": solver, "sigma_max": sigma_max, "sigma_min": sigma_min}
    given = {k: v for k, v in asked.items() if v is not None}
    if guidance is not None and not bundle.has_critic:
        raise PolicyError(f"'{bundle.path}' is a {bundle.kind} policy without a critic to guide it; leave --guidance out")
    if given and bundle.kind not in SAMPLED:
        raise PolicyError(f"'{bundle.path}' is a {bundle.kind} policy, which has no sampler; leave {typed(*given)} out")
    network = dict(bundle.manifest.network)
    for name in ("sigma_max", "sigma_min"):
        if name in given:
            _require_level(bundle, name, given[name])
    if steps is not None and (bundle.has_critic or network.get("walk") == "posterior"):
        count = network["sampler"]["steps"]
        raise PolicyError(f"'{bundle.path}' was trained for its {count} steps and has weights for each; leave --steps out")
    if given:
        network["sampler"] = {**network["sampler"], **given}
        config = build(policies.KINDS[bundle.kind][1], network)  # refused before anything is written
        if bundle.kind == "few_step":
            _require_trained_levels(bundle, config)
    if guidance is not None:
        network["guidance"] = guidance
        build(policies.KINDS[bundle.kind][1], network)
    changed = replace(bundle.manifest, network=network, scores={}, export={}, calibration={})
    copy = write(out, changed, {WEIGHTS: bundle.file(WEIGHTS)})
    return amend(copy, nfe=policies.load(copy).nfe) if given else copy


def _require_level(bundle: Bundle, name: str, level: float) -> None:
    """Refuse a first or last noise level that isn't the sampler's to choose, or beyond what was trained."""
    network, option = bundle.manifest.network, typed(name)
    if bundle.kind == "few_step":
        raise PolicyError(f"'{bundle.path}' is a student, which was trained for its levels; leave {option} out")
    if network.get("process") == "vp":
        raise PolicyError(f"'{bundle.path}' is a VP policy, which begins at the highest of its own levels up to 'sampler.start'; leave {option} out")
    low, high = network["sampler"]["sigma_min"], network["sampler"]["sigma_max"]
    if not low <= level <= high:
        raise PolicyError(f"{option} is {level:g}; '{bundle.path}' was trained from {low:g} to {high:g}, expected a level between")


def typed(*names: str) -> str:
    """Return names of options as they are typed: --steps, --sigma-max."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _require_trained_levels(bundle: Bundle, config) -> None:
    """Refuse a walk of a few-step student over levels that its training left out."""
    from ros_vdd.policies.few_step import stops

    training, network = bundle.manifest.training, bundle.manifest.network
    method, options = training.get("method"), training.get("options", {})
    if method == "lcm" and options.get("levels") == "solver":
        trained = set(range(0, config.grid, options["skip"]))
    elif config.walk == "euler" or method == "dmd2":
        trained = set(stops(config.grid, network["sampler"]["steps"]))
    else:  # consistency, lcm and ctm train at all levels of the grid
        return
    steps = config.sampler.steps
    if off := sorted(set(stops(config.grid, steps)) - trained):
        able = [n for n in range(1, config.grid + 1) if set(stops(config.grid, n)) <= trained]
        raise PolicyError(
            f"a walk of {steps} steps over the {config.grid} levels of '{bundle.path}' stops at level {off[0]}, at which it wasn't "
            f"trained; it can be exported with --steps {', '.join(map(str, able))}, another number needs another training"
        )
