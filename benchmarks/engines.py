# SPDX-License-Identifier: Apache-2.0
"""Engines against models: `python benchmarks/engines.py table|node|cameras --out runs/benchmark_engines`.

table: every shipped student, and a mixture with a ResNet-18 on every engine that runs here; int8 is built first where it serves.
Table, raw samples (.npz), picture. The ResNet-18 has random weights (13.6 M), or is `--resnet`, as config/train/pusht_resnet.sh trains it.
node: what a real policy_node adds to the bare engine: newest message received to chunk published, less the inference in between.
cameras: two cameras of 640x480 at 30 Hz, scaled to 224x224, and joint states at 100 Hz from another process to a real policy_node
that runs two ResNet-18: what arrived, and camera stamp to chunk.

Nothing else should run: the load before and after is written down.
"""

from __future__ import annotations

import argparse
import array
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]

from comparison import hardware  # noqa: E402

from ros_vdd import cli  # noqa: E402
from ros_vdd.bundle import GRAPH, WEIGHTS, Bundle, write  # noqa: E402
from ros_vdd.config import build, to_plain  # noqa: E402
from ros_vdd.data.episodes import EpisodeWriter  # noqa: E402
from ros_vdd.errors import RosVddError  # noqa: E402
from ros_vdd.offline.processes import Processes, ros_environment  # noqa: E402
from ros_vdd.resources import find  # noqa: E402
from ros_vdd.streams.spec import RobotSpec, load_robot, robot_from_mapping  # noqa: E402

SHIPPED = ("avoiding_vdd", "pusht_fast_vdd", "pusht_vdd", "pusht_mode")
INT8 = "onnxruntime:int8"
TASKS = {"topic": "goal", "type": "std_msgs/msg/String", "tasks": ["push", "pull", "lift"]}  # a FiLM-ResNet is told what to do
DOMAIN = 77


def resnet(folder: Path, name: str, robot: RobotSpec) -> Path:
    """Return the folder of an exported mixture with a ResNet-18 and random weights; it is made once."""
    place = folder / name
    if (place / GRAPH).exists():
        return place
    import torch
    from safetensors.torch import save

    from ros_vdd import policies
    from ros_vdd.offline.export import export

    torch.manual_seed(0)
    vision = {"features": 512, "encoder": "film_resnet18"}
    network = {"n_obs_steps": 1, "horizon": 16, "n_action_steps": 8, "experts": 8, "width": 512, "depth": 3, "vision": vision}
    kind, config = policies.KINDS["mixture"]
    policy = kind(robot, build(config, network)).eval()
    with torch.no_grad():
        for key, weights in policy.named_parameters():
            if "encoder" not in key and "vision" not in key:
                weights.add_(0.02 * torch.randn(weights.shape))  # a mixture begins with all experts alike
    policy.action_normalizer.fit(np.array([robot.action.lower, robot.action.upper]))
    policy.state_normalizer.fit(np.array([-np.ones(robot.state_size), np.ones(robot.state_size)]))
    count = sum(weights.numel() for weights in policy.parameters())
    made = write(place, policies.manifest(policy, name, provenance={"parameters": count}), {WEIGHTS: save(policy.state_dict())})
    return export(made, draws=5).path


def one_camera() -> RobotSpec:
    """Return PushT's robot with tasks: a camera of 96x96 and joints."""
    return robot_from_mapping(to_plain(load_robot("pusht")) | {"goal": TASKS})


def two_cameras() -> RobotSpec:
    """Return an arm with two cameras of 640x480 that are scaled to 224x224."""
    plain = to_plain(load_robot("example_arm"))
    camera = plain["cameras"]["table"] | {"crop": None, "type": "sensor_msgs/msg/Image", "frozen_after_s": None, "encoding": "rgb8"}
    plain["cameras"] = {name: camera | {"topic": f"{name}/image_raw"} for name in ("table", "wrist")}
    return robot_from_mapping(plain | {"goal": TASKS, "rate_hz": 30.0})


