# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd demo`: a simulator, a policy and an executor as three ROS 2 processes, in closed loop; scored and drawn."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ros_vdd import backends, envs
from ros_vdd.bundle import Bundle
from ros_vdd.config import dump_yaml
from ros_vdd.errors import ConfigError, RosVddError
from ros_vdd.offline import demo_log
from ros_vdd.offline.choice_options import add_choice, choice_of, described
from ros_vdd.offline.evaluate import require_robot
from ros_vdd.offline.processes import Processes, ros_environment
from ros_vdd.offline.words import counted
from ros_vdd.resources import find
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime.inference import PolicyRunner

HELP = "run a policy in a simulator over real ROS 2 topics, and draw what happened"
OBSERVED = "observed.jsonl"
POLL_S, PATIENCE_S = 0.1, 20.0
DOMAINS = range(1, 102)  # those whose ports lie below the ephemeral ones of Linux


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--policy", default="pusht_vdd", help="policy folder or shipped name (default pusht_vdd)")
    parser.add_argument("--env", default="pusht", help="simulator (default pusht)")
    parser.add_argument("--episodes", type=int, default=5, help="number of episodes (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; the next has one more")
    parser.add_argument(
        "--mode",
        default="real-time",
        choices=("real-time", "lock-step"),
        help="real-time: 10 Hz by the wall clock; lock-step: each frame waits for its command",
    )
    add_choice(parser)
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder of summary.json, demo.gif, demo.png and logs")
    parser.add_argument("--no-video", action="store_true", help="don't draw demo.gif")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Run the three nodes until the last episode is over, then print and draw what the observer saw."""
    choice = choice_of(args)
    if args.episodes < 1 or args.seed < 0:
        raise ConfigError(f"'episodes' is {args.episodes}, 'seed' {args.seed}; expected at least 1 and at least 0")
    bundle = Bundle.open(find("models", args.policy))
    backends.require_commands(bundle)
    if not bundle.robot.cameras:  # told now, not after the episodes
        raise ConfigError(
            f"policy '{bundle.path}' sees no camera, whose frames the demo counts; score it with "
            f"ros-vdd evaluate {args.policy} --env {args.env}"
        )
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file; give --out a folder")
    require_robot(bundle, envs.make(args.env).robot)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OBSERVED).unlink(missing_ok=True)
    print(f"{counted(args.episodes, 'episode')} of {args.env} with {bundle.manifest.name}, {args.mode}; logs in {folder}/", flush=True)
    _play(args, bundle, choice, folder)
    log = demo_log.read(folder / OBSERVED)
    latency_key = "latency_ms" if args.mode == "real-time" else "compute_ms"
    figures = demo_log.summarise(log, next(iter(bundle.robot.cameras)), latency_key)
    summary = {"env": args.env, "policy": bundle.manifest.name, "mode": args.mode, "seed": args.seed}
    summary |= {**described(choice, bundle), **figures}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(demo_log.table(summary), flush=True)
    _draw(args, bundle, log, summary, folder)
    return 0


def _play(args: argparse.Namespace, bundle: Bundle, choice: ChoiceConfig, folder: Path) -> None:
    """Start the nodes and follow the observer's file to its end."""
    lock_step = args.mode == "lock-step"
    policy = str(bundle.path.resolve())
    robot = folder / "robot.yaml"
    robot.write_text(dump_yaml(bundle.manifest.robot), encoding="utf-8")
    with Processes(folder, ros_environment(_free_domain())) as nodes:
        nodes.start_node("demo_observer_node", path=folder.resolve() / OBSERVED)
        drawn = {"choice": choice.rule, "seed": args.seed, **choice.settings}
        nodes.start_node("policy_node", policy=policy, equal_stamps=lock_step, **drawn)
        nodes.start_node(
            "chunk_executor_node",
            robot=robot.resolve(),
            trigger="joint_states" if lock_step else "timer",
            replan_steps=bundle.n_action_steps if lock_step else 0,
        )
        nodes.start_node(
            "sim_bridge_node",
            env=args.env,
            mode=args.mode.replace("-", "_"),
            first_seed=args.seed,
            episodes=args.episodes,
            await_result_reader=True,
            reset_service="policy_node/reset",
        )
        _follow(nodes, folder / OBSERVED, args)


def _free_domain() -> int:
    """Draw a ROS domain other than the user's: the demo hears nobody else on this machine, nor they it."""
    users = os.environ.get("ROS_DOMAIN_ID", "0")
    return random.SystemRandom().choice([domain for domain in DOMAINS if str(domain) != users])


def _follow(nodes: Processes, path: Path, args: argparse.Namespace) -> None:
    """Show a bar that advances with each result, until the observer has ended.

    Raises:
        RosVddError: a node died, or the observer ended too early.
    """
    from tqdm import tqdm

    results = 0
    with tqdm(total=args.episodes, unit="episode", disable=args.no_progress) as bar:
        for content in _lines(nodes, path):
            if sys.stderr.isatty():
                bar.refresh()  # an episode takes half a minute; a log file needs no moving clock
            if content["kind"] == "result":
                results += 1
                bar.update()
                bar.set_postfix_str(f"score {content['score']:.3f}")
    if results != args.episodes:
        raise RosVddError(f"the demo ended after {results} of {args.episodes} episodes; the logs beside '{path}' say why")


def _lines(nodes: Processes, path: Path) -> Iterator[dict[str, Any]]:
    """Yield what the observer writes, as it writes it, and every now and then that there is nothing new.

    Raises:
        RosVddError: a node died, or the observer still waits for a result long after the simulator has ended.
    """
    position, patience = 0, round(PATIENCE_S / POLL_S)
    while patience > 0:
        patience -= nodes.ended("sim_bridge_node")
        ended = nodes.ended("demo_observer_node")
        text = path.read_text(encoding="utf-8")[position:] if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        position += len(whole)
        yield from map(json.loads, whole.splitlines())
        if ended:
            return
        yield {"kind": "nothing new"}
        time.sleep(POLL_S)
    raise RosVddError(f"the simulator has ended, but its last result didn't arrive within {PATIENCE_S:g} s; run the demo again")


def _draw(args: argparse.Namespace, bundle: Bundle, log: demo_log.DemoLog, summary: dict, folder: Path) -> None:
    from ros_vdd.offline import demo_drawing

    demo_drawing.plot(log, summary, folder / "demo.png")
    written = [folder / "summary.json", folder / "demo.png"]
    if not args.no_video:
        runner = PolicyRunner(bundle, backends.load(bundle))
        demo_drawing.animate(args.env, runner, log, folder / "demo.gif", not args.no_progress)
        written.append(folder / "demo.gif")
    print("wrote", ", ".join(map(str, written)))
