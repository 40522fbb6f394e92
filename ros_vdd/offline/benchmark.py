# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd benchmark`: time per chunk of one policy or of several in turn, batch 1, with the hardware named."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
from pathlib import Path

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError
from ros_vdd.resources import find, require_file_place
from ros_vdd.runtime.inference import PolicyRunner

HELP = "measure the time per chunk of policies"
WARM_UP = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policies", nargs="+", metavar="POLICY", help="policy folders or shipped names; several run in turn")
    parser.add_argument("--backend", default="onnxruntime", help="engine: " + ", ".join(backends.names()))
    parser.add_argument("--runs", type=int, default=1000, help="timed runs of each policy (default 1000)")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Time the policies, one run of each after the other, and print a table."""
    if args.runs < 1:
        raise ConfigError(f"'runs' is {args.runs}; expected at least 1")
    if args.json:
        require_file_place(args.json)
    bundles = [Bundle.open(find("models", name)) for name in args.policies]
    runners = [PolicyRunner(b, backends.load(b, args.backend), seed=0) for b in bundles]
    samples = measure(bundles, runners, args.runs, not args.no_progress)
    rows = [describe(b, args.backend, s) for b, s in zip(bundles, samples)]
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(rows if len(rows) > 1 else rows[0], indent=2) + "\n", encoding="utf-8")
    return 0


def measure(bundles: list[Bundle], runners: list[PolicyRunner], runs: int, progress: bool) -> list[np.ndarray]:
    """Return the latencies [ms] of each policy; the policies take turns, so that all see the same machine."""
    from tqdm import tqdm

    rng, latencies = np.random.default_rng(0), [[] for _ in bundles]
    for number in tqdm(range(WARM_UP + runs), disable=not progress, mininterval=1.0):
        for bundle, runner, kept in zip(bundles, runners, latencies):
            inputs = backends.random_inputs(bundle, rng)
            inputs.pop("noise", None)
            prediction = runner.act({name: value[0] for name, value in inputs.items()})
            if number >= WARM_UP:
                kept.append(prediction.latency_ns / 1e6)
    return [np.array(kept) for kept in latencies]


def describe(bundle: Bundle, backend: str, latencies_ms: np.ndarray) -> dict:
    """Return the figures of one policy under their stable keys."""
    return {
        "policy": bundle.manifest.name,
        "policy_folder": bundle.path.name,
        "backend": backend,
        "hardware": hardware(),
        "batch": 1,
        "runs": len(latencies_ms),
        "nfe": bundle.manifest.nfe,
        "latency_ms": {
            "p50": round(float(np.percentile(latencies_ms, 50)), 3),
            "p99": round(float(np.percentile(latencies_ms, 99)), 3),
            "max": round(float(latencies_ms.max()), 3),
        },
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "parameters": bundle.manifest.provenance.get("parameters"),
    }


def hardware() -> str:
    """Return processor, cores and load in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def table(rows: list[dict]) -> str:
    """Return the results as a table for people."""
    lines = [f"{'policy':20} {'NFE':>4} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'parameters':>11}"]
    for row in rows:
        latency = row["latency_ms"]
        lines.append(
            f"{row['policy']:20} {row['nfe']:4d} {latency['p50']:8.2f} {latency['p99']:8.2f} {latency['max']:8.2f} "
            f"{row['parameters'] or 0:11,}"
        )
    first = rows[0]
    lines.append(
        f"{first['backend']}, batch 1, {first['runs']} runs each, {first['hardware']}, peak memory {first['rss_mb']:.0f} MB"
    )
    return "\n".join(lines)
