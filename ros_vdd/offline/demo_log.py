# SPDX-License-Identifier: Apache-2.0
"""What a demo's observer wrote, as figures: scores, latency, and frames sent, received and lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd.errors import DataError


@dataclass
class DemoLog:
    """Everything one demo said on its topics.

    Attributes:
        results: one per episode, as `sim_bridge_node/result` has them.
        chunks: action chunks by stamp [ns], each (H, A).
        predictions: what policy_node says of each chunk, by stamp [ns].
        diagnostics: the last values of each diagnostic task, by its name.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    chunks: dict[int, np.ndarray] = field(default_factory=dict)
    predictions: dict[int, dict[str, Any]] = field(default_factory=dict)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """Take one line of the observer's file."""
        content = json.loads(line)
        kind = content.pop("kind")
        if kind == "result":
            self.results.append(content)
        elif kind == "chunk":
            self.chunks[content["stamp_ns"]] = np.array(content["actions"])
        elif kind == "prediction":
            self.predictions[content["stamp_ns"]] = content
        elif kind == "diagnostics":
            self.diagnostics[content["name"]] = content["values"]

    def chunk_at(self, stamp_ns: int) -> int | None:
        """Return the stamp of the newest chunk made from that observation or an earlier one."""
        return max((s for s in self.chunks if s <= stamp_ns), default=None)


def read(path: Path) -> DemoLog:
    """Read a whole file."""
    log = DemoLog()
    for line in path.read_text(encoding="utf-8").splitlines():
        log.add(line)
    return log


def summarise(log: DemoLog, camera: str, latency_key: str) -> dict[str, Any]:
    """Return the figures under their stable keys.

    Args:
        log: a finished demo.
        camera: name of the camera whose frames are counted.
        latency_key: "latency_ms" is camera stamp to chunk published; "compute_ms" leaves the way to the node out.

    Raises:
        DataError: the log has no diagnostics of policy_node, or no predictions.
    """
    told = [values for name, values in log.diagnostics.items() if name.rpartition("/")[2] == "policy_node: policy"]
    policy = told[0] if told else None
    if policy is None or not log.predictions:
        raise DataError("policy_node published no diagnostics or no predictions; its log says what it waited for")
    scores = [result["score"] for result in log.results]
    sent = sum(result["frames_sent"] for result in log.results)
    received = int(policy[f"images.{camera}.received"])
    keys = ("seed", "score", "success", "steps", "frames_sent", "held_steps")
    return {
        "episodes": len(log.results),
        "success_rate": float(np.mean([result["success"] for result in log.results])),
        "score_mean": float(np.mean(scores)),
        "score_std": float(np.std(scores)),
        "per_episode": [{key: result[key] for key in keys} for result in log.results],
        "frames": {"sent": sent, "received": received, "lost": sent - received},
        latency_key: _percentiles([p[latency_key] for p in log.predictions.values()]),
        "chunks": len(log.chunks),
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    figures = {"p50": p50, "p99": p99, "max": max(values), "mean": np.mean(values)}
    return {name: round(float(value), 3) for name, value in figures.items()} | {"count": len(values)}


def table(summary: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = ["seed      score  success  steps  held"]
    for row in summary["per_episode"]:
        success = "yes" if row["success"] else "no"
        lines.append(f"{row['seed']:<8}  {row['score']:.3f}  {success:<7}  {row['steps']:>5}  {row['held_steps']:>4}")
    lines.append(f"all       {summary['score_mean']:.3f}  {summary['success_rate']:.0%}")
    if latency := summary.get("latency_ms"):
        lines.append(f"\ncamera stamp to chunk published: p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms")
    else:
        lines.append(f"\nobservation received to chunk published: p50 {summary['compute_ms']['p50']:.1f} ms")
    lines.append("frames: {sent} sent, {received} received, {lost} lost".format(**summary["frames"]))
    return "\n".join(lines)
