# SPDX-License-Identifier: Apache-2.0
"""What delay costs: `python benchmarks/latency.py --out runs/benchmark_latency` plays shipped policies with injected delays.

For each rule and delay: score, success, spread over the ways, the jump from plan to plan, and how often a plan is another. Each run is
a `ros-vdd evaluate` that a user could type, printed before it starts; what is finished isn't done again. `ensemble` draws as `sample`
and executes the mean of all plans that reach a tick. `avoiding_teacher` is a policy that denoises.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]

from comparison import command, hardware  # noqa: E402

from ros_vdd.bundle import Bundle  # noqa: E402
from ros_vdd.resources import find  # noqa: E402

MIXTURE = {
    "sample": ("--choice", "sample"),
    "ensemble": ("--choice", "sample", "--ensemble", "0.01"),
    "coherent": ("--choice", "coherent", "--temperature", "0.7"),
    "committed": ("--choice", "committed", "--temperature", "0.7", "--sticky-margin", "3"),
}
OFTEN = {"committed, every 4": (*MIXTURE["committed"], "--replan-steps", "4")}
DENOISER = {
    "drawn anew": (),
    "ensemble": ("--ensemble", "0.01"),
    "inpainted": ("--choice", "committed"),  # of a copy that is exported so
    "coherent, 8 draws": ("--choice", "coherent", "--tolerance", "0.2"),
}


@dataclass(frozen=True)
class Sweep:
    """A policy in an environment: episodes, seed of the first, delays in ticks, and the rules by name."""

    env: str
    policy: str
    episodes: int
    delays: tuple[int, ...]
    rules: Mapping[str, tuple[str, ...]]
    seed: int = 800_000


TASKS = {
    "avoiding": Sweep("avoiding", "avoiding_vdd", 240, (0, 2, 3, 6, 8), MIXTURE),
    "avoiding_teacher": Sweep("avoiding", "avoiding_teacher", 240, (0, 2, 3, 6, 8), DENOISER),
    "pusht": Sweep("pusht", "pusht_fast_vdd", 50, (0, 1, 2, 3, 5), MIXTURE | OFTEN),
}
FIGURES = {
    "score_mean": "score",
    "success_rate": "success",
    "mode_entropy": "mode entropy",
    "seam_jump": "seam jump",
    "switches_per_episode": "other plans an episode",
}


def main() -> int:
    """Play, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="default all")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_latency"))
    args = parser.parse_args()
    for task in args.tasks or TASKS:
        folder = args.out / task
        folder.mkdir(parents=True, exist_ok=True)
        rows = sweep(task, folder)
        (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        text = table(task, rows)
        (folder / "results.md").write_text(text, encoding="utf-8")
        draw(task, rows, folder / "results.png")
        print(text)
    return 0


def sweep(task: str, folder: Path) -> list[dict]:
    """Return a row for each rule and delay."""
    asked = TASKS[task]
    period_ms = Bundle.open(find("models", asked.policy)).robot.dt_ns / 1e6
    rows = []
    for rule, options in asked.rules.items():
        for delay in asked.delays:
            file = folder / f"{rule.replace(', ', '_').replace(' ', '_')}_{delay}.json"
            if not file.exists():
                certain = ("--commit-steps", max(1, delay)) if "committed" in options else ()
                how = ("--episodes", asked.episodes, "--seed", asked.seed, "--delay-steps", delay, *options, *certain)
                policy = inpainting(asked.policy, folder) if rule == "inpainted" else asked.policy
                command("evaluate", policy, "--env", asked.env, *how, "--json", file)
            found = json.loads(file.read_text(encoding="utf-8"))
            rows.append({"rule": rule, "delay_ms": round(delay * period_ms), **{key: found[key] for key in FIGURES}})
    return rows


def inpainting(policy: str, folder: Path) -> Path:
    """Return a copy of a policy whose graph takes what is certain; it is made once."""
    place = folder / "inpainting"
    if not place.exists():
        command("export", policy, "--inpaint", "--out", place)
    return place


def table(task: str, rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    asked = TASKS[task]
    shown = {key: name for key, name in FIGURES.items() if rows[0][key] is not None}
    lines = [f"| rule | delay [ms] | {' | '.join(shown.values())} |", "|" + "---|" * (len(shown) + 2)]
    for row in rows:
        lines.append(f"| {row['rule']} | {row['delay_ms']} | {' | '.join(f'{row[key]:.3f}' for key in shown)} |")
    return "\n".join(lines) + f"\n\n{asked.policy}, {asked.episodes} episodes from seed {asked.seed}; {hardware()}.\n"


def draw(task: str, rows: list[dict], file: Path) -> None:
    """Draw score, seam jump and changes of plan against delay, one line a rule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = ("success_rate" if TASKS[task].env == "avoiding" else "score_mean", "seam_jump", "switches_per_episode")
    panels = tuple(key for key in panels if rows[0][key] is not None)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.6))
    for axis, key in zip(axes, panels):
        for rule in TASKS[task].rules:
            points = [row for row in rows if row["rule"] == rule]
            axis.plot([p["delay_ms"] for p in points], [p[key] for p in points], marker="o", markersize=4, label=rule)
        axis.set(xlabel="delay from observation to action [ms]", ylabel=FIGURES[key])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{TASKS[task].policy} in {TASKS[task].env}, {TASKS[task].episodes} episodes each", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
