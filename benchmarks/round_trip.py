# SPDX-License-Identifier: Apache-2.0
"""There and back: PushT over ROS topics in lock-step, recorded, converted, replayed; what came back against what was sent.

    python benchmarks/round_trip.py --episodes 20 --out runs/round_trip

Simulator, policy, executor and recorder are the nodes themselves, each a process of its own. What was sent is written down by the
senders: the processes of simulator and executor note each observation and command just before they publish it, so that no
subscriber can miss one. An episode that isn't counted comes first, as the recorder starts only where it has heard all topics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]

from ros_vdd import cli, envs  # noqa: E402
from ros_vdd.bundle import Bundle  # noqa: E402
from ros_vdd.data.bag import Bag  # noqa: E402
from ros_vdd.data.episodes import EpisodeStore  # noqa: E402
from ros_vdd.errors import RosVddError  # noqa: E402
from ros_vdd.offline.processes import Processes, ros_environment  # noqa: E402
from ros_vdd.resources import find  # noqa: E402

DOMAIN = 79
TASK = "round_trip"
ARRIVES_S = 0.5  # the recorder's queues are empty so long after the last message of an episode
ANSWER_S = 60.0


@dataclass
class Sent:
    """What one episode put on its topics, by stamp [ns]."""

    images: dict[int, dict[str, str]] = field(default_factory=dict)
    """Camera -> SHA-256 of its pixels."""
    commands: dict[int, list[float]] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


def note(path: str, content: Mapping[str, Any]) -> None:
    """Write one line; several processes may append to one file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def read_notes(path: Path) -> list[Sent]:
    """Return what was sent, one `Sent` an episode in the order played."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    images = {line["stamp_ns"]: line["images"] for line in lines if line["kind"] == "shown"}
    commands = {line["stamp_ns"]: line["positions"] for line in lines if line["kind"] == "command"}
    results = [line for line in lines if line["kind"] == "result"]
    return [Sent(*({at: sent[at] for at in r["stamps_ns"]} for sent in (images, commands)), r) for r in results]


def digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 of a picture's bytes."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def run_noting_simulator(path: str) -> int:
    """Be sim_bridge_node, and note each observation before it is published, and each result."""
    from ros_vdd.nodes import sim_bridge_node, sim_link

    show, run_episode = sim_link.SimLink.show, sim_bridge_node.run_episode

    def noted_show(link: Any, stamp: int, observation: Mapping[str, np.ndarray]) -> None:
        images = {name: digest(pixels) for name, pixels in observation.items() if name.startswith("images.")}
        note(path, {"kind": "shown", "stamp_ns": stamp, "images": images})
        show(link, stamp, observation)

    def noted_run(*arguments: Any) -> Any:
        result = run_episode(*arguments)
        figures = {"seed": result.seed, "score": result.score, "stamps_ns": list(result.stamps_ns)}
        note(path, {"kind": "result", **figures})
        return result

    sim_link.SimLink.show, sim_bridge_node.run_episode = noted_show, noted_run
    return sim_bridge_node.main()


def run_noting_executor(path: str) -> int:
    """Be chunk_executor_node, and note each command before it is published."""
    from ros_vdd.nodes import chunk_executor_node

    make = chunk_executor_node.command_message

    def noted(action: Any, motion: Any, stamp: int) -> Any:
        note(path, {"kind": "command", "stamp_ns": stamp, "positions": motion.positions[0].tolist()})
        return make(action, motion, stamp)

    chunk_executor_node.command_message = noted
    return chunk_executor_node.main()


NOTING: dict[str, Callable[[str], int]] = {"sim_bridge_node": run_noting_simulator, "chunk_executor_node": run_noting_executor}


class Stack(Processes):
    """The nodes of a run; two of them note what they send."""

    def start_noting(self, module: str, notes: Path, **parameters: Any) -> None:
        """Start a node of `NOTING` with parameters."""
        words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
        command = [sys.executable, __file__, module, str(notes), "--ros-args", *words]
        with (self._folder / f"{module}.log").open("w", encoding="utf-8") as log:
            self._children[module] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )


class Conductor:
    """Ends and begins the recorder's episode between two of the simulator's, as the service that the simulator calls before each.

    Args:
        domain: of the ROS graph.
    """

    def __init__(self, domain: int):
        import rclpy
        from rclpy.callback_groups import ReentrantCallbackGroup
        from rclpy.executors import MultiThreadedExecutor
        from std_srvs.srv import Trigger

        self._kind, self.said = Trigger, []
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        group = ReentrantCallbackGroup()
        self._node = rclpy.create_node("conductor", context=self._context)
        self._executor = MultiThreadedExecutor(3, context=self._context)
        self._executor.add_node(self._node)
        names = ("policy_node/reset", "recorder_node/start_episode", "recorder_node/stop_episode")
        self._clients = {name: self._node.create_client(Trigger, name, callback_group=group) for name in names}
        self._node.create_service(Trigger, "conductor/next", self._next, callback_group=group)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def call(self, name: str) -> bool:
        """Call a service, keep what it said, and return whether it succeeded.

        Raises:
            RosVddError: nobody answers.
        """
        if not self._clients[name].wait_for_service(timeout_sec=ANSWER_S):
            raise RosVddError(f"no service '{name}' within {ANSWER_S:g} s")
        answered, future = threading.Event(), self._clients[name].call_async(self._kind.Request())
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(ANSWER_S):
            raise RosVddError(f"service '{name}' gave no answer within {ANSWER_S:g} s")
        self.said.append(f"{name}: {future.result().message}")
        return future.result().success

    def close(self) -> None:
        """Leave the graph."""
        import rclpy

        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)
        self._thread.join(5.0)

    def stop(self) -> None:
        """Let what was sent arrive, then complete the episode, if one is recorded."""
        time.sleep(ARRIVES_S)
        self.call("recorder_node/stop_episode")

    def _next(self, _: Any, response: Any) -> Any:
        self.stop()
        response.success = self.call("policy_node/reset")
        self.call("recorder_node/start_episode")  # refused before the first episode: no topic was heard yet
        response.message = self.said[-1]
        return response


def record(folder: Path, policy: Bundle, env: str, episodes: int, first_seed: int, domain: int = DOMAIN) -> list[Sent]:
    """Play episodes and record all but the first, into FOLDER/bags/round_trip; return what the recorded ones sent.

    Raises:
        RosVddError: a node died, or wasn't done in time.
    """
    notes = folder / "sent.jsonl"
    notes.unlink(missing_ok=True)
    robot = envs.make(env).robot
    conductor = Conductor(domain)
    try:
        with Stack(folder, ros_environment(domain)) as nodes:
            nodes.start_node("recorder_node", robot=robot, root=str((folder / "bags").resolve()), task=TASK, silent_after_s=60.0)
            nodes.start_node("policy_node", policy=str(policy.path.resolve()), equal_stamps=True)
            lock_step = {"trigger": "joint_states", "replan_steps": policy.n_action_steps}
            nodes.start_noting("chunk_executor_node", notes, robot=robot, **lock_step)
            session = {"mode": "lock_step", "first_seed": first_seed, "episodes": episodes + 1}
            nodes.start_noting("sim_bridge_node", notes, env=env, reset_service="conductor/next", **session)
            while not nodes.ended("sim_bridge_node"):
                time.sleep(0.1)
            conductor.stop()
    finally:
        conductor.close()
        (folder / "services.log").write_text("\n".join(conductor.said) + "\n", encoding="utf-8")
    return read_notes(notes)[1:]


@dataclass(frozen=True)
class Row:
    """One episode: what was sent, and how far from it what came back is."""

    seed: int
    score: float
    sent: int
    """Observations, and as many commands."""
    recorded: int
    """Messages of the three streams in the bag, of 3 x `sent`."""
    frames: int
    action: float
    """Largest difference of an action, [px]."""
    images: int
    """Pictures that aren't the same bit by bit."""
    stamp_s: float
    """Largest distance of a frame's stamp from one that was sent."""