def pictures(folder: Path, robot: RobotSpec) -> Path:
    """Return an episode store of random pictures, from which int8 takes its ranges where nothing was recorded."""
    store = folder / f"{robot.name}_random"
    if not (store / "episode_000000").exists():
        rng, frames = np.random.default_rng(0), 64
        shapes = robot.observation_shapes()
        arrays: dict[str, np.ndarray] = {
            name: rng.integers(0, 256, (frames, *shape), dtype=np.uint8) if name != "state" else rng.normal(size=(frames, *shape)).astype("f4")
            for name, shape in shapes.items()
        }
        arrays["goal"] = np.eye(len(TASKS["tasks"]), dtype=np.float32)[rng.integers(0, 3, frames)]
        arrays["stamp_ns"] = np.arange(frames) * robot.dt_ns
        arrays["action"] = rng.uniform(robot.action.lower, robot.action.upper, (frames, robot.action_size)).astype(np.float32)
        EpisodeWriter(store, robot).add(arrays, {"source": "random"})
    return store


def compiled(policy: str | Path, store: Path | str) -> bool:
    """Build the int8 engine of a policy; return whether it has one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "compile.json"
        words = ["compile", str(policy), "--backend", INT8, "--observations", str(store), "--json", str(file)]
        return cli.main(words) == 0


def table(args: argparse.Namespace) -> None:
    """Time every policy on every engine in one process, each in turn."""
    large = args.resnet or resnet(args.out, "resnet18_vdd", one_camera())
    for policy in SHIPPED if args.data else ():
        compiled(policy, args.data)
    compiled(large, args.data if args.resnet else pictures(args.out, one_camera()))
    for name, policies, engines in (
        ("students", [*SHIPPED[:3], str(large)], args.engines or ["onnxruntime", INT8, "eager"]),
        ("samplers", ["avoiding_teacher", "pusht_mode"], args.engines or ["onnxruntime", "eager"]),
    ):
        for policy in policies:  # apart, because not every policy has every engine
            stem = args.out / f"{name}_{Path(policy).name}"
            able = [engine for engine in engines if runs(policy, engine)]
            words = ["benchmark", policy, *(word for engine in able for word in ("--backend", engine)), "--no-progress"]
            cli.main([*words, "--runs", str(args.runs), "--json", f"{stem}.json", "--samples", f"{stem}.npz", "--plot", f"{stem}.png"])
    rows = [row for file in sorted(args.out.glob("s*_*.json")) for row in _rows(file)]
    lines = ["| policy | engine | p50 | p99 | p99.9 | max | floor | cold start [s] | memory [MB] |", "|" + "---|" * 9]
    for row in rows:
        times, start = row["latency_ms"], row["cold_start"]
        cells = [f"{times[key]:.2f}" for key in ("p50", "p99", "p99.9", "max")] + [f"{row['floor']['floor_ms']:.2f}"]
        cells += [f"{start['seconds']:.2f}", f"{start['memory_mb']:.0f}"]
        lines.append(f"| `{row['policy_folder']}` | `{row['backend']}` | {' | '.join(cells)} |")
    loads = [row["machine"]["load"] for row in rows] + [row["load_after"] for row in rows]
    lines.append(f"\n[ms] batch 1, {args.runs} runs each in turn; {hardware()}; load {min(map(_load, loads))} to {max(map(_load, loads))}.")
    finish(args.out / "table.md", lines)


def _rows(file: Path) -> list[dict]:
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, list) else [found]


def _load(load: Any) -> float:
    return float(load[0] if isinstance(load, Sequence) else load)


def runs(policy: str, engine: str) -> bool:
    """Return whether an engine takes a policy here; say why not."""
    from ros_vdd import backends

    try:
        backends.load(Bundle.open(find("models", policy)), engine)
    except RosVddError as error:
        print(f"{policy} on {engine} not run: {error}")
        return False
    return True


def sensors(robot: dict, rate_hz: float, joints_hz: float, seconds: float, sent: Any) -> None:
    """Publish every camera and joint state of a robot from a process of its own; `sent` counts the ticks of the cameras."""
    import rclpy
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import String

    from ros_vdd.nodes.messages import CAMERA_QOS, LATCHED_QOS, time_message

    spec = robot_from_mapping(robot)
    rclpy.init()
    node, rng = rclpy.create_node("sensors"), np.random.default_rng(0)
    cameras, states = {}, []
    for camera in spec.cameras.values():
        data = array.array("B", rng.integers(0, 256, 3 * camera.width * camera.height, dtype=np.uint8).tobytes())
        image = Image(height=camera.height, width=camera.width, step=3 * camera.width, encoding=camera.encoding, data=data)
        cameras[camera.topic] = (node.create_publisher(Image, camera.topic, CAMERA_QOS), image)
    for state in spec.states.values():
        size = len(state.joints)
        message = JointState(name=list(state.joints), position=[0.1] * size, velocity=[0.0] * size, effort=[0.0] * size)
        states.append((node.create_publisher(JointState, state.topic, 10), message))
    if spec.goal:
        node.create_publisher(String, spec.goal.topic, LATCHED_QOS).publish(String(data=spec.goal.tasks[0]))
    while not all(publisher.get_subscription_count() for publisher, _ in (*cameras.values(), *states)):
        time.sleep(0.05)
    time.sleep(1.0)  # the other side must have matched as well
    every = round(joints_hz / rate_hz)
    begun = time.monotonic()
    for slot in range(round(seconds * joints_hz)):
        time.sleep(max(0.0, begun + slot / joints_hz - time.monotonic()))
        stamp = time_message(node.get_clock().now().nanoseconds)
        for publisher, message in states:
            message.header.stamp = stamp
            publisher.publish(message)
        if slot % every == 0:
            for publisher, message in cameras.values():
                message.header.stamp = stamp
                message.data[slot % len(message.data)] ^= 1
                publisher.publish(message)
            sent.value += 1
    time.sleep(1.0)


def listen(policy: str | Path, engine: str, robot: RobotSpec, rate_hz: float, joints_hz: float, seconds: float, **more: Any) -> dict:
    """Run a policy_node for a while and return what it told: times of each plan [ms], and what arrived of what was sent."""
    os.environ.update(ros_environment(DOMAIN))
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from std_msgs.msg import String

    context, told, last = rclpy.Context(), [], {}
    fork = multiprocessing.get_context("spawn")
    sent = fork.Value("i", 0)
    rclpy.init(context=context)
    node = rclpy.create_node("listener", context=context)
    node.create_subscription(String, "policy_node/prediction", lambda m: told.append(json.loads(m.data)), 100)
    node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda m: last.update({v.key: v.value for s in m.status for v in s.values}), 10
    )
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    with tempfile.TemporaryDirectory() as logs, Processes(Path(logs), ros_environment(DOMAIN)) as nodes:
        nodes.start_node("policy_node", policy=str(policy), backend=engine, **more)
        source = fork.Process(target=sensors, args=(to_plain(robot), rate_hz, joints_hz, seconds, sent), daemon=True)
        source.start()
        while source.is_alive():
            executor.spin_once(timeout_sec=0.1)
            nodes.ended("policy_node")
        until = time.monotonic() + 2.5  # the last diagnostics
        while time.monotonic() < until:
            executor.spin_once(timeout_sec=0.1)
    rclpy.shutdown(context=context)
    told = told[len(told) // 20 :]
    times = {key: np.array([row[key] for row in told]) for key in ("latency_ms", "compute_ms", "inference_ms")}
    times["overhead_ms"] = times["compute_ms"] - times["inference_ms"]
    figures = {key: {f"p{p}": round(float(np.percentile(v, p)), 3) for p in (50, 99)} for key, v in times.items()}
    received = {name: int(last[f"images.{name}.received"]) for name in robot.cameras}
    refused = {name: int(last[f"images.{name}.refused"]) for name in robot.cameras}
    return {"plans": len(told), "sent": sent.value, "received": received, "refused": refused, **figures}


def node(args: argparse.Namespace) -> None:
    """Measure what the node adds, on each engine."""
    large = args.resnet or resnet(args.out, "resnet18_vdd", one_camera())
    lines = ["| policy | engine | plans | inference p50 | received to published p50, p99 | added p50, p99 | camera stamp to chunk p50, p99 |"]
    lines += ["|" + "---|" * 7]
    for policy in args.policies or ("pusht_fast_vdd", "pusht_vdd", str(large)):
        for engine in args.engines or ["onnxruntime", INT8, "eager"]:
            if not runs(policy, engine):
                continue
            robot = Bundle.open(find("models", policy)).robot
            found = listen(policy, engine, robot, 10.0, 10.0, args.seconds, replan_steps=1, threads=args.threads)
            (args.out / f"node_{Path(policy).name}_{engine.replace(':', '_')}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
            pairs = [f"{found[key]['p50']:.2f}, {found[key]['p99']:.2f}" for key in ("compute_ms", "overhead_ms", "latency_ms")]
            lines.append(
                f"| `{Path(policy).name}` | `{engine}` | {found['plans']} | {found['inference_ms']['p50']:.2f} | {' | '.join(pairs)} |"
            )
            print(lines[-1], flush=True)
    lines.append(f"\n[ms], 10 plans a second for {args.seconds:g} s; {hardware()}; load {os.getloadavg()[0]:.1f}.")
    finish(args.out / "node.md", lines)


def cameras(args: argparse.Namespace) -> None:
    """Measure the way from two large cameras to the chunk."""
    robot = two_cameras()
    policy = resnet(args.out, "resnet18_two_cameras_vdd", robot)
    compiled(policy, pictures(args.out, robot))
    lines = ["| engine | pictures sent, of each camera | received | refused | plans | inference p50 | camera stamp to chunk p50, p99 |", "|" + "---|" * 7]
    for engine in args.engines or ["onnxruntime", INT8]:
        found = listen(policy, engine, robot, 30.0, 100.0, args.seconds, replan_steps=3, threads=args.threads)
        (args.out / f"cameras_{engine.replace(':', '_')}_{args.threads}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        counts = [" and ".join(map(str, found[key].values())) for key in ("received", "refused")]
        latency = found["latency_ms"]
        lines.append(
            f"| `{engine}` | {found['sent']} | {counts[0]} | {counts[1]} | {found['plans']} | {found['inference_ms']['p50']:.1f} | "
            f"{latency['p50']:.1f}, {latency['p99']:.1f} |"
        )
        print(lines[-1], flush=True)
    lines.append(f"\n[ms], 10 plans a second for {args.seconds:g} s, {args.threads} thread(s); {hardware()}; load {os.getloadavg()[0]:.1f}.")
    finish(args.out / f"cameras_{args.threads}.md", lines)


def finish(file: Path, lines: list[str]) -> None:
    """Write and print a table."""
    text = "\n".join(lines) + "\n"
    file.write_text(text, encoding="utf-8")
    print(text)


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "node", "cameras"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_engines"))
    parser.add_argument("--data", help="episode store of PushT, from which int8 of the shipped policies is built; none: as it was built before")
    parser.add_argument("--resnet", type=Path, metavar="FOLDER", help="table, node: a trained policy for the ResNet-18 with random weights")
    parser.add_argument("--policies", nargs="*", help="node: these instead of all")
    parser.add_argument("--threads", type=int, default=1, help="node, cameras: of the engine (default 1)")
    parser.add_argument("--engines", nargs="*", help="default: those that every machine has")
    parser.add_argument("--runs", type=int, default=1000, help="timed runs of each (default 1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="node and cameras: how long (default 60)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    {"table": table, "node": node, "cameras": cameras}[args.what](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
