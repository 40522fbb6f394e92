# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd benchmark`: time per chunk of policies on engines, one run of each in turn, batch 1, with hardware and floor named."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError
from ros_vdd.offline.benchmark_engines import Contender, contender, contenders
from ros_vdd.offline.benchmark_floor import Floor, floor
from ros_vdd.offline.cold_start import ColdStart, cold_start
from ros_vdd.offline.hardware import hardware, machine
from ros_vdd.resources import find, require_file_place

HELP = "measure the time per chunk of policies and engines"
WARM_UP = 50
PICTURES, SAMPLES = (".png", ".svg", ".pdf"), (".npz", ".json")
_ON_GPU = ("tensorrt", "onnxruntime_cuda", "onnxruntime_tensorrt", "eager_cuda", "eager_graph")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policies", nargs="+", metavar="POLICY", help="policy folders or shipped names; several run in turn")
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME[:PRECISION]",
        help=f"engine (default onnxruntime), may be repeated; all: every one that runs here; {', '.join(backends.names())}",
    )
    parser.add_argument("--against", metavar="OTHER", help="one more engine or policy to run in turn and compare with")
    parser.add_argument("--runs", type=int, default=1000, help="timed runs of each (default 1000)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"runs of each before they are timed (default {WARM_UP})")
    parser.add_argument("--cold-starts", type=int, default=3, help="processes started to time a first chunk (default 3; 0: none)")
    parser.add_argument("--threads", type=int, default=1, help="threads of engines on the CPU (default 1); the floor is that of one")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--samples", metavar="FILE", help="write every latency [ms] as .npz or .json")
    parser.add_argument("--plot", metavar="FILE", help="draw the distributions as .png, .svg or .pdf")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Time policies and engines, one run of each after the other, and print a table."""
    _check(args)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what measures the floor; engines are told
    bundles = [Bundle.open(find("models", name)) for name in args.policies]
    names = args.backend or ["onnxruntime"]
    timed, missing = contenders(bundles, names, args.threads)
    if args.against:
        timed.append(_other(args.against, timed[0], args.threads))
    before = machine()
    samples = measure(timed, args.runs, args.warm_up, not args.no_progress)
    rows = [describe(c, s) for c, s in zip(timed, samples)]
    for row, entry in zip(rows, timed):
        row["floor"] = _floor(entry)
        row["cold_start"] = asdict(cold_start(entry.bundle.path, entry.backend, args.cold_starts)) if args.cold_starts else None
        row["machine"], row["load_after"] = before, machine()["load"]
    print(table(rows))
    for label, why in missing.items():
        print(f"not run: {label}: {why}")
    if args.against:
        print(versus(rows[0], rows[-1]))
    labels = labels_of(timed)
    labelled = dict(zip(labels, samples))
    if args.json:
        Path(args.json).write_text(json.dumps(rows if len(rows) > 1 else rows[0], indent=2) + "\n", encoding="utf-8")
    if args.samples:
        write_samples(Path(args.samples), labelled)
    if args.plot:
        from ros_vdd.offline.benchmark_plot import draw

        floors = {label: row["floor"]["floor_ms"] for label, row in zip(labels, rows) if row["floor"]}
        draw(Path(args.plot), labelled, floors, f"{rows[0]['hardware']}, batch 1, {args.runs} chunks each in turn")
    return 0


def measure(timed: Sequence[Contender], runs: int, warm_up: int = WARM_UP, progress: bool = False) -> list[np.ndarray]:
    """Return the latencies [ms] of each; they take turns, so that all see the same machine."""
    from tqdm import tqdm

    latencies = np.empty((len(timed), runs))
    gc.collect()
    for number in tqdm(range(-warm_up, runs), disable=not progress, mininterval=1.0):
        for row, entry in zip(latencies, timed):
            elapsed = entry.timed(number)
            if number >= 0:
                row[number] = elapsed
    return list(latencies)


def labels_of(timed: Sequence[Contender]) -> list[str]:
    """Return "POLICY on ENGINE" of each, numbered from the second on where two are the same."""
    plain = [entry.label for entry in timed]
    return [label if label not in plain[:k] else f"{label} ({plain[:k].count(label) + 1})" for k, label in enumerate(plain)]


def describe(entry: Contender, latencies_ms: np.ndarray) -> dict:
    """Return the figures of one policy on one engine under their stable keys."""
    shares = {"p50": 50, "p99": 99, "p99.9": 99.9}
    latency = {name: round(float(np.percentile(latencies_ms, share)), 4) for name, share in shares.items()}
    return {
        "policy": entry.bundle.manifest.name,
        "policy_folder": entry.bundle.path.name,
        "backend": entry.backend,
        "hardware": hardware(),
        "batch": 1,
        "threads": entry.threads,
        "runs": len(latencies_ms),
        "nfe": entry.bundle.manifest.nfe,
        "latency_ms": {
            "min": round(float(latencies_ms.min()), 4),
            "mean": round(float(latencies_ms.mean()), 4),
            **latency,
            "max": round(float(latencies_ms.max()), 4),
        },
        "load_s": round(entry.load_s, 4),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "parameters": entry.bundle.manifest.provenance.get("parameters"),
    }


def table(rows: Sequence[dict]) -> str:
    """Return the results as a table for people."""
    policies, engines = (max(len(key), *(len(row[key]) for row in rows)) for key in ("policy_folder", "backend"))
    heads = ("NFE", "p50", "p99", "p99.9", "max", "floor ms", "load s", "cold s", "(CPU s)", "MB")
    lines = [f"{'policy':{policies}}  {'engine':{engines}} " + " ".join(f"{head:>9}" for head in heads)]
    for row in rows:
        latency, start, least = row["latency_ms"], row["cold_start"] or {}, row["floor"] or {}
        cells = [f"{row['nfe']}", *(f"{latency[k]:.3f}" for k in ("p50", "p99", "p99.9", "max"))]
        cells += [_cell(least.get("floor_ms"), 3), _cell(row["load_s"], 2)]
        cells += [_cell(start.get("seconds"), 2), _cell(start.get("cpu_s"), 2), _cell(start.get("memory_mb"), 0)]
        lines.append(f"{row['policy_folder']:{policies}}  {row['backend']:{engines}} " + " ".join(f"{cell:>9}" for cell in cells))
    first, made = rows[0], rows[0]["machine"]
    clock = f", {made['clock_mhz']:.0f} MHz" if "clock_mhz" in made else ""
    cards = "".join(f", {g['name']} (driver {g['driver_version']}, {g['clocks.sm']})" for g in made.get("gpus", []))
    several = f", {first['threads']} threads" if first["threads"] > 1 else ""
    lines.append(f"[ms] batch 1{several}, {first['runs']} runs each in turn, {first['hardware']}{clock}{cards}")
    lines.append("cold s: start of a process to its first chunk; MB: its largest resident memory; floor: docs/engines.md")
    return "\n".join(lines)


def versus(row: dict, other: dict) -> str:
    """Return in words how much faster the first is."""
    parts = [f"{name} {other['latency_ms'][name] / row['latency_ms'][name]:.2f}" for name in ("min", "p50", "p99")]
    return (
        f"{row['policy_folder']} on {row['backend']} against {other['policy_folder']} on {other['backend']}: "
        f"{', '.join(parts)} times as fast"
    )


def write_samples(file: Path, samples: dict[str, np.ndarray]) -> None:
    """Write every latency [ms] by label."""
    if file.suffix == ".json":
        plain = {label: [round(float(v), 5) for v in values] for label, values in samples.items()}
        file.write_text(json.dumps(plain) + "\n", encoding="utf-8")
    else:
        np.savez_compressed(file, **{label: values.astype(np.float32) for label, values in samples.items()})


def _check(args: argparse.Namespace) -> None:
    """Refuse what can't end well before anything is loaded."""
    for name, least in (("runs", 1), ("warm_up", 0), ("cold_starts", 0), ("threads", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"'{name.replace('_', '-')}' is {getattr(args, name)}; expected at least {least}")
    for file, endings in ((args.json, ()), (args.samples, SAMPLES), (args.plot, PICTURES)):
        if file:
            require_file_place(file)
            if endings and Path(file).suffix not in endings:
                raise ConfigError(f"'{file}' ends in '{Path(file).suffix}'; expected {' or '.join(endings)}")


def _other(name: str, first: Contender, threads: int) -> Contender:
    """Return what is compared with: the first policy on another engine, or another policy on the first engine."""
    is_engine = name.partition(":")[0] in backends.names()
    bundle, engine = (first.bundle, name) if is_engine else (Bundle.open(find("models", name)), first.backend)
    return contender(bundle, engine, threads)


def _floor(entry: Contender) -> dict | None:
    """Return the floor of a contender, or None where a package is missing that measures it."""
    engine, precision = backends.split(entry.backend)
    try:
        return asdict(floor(entry.bundle, precision or backends.FP32, _device(engine)))
    except ModuleNotFoundError:
        return None


def _device(engine: str) -> str:
    if engine == "eager_compiled":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if engine in _ON_GPU else "cpu"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
