# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd replay`: recorded bags through the exact live path, and what the policy would have done beside what was done."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ros_vdd import backends
from ros_vdd.bundle import Bundle
from ros_vdd.data.bag import Bag
from ros_vdd.errors import ConfigError, DataError, PolicyError
from ros_vdd.offline.choice_options import add_choice, choice_of, described
from ros_vdd.offline.evaluate import require_robot
from ros_vdd.offline.replay_errors import ActionErrors
from ros_vdd.offline.replay_report import Limits, summarise, table
from ros_vdd.offline.replay_source import ReplaySource, Span, open_bag, recorded_robot
from ros_vdd.resources import find, require_file_place
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime.execution import ExecutionConfig
from ros_vdd.runtime.inference import PolicyRunner
from ros_vdd.runtime.reasons import Reason
from ros_vdd.runtime.recording_take import REASONS_KEY, VERDICT_KEY
from ros_vdd.runtime.replay import Replay, ReplayConfig
from ros_vdd.streams.spec import RobotSpec, load_robot

HELP = "run recorded bags through the live path of a policy and compare the actions"
PICTURES = (".png", ".svg", ".pdf")
FAILED = 1
ACCEPT = "accept"  # of the recorder's verdicts the one that needs no word


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add = parser.add_argument
    add("bags", nargs="+", metavar="BAG", help="rosbag2 folders or files; each is an episode")
    add("--policy", required=True, help="policy folder, or a shipped name such as pusht_vdd")
    add("--robot", help="robot file to read the bags with (default: the one inside a bag, else the policy's own)")
    add("--backend", default="onnxruntime", help="engine, NAME[:PRECISION] (default onnxruntime); docs/engines.md")
    add("--seed", type=int, default=0, help="of the first bag; the next has one more")
    add_choice(parser)
    add("--goal", help="goal until one is recorded: a task's name or number, or numbers with commas")
    add("--from-s", type=float, default=0.0, metavar="A", help="begin A s after the bag's first message")
    add("--to-s", type=float, default=float("inf"), metavar="B", help="end B s after it")
    add("--step-s", type=float, metavar="S", help="time between two plans (default: the policy's n_action_steps)")
    add("--delay-ms", type=float, default=0.0, metavar="X", help="how long inference takes on the log's clock (default 0)")
    add("--lock-step", action="store_true", help="a lock-step simulation: equal stamps, no clocks")
    add("--settle-s", type=float, default=0.02, metavar="X", help="as of policy_node (default 0.02)")
    add("--max-skew-s", type=float, default=5.0, metavar="X", help="as of policy_node; 0 compares no clocks (default 5)")
    add("--max-error", metavar="X", help="exit with 1 above this mean error, in the action's unit or as 3%% of the ranges")
    add("--max-dropped", type=float, metavar="SHARE", help="exit with 1 when more plans are dropped")
    add("--recover", action="store_true", help="take what is readable of a damaged bag")
    add("--json", metavar="FILE", help="write the figures as JSON")
    add("--plot", metavar="FILE", help="draw errors and plans (.png, .svg, .pdf)")
    add("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Replay every bag, print a table, write what was asked for, and return 1 where a limit was passed."""
    limits, span = Limits.parse(args.max_error, args.max_dropped), _span(args)
    _check(args)
    choice = choice_of(args)
    bundle = Bundle.open(find("models", args.policy))
    backends.require_commands(bundle)
    if args.robot:
        require_robot(bundle, args.robot)
    given = load_robot(args.robot) if args.robot else None
    goal, config = _goal(args.goal, bundle.robot), _config(args, bundle)
    bags = [open_bag(path, args.recover) for path in args.bags]
    sources = [ReplaySource(bag, robot_of(bag, bundle, given), span, goal is not None) for bag in bags]
    warnings = [line for bag in bags for line in _warnings(bag, given)]
    runner = PolicyRunner.load(bundle, args.backend, choice, args.seed)
    runner.warm_up(_blank(bundle))
    replays = []
    for k, source in enumerate(sources):
        replays.append(play(source, Replay(source.robot, runner, config, args.seed + k, goal), not args.no_progress))
    each = [compare(source, replay, config.replan_steps) for source, replay in zip(sources, replays)]
    errors = ActionErrors(bundle.robot.action, config.replan_steps)
    for of_one in each:
        errors.take(of_one)
    if not len(errors):
        raise _nothing(sources, replays)
    summary = {**_settings(args, bundle, config, choice), **summarise(args.bags, replays, each, errors), "warnings": warnings}
    summary["failures"] = limits.passed(summary)
    _tell(args, summary)
    if args.plot:
        from ros_vdd.offline.replay_plot import draw

        draw(Path(args.plot), sources[0], replays[0], errors)
    for failure in summary["failures"]:
        print(f"ros-vdd replay: failed: {failure}", file=sys.stderr)
    return FAILED if summary["failures"] else 0


def _settings(args: argparse.Namespace, bundle: Bundle, config: ReplayConfig, choice: ChoiceConfig) -> dict[str, Any]:
    """Return what was replayed and how, under stable keys."""
    return {
        "policy": bundle.manifest.name,
        "robot": bundle.robot.name,
        "backend": args.backend,
        "seed": args.seed,
        **described(choice, bundle),
        "replan_steps": config.replan_steps,
        "delay_ms": args.delay_ms,
        "lock_step": args.lock_step,
    }


def play(source: ReplaySource, replay: Replay, progress: bool = False) -> Replay:
    """Let a replay take every message of a bag, and return it.

    Raises:
        DataError: the bag is damaged, or holds no actions.
    """
    from tqdm import tqdm

    shown = {"desc": source.bag.path.name, "unit": "message", "disable": not progress, "mininterval": 0.5}
    with tqdm(total=source.messages, **shown) as bar:
        for event in source.events(replay.lock_step, bar):
            replay.take(event)
    replay.end()
    return replay


def compare(source: ReplaySource, replay: Replay, executed: int) -> ActionErrors:
    """Hold every prediction of a bag against what was recorded; `executed` actions of each are executed."""
    errors = ActionErrors(source.robot.action, executed)
    for frame in replay.frames:
        if frame.prediction:
            recorded = source.recorded(frame.stamp_ns, len(frame.prediction.actions))
            errors.add(frame.prediction.actions, recorded, frame.prediction.means)
    return errors


def _nothing(sources: Sequence[ReplaySource], replays: Sequence[Replay]) -> DataError:
    """Return the reason why nothing can be compared."""
    frames = [frame for replay in replays for frame in replay.frames]
    names = ", ".join(f"'{source.bag.path}'" for source in sources)
    if not any(frame.prediction for frame in frames):
        told = {frame.reason: frame.detail for frame in reversed(frames)}
        why = "; ".join(f"{code}: {detail}" for code, detail in told.items())
        if Reason.CLOCK_MISMATCH.value in told:
            why += ". Log and stamps are of two clocks: --lock-step for a bag of such a simulation, else --max-skew-s 0"
        return DataError(f"no plan could be made from {names}: {why or 'too few messages in what was read'}")
    return DataError(
        f"no action was recorded at the time of any of {len(frames)} plans from {names}; do the clocks of observations "
        "and actions agree? `stamp` of each stream in the robot file says which clock is read"
    )


def _check(args: argparse.Namespace) -> None:
    """Refuse what can't end well before anything is read."""
    if args.seed < 0:
        raise ConfigError(f"'seed' is {args.seed}; expected at least 0")
    for file in filter(None, (args.json, args.plot)):
        require_file_place(file)
    if args.plot and Path(args.plot).suffix not in PICTURES:
        raise ConfigError(f"'{args.plot}' ends in '{Path(args.plot).suffix}'; expected {' or '.join(PICTURES)}")


def _span(args: argparse.Namespace) -> Span:
    if not 0 <= args.from_s < args.to_s:
        raise ConfigError(f"'from-s' is {args.from_s}, 'to-s' {args.to_s}; expected 0 or more, and less than the end")
    return Span(args.from_s, args.to_s)


def _config(args: argparse.Namespace, bundle: Bundle) -> ReplayConfig:
    period_s = 1 / bundle.robot.rate_hz
    steps = bundle.n_action_steps if args.step_s is None else round(args.step_s / period_s)
    if not 1 <= steps <= bundle.horizon:
        raise ConfigError(
            f"'step-s' is {args.step_s}; a chunk of this policy has {bundle.horizon} actions of {period_s:g} s, so expected "
            f"{period_s:g} to {bundle.horizon * period_s:g}"
        )
    execution = ExecutionConfig(replan_steps=steps if args.lock_step else 0)
    return ReplayConfig(steps, args.settle_s, args.max_skew_s, args.lock_step, args.delay_ms / 1e3, execution)


def _goal(text: str | None, robot: RobotSpec) -> np.ndarray | None:
    if text is None:
        return None
    if robot.goal is None:
        raise ConfigError(f"'goal' is '{text}', but robot '{robot.name}' has no section 'goal'; leave it out")
    return robot.goal.parse(text)


def robot_of(bag: Bag, bundle: Bundle, given: RobotSpec | None = None) -> RobotSpec:
    """Return the robot file to read a bag with: the one given, else the one inside, else the policy's.

    Raises:
        PolicyError: the bag was recorded with another robot than the policy's, and none is given.
    """
    inside = recorded_robot(bag)
    if given or inside is None:
        return given or bundle.robot
    if differences := inside.difference(bundle.robot):
        raise PolicyError(
            f"'{bag.path}' was recorded with another robot file than the policy's (bag here, policy there): "
            f"{'; '.join(differences)}. Give the bag's own policy, or --robot to say how the bag is to be read"
        )
    return inside


def _warnings(bag: Bag, given: RobotSpec | None) -> list[str]:
    """Return what to know about a bag: what reader and recorder say of it, and how its robot file differs from the one given."""
    inside = recorded_robot(bag) if given else None
    differences = inside.difference(given) if inside else []
    told = [*bag.warnings, *(f"'{bag.path}' was recorded with another robot file: {line}" for line in differences)]
    if (verdict := bag.custom_data.get(VERDICT_KEY, ACCEPT)) != ACCEPT:
        why = "; ".join(bag.custom_data.get(REASONS_KEY, "").splitlines())
        told.append(f"'{bag.path}': the recorder's verdict is '{verdict}'{f': {why}' if why else ''}")
    return told


def _blank(bundle: Bundle) -> dict[str, np.ndarray]:
    drawn = backends.random_inputs(bundle, np.random.default_rng(0))
    return {name: drawn[name][0] for name in bundle.input_shapes}


def _tell(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    for warning in summary["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(table(summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
