# SPDX-License-Identifier: Apache-2.0
"""What the comparisons share: policies trained, exported, scored and timed by commands that a user could type, a table and a picture.

Each command is printed before it starts. What is finished isn't done again, so a comparison can be stopped and started; what was
finished with other settings is refused. Tables hold every training that lies in the folder.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ros_vdd import cli  # noqa: E402
from ros_vdd.bundle import GRAPH, MANIFEST  # noqa: E402
from ros_vdd.config import to_plain  # noqa: E402
from ros_vdd.errors import EngineError, RosVddError, suggest  # noqa: E402
from ros_vdd.offline.benchmark import hardware  # noqa: E402
from ros_vdd.offline.training_run import read_config  # noqa: E402

TEMPERATURES = {"coherent": 0.7}  # the others follow the gate as it is


@dataclass(frozen=True)
class Run:
    """One policy of a comparison.

    `teacher` and `start` name other runs of the same seed; `steps` makes it a teacher's copy with that many sampler steps; no
    more than `seeds` trainings are done.
    """

    name: str
    config: str = ""
    set: tuple[str, ...] = ()
    teacher: str = ""
    start: str = ""
    steps: int = 0
    seeds: int = 99
    choices: tuple[str, ...] = ("argmax",)


@dataclass(frozen=True)
class Task:
    """A comparison: where policies are scored, over how many episodes, and the runs in an order that can be trained."""

    env: str
    episodes: int
    runs: tuple[Run, ...]
    seed: int = 500_000  # nothing was chosen on these


def teachers(source: str, counts: tuple[int, ...]) -> tuple[Run, ...]:
    """Return copies of a teacher with other numbers of sampler steps."""
    return tuple(Run(f"{source}_{n}", teacher=source, steps=n) for n in counts)


def main(tasks: Mapping[str, Task], about: str, others: Mapping[str, Callable[[Path, argparse.Namespace], str]] | None = None) -> int:
    """Run a comparison and write its table and picture.

    Args:
        tasks: by name.
        about: the script in words, for --help.
        others: comparisons of another kind, (folder, arguments) -> the table in Markdown, by name.
    """
    others = others or {}
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["all", *others, *tasks])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each policy")
    parser.add_argument("--first", type=int, default=0, help="seed of the first training (default 0)")
    parser.add_argument("--data", help="episode store (default: the one that the configurations name)")
    parser.add_argument("--teacher", help="a trained teacher for all trainings (default: each seed trains its own)")
    parser.add_argument("--only", nargs="*", help="names of runs; default all")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every training's configuration")
    parser.add_argument("--no-timing", action="store_true", help="leave the times a chunk as they were")
    args = parser.parse_args()
    if args.task in tasks:
        require_named(args.only, [run.name for run in tasks[args.task].runs])
    for name in [*others, *tasks] if args.task == "all" else [args.task]:
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        text = others[name](folder, args) if name in others else compare(tasks[name], folder, args)
        (folder / "results.md").write_text(text, encoding="utf-8")
        print(text)
    return 0


def require_named(only: Sequence[str] | None, names: Sequence[str]) -> None:
    """Refuse names that a comparison hasn't.

    Raises:
        SystemExit: there is one.
    """
    for name in only or ():
        if name not in names:
            raise SystemExit(f"--only '{name}': there is no such run; {suggest(name, names)}")


def compare(task: Task, folder: Path, args: argparse.Namespace) -> str:
    """Do what isn't done yet of a comparison, and return its table."""
    for seed in range(args.first, args.first + args.seeds):
        for run in task.runs:
            if seed < run.seeds and (not args.only or run.name in args.only):
                perform(task, run, seed, folder, args.data, args.set, args.teacher)
    if not args.no_timing:
        time_all(task, folder)
    rows = collect(task, folder)
    if not rows:
        raise SystemExit(f"nothing of {task.env} is finished in {folder}")
    (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw(task, rows, folder / "results.png")
    return table(task, rows)


def perform(
    task: Task, run: Run, seed: int, folder: Path, data: str | None, changes: Sequence[str] = (), given: str | None = None
) -> None:
    """Train, export and score one policy, where that isn't done yet; of the run "teacher" a `given` one takes the place.

    A copy of a teacher whose graph is refused is scored in PyTorch.
    """
    if given and run.name == "teacher":
        return
    teaches = given if given and run.teacher == "teacher" else folder / f"{run.teacher}_{seed}"
    place = folder / f"{run.name}_{seed}"
    scores = {choice: folder / f"{run.name}_{seed}.{choice}.json" for choice in run.choices}
    settings = [f"seed={seed}", f"name={run.name}", *run.set, *changes]
    settings += [f"start={folder / f'{run.start}_{seed}'}"] if run.start else []
    if (place / MANIFEST).exists() and not run.steps:
        require_same(run, settings, teaches if run.teacher else None, place)
    if (place / MANIFEST).exists() and all(file.exists() for file in scores.values()):
        return
    if not (place / GRAPH).exists():
        if run.steps:
            resample(teaches, run.steps, place)
        else:
            arguments = [run.config, *settings, *(["--data", data] if data else [])]
            teacher = ["--teacher", teaches] if run.teacher else []
            command("distill" if teacher else "train", *arguments, *teacher, "--out", place)
            command("export", place)
    for choice, file in scores.items():
        if not file.exists():
            how = ["--choice", choice, "--temperature", TEMPERATURES.get(choice, 1.0)]
            how += [] if (place / GRAPH).exists() else ["--backend", "eager"]
            command("evaluate", place, "--env", task.env, "--episodes", task.episodes, "--seed", task.seed, *how, "--json", file)


def require_same(run: Run, settings: Sequence[str], teacher: Path | str | None, place: Path) -> None:
    """Refuse a finished training that was made by other settings; where data and teacher lie may change, but not the teacher's name.

    Raises:
        SystemExit: it was, or the settings are none.
    """
    try:
        asked = flat(to_plain(read_config(run.config, settings)))
    except RosVddError as error:
        raise SystemExit(f"ros-vdd: {error}") from error
    there = flat(yaml.safe_load((place / MANIFEST).read_text(encoding="utf-8"))["training"])
    if teacher is not None:
        asked["teacher"], there["teacher"] = Path(teacher).name, Path(str(there.get("teacher"))).name
    elsewhere = ("data",) if teacher is not None else ("data", "teacher")
    for key in sorted({*asked, *there} - {*elsewhere, "start"}):
        if asked.get(key) != there.get(key):
            raise SystemExit(
                f"{place} was made with {key} {there.get(key)}, and asked for is {asked.get(key)}; give another --out, or remove what is there"
            )


def flat(section: Mapping, above: str = "") -> dict[str, object]:
    """Return nested settings as one mapping of dotted keys."""
    made: dict[str, object] = {}
    for key, value in section.items():
        made |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return made


def resample(teacher: Path | str, steps: int, place: Path) -> None:
    """Copy a teacher with another number of steps; a graph that is refused is told, and the copy stays without one.

    The parity check refuses PushT's of 1 and 2 steps, which differ from PyTorch by up to 1.9e-3 px.

    Raises:
        SystemExit: there is no such teacher, or it can't take so many steps.
    """
    try:
        cli.run(typed("export", teacher, "--steps", steps, "--out", place))
    except EngineError as error:
        print(f"{place} stays without a graph and is scored in PyTorch: {error}", flush=True)
    except RosVddError as error:
        raise SystemExit(f"ros-vdd: {error}") from error


def command(*arguments) -> None:
    """Run a verb of ros-vdd, printed as a user would type it.

    Raises:
        SystemExit: the verb refused.
    """
    line = typed(*arguments)
    status = cli.main([*line, *([] if line[0] == "export" else ["--no-progress"])])
    if status:
        raise SystemExit(status)


def typed(*arguments) -> list[str]:
    """Return the arguments of ros-vdd as text, and print them as a user would type them."""
    line = [str(a) for a in arguments]
    print("$ ros-vdd " + " ".join(line), flush=True)
    return line


def time_all(task: Task, folder: Path) -> None:
    """Time one training of every policy that has a graph in turn, in one process."""
    firsts = (next(iter(trainings(folder, run)), None) for run in task.runs)
    places = [place for place in firsts if place and (place / GRAPH).exists()]
    if places:
        command("benchmark", *places, "--runs", 1000, "--json", folder / "timing.json")


def trainings(folder: Path, run: Run) -> list[Path]:
    """Return the policy folders of a run, one for each seed that is there."""
    return [place for place in numbered(folder, rf"{re.escape(run.name)}_(\d+)") if (place / MANIFEST).exists()]


def numbered(folder: Path, name: str) -> list[Path]:
    """Return the entries of a folder whose names match an expression, in the order of the number in it."""
    found = ((re.fullmatch(name, place.name), place) for place in folder.iterdir())
    return [place for _, place in sorted((int(match[1]), place) for match, place in found if match)]


def collect(task: Task, folder: Path) -> list[dict]:
    """Return one row for each policy and rule: means and spreads over the trained seeds."""
    timing = {}
    if (folder / "timing.json").exists():
        timed = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
        timing = {t["policy_folder"]: t for t in (timed if isinstance(timed, list) else [timed])}
    rows = []
    for run in task.runs:
        for choice in run.choices:
            files = numbered(folder, rf"{re.escape(run.name)}_(\d+)\.{choice}\.json")
            if files:
                scored = [json.loads(f.read_text(encoding="utf-8")) for f in files]
                places = trainings(folder, run)
                rows.append(row(run, choice, scored, places, next((timing[p.name] for p in places if p.name in timing), None)))
    return rows


def row(run: Run, choice: str, scored: list[dict], places: list[Path], timing: dict | None) -> dict:
    """Return the figures of a policy under a rule."""
    manifests = [yaml.safe_load((place / MANIFEST).read_text(encoding="utf-8")) for place in places]
    manifest, spent = manifests[0], [one["provenance"].get("training_cpu_seconds") for one in manifests]
    made = {
        "policy": run.name,
        "backend": " and ".join(sorted({s["backend"] for s in scored})),
        "choice": choice if manifest["kind"] == "mixture" else "",
        "seeds": len(scored),
        "nfe": manifest["nfe"],
        "parameters": manifest["provenance"].get("parameters"),
        "training_cpu_seconds": None if run.steps or None in spent else float(np.mean(spent)),
        "latency_ms": timing and timing["latency_ms"]["p50"],
    }
    for key in ("success_rate", "score_mean", "mode_entropy"):
        values = [s[key] for s in scored]
        made[key] = None if None in values else [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]
    if made["mode_entropy"]:
        base = math.log(scored[0]["modes"])
        made["kl_ways"] = round(float(np.mean([(1 - s["mode_entropy"]) * base for s in scored])), 4)
    return made


def table(task: Task, rows: list[dict]) -> str:
    """Return the rows as a Markdown table with what they were measured on."""
    lines = [
        "| policy | rule | success | score | mode entropy | KL of ways [nats] | NFE | ms a chunk | parameters | training [CPU s] | trainings |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        pairs = [("-" if r[k] is None else f"{r[k][0]:.3f} ± {r[k][1]:.3f}") for k in ("success_rate", "score_mean", "mode_entropy")]
        rest = [
            "-" if r.get("kl_ways") is None else f"{r['kl_ways']:.3f}",
            str(r["nfe"]),
            "-" if r["latency_ms"] is None else f"{r['latency_ms']:.3f}",
            f"{r['parameters']:,}",
            "-" if r["training_cpu_seconds"] is None else f"{r['training_cpu_seconds']:.0f}",
            str(r["seeds"]),
        ]
        name = r["policy"] + ("*" if "eager" in r["backend"] else "")
        lines.append("| " + " | ".join([name, r["choice"], *pairs, *rest]) + " |")
    if any("eager" in r["backend"] for r in rows):
        lines += ["", "\\* Scored in PyTorch, in some seed at least: the ONNX graph failed its parity check with PyTorch."]
    lines += ["", f"{task.env}, {task.episodes} episodes from seed {task.seed}, mean ± standard deviation over trainings; {hardware()}.", ""]
    return "\n".join(lines)


def draw(task: Task, rows: list[dict], file: Path) -> None:
    """Draw what each policy reaches, mean and standard deviation over its trainings, one bar a policy and rule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [("success_rate", "success"), ("score_mean", "score")]
    if rows[0]["mode_entropy"] is not None:
        panels[1] = ("mode_entropy", "mode entropy")
    names = [f"{r['policy']} ({r['choice']})" if r["choice"] else f"{r['policy']}, {r['nfe']} evaluations" for r in rows]
    colours = ["0.6" if not r["choice"] else "tab:orange" if r["policy"] in ("em", "imc") else "tab:blue" for r in rows]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.8 + 0.27 * len(rows)), sharey=True)
    for axis, (key, label) in zip(axes, panels):
        axis.barh(names, [r[key][0] for r in rows], xerr=[r[key][1] for r in rows], color=colours, error_kw={"elinewidth": 0.8})
        axis.set(xlim=(0, 1.05), xlabel=label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].tick_params(axis="y", labelsize=8)
    figure.suptitle(f"{task.env}: teachers grey, mixtures without a teacher orange, VDD blue", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