def compare(bag: Path, store: EpisodeStore, sent: Sent) -> Row:
    """Hold the frames that were converted from a bag against what its episode sent."""
    episodes = [e for e in store if Path(e.meta["source"]).resolve() == bag.resolve()]
    stamps = np.array(sorted(sent.images))
    action = stamp = 0.0
    frames = images = 0
    for episode in episodes:
        cameras = [name for name in episode if name.startswith("images.")]
        for k, at in enumerate(episode["stamp_ns"].tolist()):
            nearest = int(stamps[np.abs(stamps - at).argmin()])
            stamp = max(stamp, abs(nearest - at) / 1e9)
            action = max(action, float(np.abs(episode["action"][k] - sent.commands[nearest]).max()))
            images += any(digest(episode[name][k]) != sent.images[nearest][name] for name in cameras)
            frames += 1
    recorded = sum(info.count for info in Bag.open(bag).topics.values())
    return Row(sent.result["seed"], sent.result["score"], len(stamps), recorded, frames, action, images, stamp)


def table(rows: list[Row]) -> str:
    """Return the rows and their total for people."""
    lines = ["seed    score   sent  recorded  frames  action differs by  images that differ  stamp off by"]
    for r in rows:
        cells = f"{r.action:13.1e} px  {r.images:18d}  {r.stamp_s:10.3f} s"
        lines.append(f"{r.seed:<6}  {r.score:.3f}  {r.sent:5d}  {r.recorded:8d}  {r.frames:6d}  {cells}")
    sums = [sum(getattr(r, name) for r in rows) for name in ("sent", "recorded", "frames", "images")]
    worst = [max(getattr(r, name) for r in rows) for name in ("action", "stamp_s")]
    score = np.mean([r.score for r in rows])
    cells = f"{worst[0]:13.1e} px  {sums[3]:18d}  {worst[1]:10.3f} s"
    lines.append(f"{'all':<6}  {score:.3f}  {sums[0]:5d}  {sums[1]:8d}  {sums[2]:6d}  {cells}")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """Record, convert, compare, replay; print the table."""
    folder = Path(args.out)
    if (folder / "bags").exists() or (folder / "store").exists():
        print(f"'{folder}' holds another run; give a new folder", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    policy = Bundle.open(find("models", args.policy))
    began = time.monotonic()
    sent = record(folder, policy, args.env, args.episodes, args.seed - 1)
    seconds = time.monotonic() - began
    bags = sorted((folder / "bags" / TASK).glob("episode_*"))
    print(f"{len(sent)} episodes played and {len(bags)} recorded in {seconds:.0f} s", flush=True)
    store = str(folder / "store")
    cli.run(["convert", *map(str, bags), "--robot", envs.make(args.env).robot, "--out", store, "--no-progress"])
    rows = [compare(bag, EpisodeStore(store), episode) for bag, episode in zip(bags, sent, strict=True)]
    print(table(rows), flush=True)
    (folder / "round_trip.json").write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    print("\nthe same policy on the bags it made:", flush=True)
    replay = ["--policy", str(policy.path), "--lock-step", "--no-progress", "--json", str(folder / "replay.json")]
    return cli.run(["replay", *map(str, bags), *replay, "--plot", str(folder / "replay.png")])


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in NOTING:
        sys.exit(NOTING[sys.argv[1]](sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--policy", default="pusht_vdd")
    parser.add_argument("--env", default="pusht")
    parser.add_argument("--seed", type=int, default=100_000, help="of the first episode that counts")
    parser.add_argument("--out", required=True, help="folder of bags, store, figures and logs")
    sys.exit(main(parser.parse_args()))
