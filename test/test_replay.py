# SPDX-License-Identifier: Apache-2.0
"""Bags through the live path without ROS: the observations are those of the converter, the errors those of closed forms."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

import tiny_policy  # noqa: E402
from make_bags import SECOND, image, joint_state, text, trajectory, write_bag, write_mcap  # noqa: E402
from tiny_policy import HEIGHT, HORIZON, N_ACTION_STEPS, OFFSETS, WIDTH  # noqa: E402

from ros_vdd import cli, nodes  # noqa: E402
from ros_vdd.config import dump_yaml  # noqa: E402
from ros_vdd.data.bag import ROBOT_KEY  # noqa: E402
from ros_vdd.data.bag_convert import episodes_from_bag  # noqa: E402
from ros_vdd.errors import ConfigError, DataError, EngineError, PolicyError  # noqa: E402
from ros_vdd.offline import replay as verb  # noqa: E402
from ros_vdd.offline.replay_errors import ActionErrors  # noqa: E402
from ros_vdd.offline.replay_source import ReplaySource, Span, open_bag  # noqa: E402
from ros_vdd.runtime.execution import ExecutionConfig  # noqa: E402
from ros_vdd.runtime.inference import PolicyRunner  # noqa: E402
from ros_vdd.runtime.intake import NotReady  # noqa: E402
from ros_vdd.runtime.reasons import Reason  # noqa: E402
from ros_vdd.runtime.replay import Replay, ReplayConfig  # noqa: E402
from ros_vdd.runtime.replay_frames import MissedPlans, reasons  # noqa: E402
from ros_vdd.streams.spec import robot_from_mapping  # noqa: E402

MS = 1_000_000
START, DT = 1000 * SECOND, 100 * MS
JOINTS = ("a", "b")


def cameras(ticks, delay_ms=30):
    """Picture k shows k, is stamped at tick k and comes later."""
    picture = lambda k: image(START + k * DT, np.full((HEIGHT, WIDTH, 3), k % 250))  # noqa: E731
    return [("/camera", START + k * DT + delay_ms * MS, picture(k)) for k in ticks]


def place(ms):
    """Where the joints are so many ms after the start."""
    return (1e-4 * ms % 0.4, -1e-4 * ms % 0.4)


def arm(times_ms, delay_ms=2):
    return [("/joint_states", START + (ms + delay_ms) * MS, joint_state(START + ms * MS, JOINTS, place(ms))) for ms in times_ms]


def commands(times_ms, value=lambda ms: (0.0, 0.0)):
    return [("/command", START + round(ms * MS), trajectory(START + round(ms * MS), JOINTS, value(ms))) for ms in times_ms]


def bag_of(folder, *events, **options):
    return write_bag(folder, sorted((e for group in events for e in group), key=lambda e: e[1]), **options)


def plain(folder, ticks=20, **options):
    """Joint states every 10 ms, pictures on the tick, 30 ms late, and commands in the middle between two."""
    every = (cameras(range(ticks)), arm(range(0, 100 * ticks, 10)), commands(range(50, 100 * ticks, 100)))
    return bag_of(folder, *every, **options)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policies") / "tiny")


class Watched(PolicyRunner):
    """A runner that keeps what it is asked."""

    def act(self, observation, elapsed=None):
        self.__dict__.setdefault("seen", []).append(observation)
        return super().act(observation, elapsed)


def play(folder, policy, robot=None, span=Span(), **config):
    """Return the replay of a bag, its source and what the policy saw."""
    robot = robot or policy.robot
    runner = Watched.load(policy, "onnxruntime")
    source = ReplaySource(open_bag(folder), robot, span)
    return verb.play(source, Replay(robot, runner, ReplayConfig(**config))), source, runner.__dict__.get("seen", [])


def test_the_policy_sees_what_the_converter_makes_of_the_same_ticks(tmp_path, policy):
    ((arrays, _),) = episodes_from_bag(plain(tmp_path / "bag"), policy.robot)
    replay, _, seen = play(tmp_path / "bag", policy, replan_steps=1)
    assert [frame.stamp_ns for frame in replay.frames] == arrays["stamp_ns"].tolist() and reasons(replay.frames) == {}
    for k, observation in enumerate(seen):
        for name in ("images.top", "state"):
            np.testing.assert_array_equal(observation[name], arrays[name][[max(k - 1, 0), k]], err_msg=f"{name} at tick {k}")


def test_a_plan_waits_for_the_joint_state_that_comes_after_its_picture(tmp_path, policy):
    """Both have the stamp of the tick; the picture comes first."""
    ticks = range(8)
    bag_of(tmp_path / "bag", cameras(ticks, 1), arm(range(0, 800, 100), 9), commands(range(50, 800, 100)))
    ((arrays, _),) = episodes_from_bag(tmp_path / "bag", policy.robot)
    _, _, seen = play(tmp_path / "bag", policy, replan_steps=1)
    np.testing.assert_array_equal([observation["state"][-1] for observation in seen], arrays["state"])
    _, _, hurried = play(tmp_path / "bag", policy, replan_steps=1, settle_s=0.0)
    assert [o["state"][-1].tolist() for o in hurried[2:]] == arrays["state"][1:-1].tolist()  # one tick old


def test_a_wait_ends_by_the_clock_of_the_log(tmp_path, policy):
    """No joint state comes at or after the tick for longer than `settle_s`: the plan is made with the newest one, 20 ms later."""
    bag_of(tmp_path / "bag", cameras(range(9), 5), arm([100 * k - 20 for k in range(10)]), commands(range(50, 800, 100)))
    replay, _, _ = play(tmp_path / "bag", policy, replan_steps=1)
    late = {(frame.time_ns - frame.stamp_ns) // MS for frame in replay.frames if frame.stamp_ns}
    assert late == {25}


def test_the_live_node_sees_the_same(tmp_path, policy):
    """The same bytes over ROS topics into policy_node give the observations of the replay."""
    rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
    from make_bags import serialize
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image, JointState

    from ros_vdd.nodes import policy_node

    frames, states = cameras(range(10)), arm(range(0, 1000, 10))
    bag_of(tmp_path / "bag", frames, states, commands(range(50, 1000, 100)))
    _, _, seen = play(tmp_path / "bag", policy, replan_steps=1)
    words = ["-p", f"policy:={policy.path}", "-p", "replan_steps:=1", "-p", "max_skew_s:=0.0", "-p", "settle_s:=1.0"]
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", *words], context=context)
    node, robot = policy_node.make(context=context), rclpy.create_node("robot", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(robot)
    live, planner = [], node.work._planner
    act = planner._runner.act
    planner._runner.act = lambda arrays, elapsed=None: live.append(arrays) or act(arrays, elapsed)
    kinds = {"/camera": Image, "/joint_states": JointState}
    publishers = {topic: robot.create_publisher(kind, topic, 10) for topic, kind in kinds.items()}
    intakes = dict(zip(("/camera", "/joint_states"), planner.observer.intakes))

    def until(condition):
        for _ in range(1500):
            if condition():
                return
            executor.spin_once(timeout_sec=0.02)
        raise AssertionError("it never came true")

    try:
        until(lambda: all(p.get_subscription_count() for p in publishers.values()))
        for _ in range(20):  # what discovery has announced may still drop what comes first
            executor.spin_once(timeout_sec=0.02)
        for topic, _, message in sorted([*frames, *states], key=lambda e: e[1]):
            before = intakes[topic].received, len(live)
            publishers[topic].publish(serialize(message))
            until(lambda: intakes[topic].received > before[0])
            if topic == "/camera":
                until(lambda: len(live) > before[1])
    finally:
        executor.shutdown()
        node.destroy_node()
        robot.destroy_node()
        rclpy.shutdown(context=context)
    assert len(live) == len(seen) == 10
    for ours, theirs in zip(seen, live):
        for name in ("images.top", "state"):
            np.testing.assert_array_equal(ours[name], theirs[name])


def compared(folder, policy, **config):
    replay, source, _ = play(folder, policy, **config)
    return replay, verb.compare(source, replay, config.get("replan_steps") or N_ACTION_STEPS)


def test_the_error_by_horizon_is_that_of_the_closed_form(tmp_path, policy):
    """The arm stands at (0.1, 0.2); the policy's step k goes 0.01 k beyond, the demonstrator commands (0, 0.5)."""
    still = [("/joint_states", s, joint_state(s, JOINTS, (0.1, 0.2))) for s in range(START, START + 30 * DT, DT)]
    bag_of(tmp_path / "bag", cameras(range(30)), still, commands(range(50, 3000, 100), lambda ms: (0.0, 0.5)))
    _, errors = compared(tmp_path / "bag", policy)
    steps = 0.01 * np.arange(HORIZON)
    np.testing.assert_allclose(errors.by_horizon(), np.stack([0.1 + steps, 0.3 - steps], axis=1), atol=1e-6)
    figures = errors.figures()
    assert figures["mean"] == pytest.approx(0.2, abs=1e-6) and figures["relative"] == pytest.approx(0.1, abs=1e-6)
    a, b = 0.1 + steps, 0.3 - steps
    assert figures["rms"] == pytest.approx(np.sqrt(np.mean([a**2, b**2])), abs=1e-3)  # the last plans see fewer steps
    assert figures["joints"]["a"]["by_horizon"] == pytest.approx(a.tolist(), abs=1e-6)


def test_the_best_expert_is_told_where_the_gate_took_another(policy):
    """The demonstrator goes where the unlikelier expert does."""
    means = np.float32([0.1, 0.2]) + OFFSETS[:, :, None]
    errors = ActionErrors(policy.robot.action, N_ACTION_STEPS)
    errors.add(means[1], means[0], means)
    errors.add(means[0], means[1], means)
    np.testing.assert_allclose(errors.best_by_horizon(), 0, atol=1e-7)
    np.testing.assert_allclose(errors.by_horizon(), 0.02 * np.arange(HORIZON)[:, None] * [1, 1], atol=1e-6)


def test_actions_that_were_not_recorded_count_nowhere(policy):
    recorded = np.full((HORIZON, 2), np.nan)
    recorded[:3] = 0.5
    errors = ActionErrors(policy.robot.action, N_ACTION_STEPS)
    errors.add(np.zeros((HORIZON, 2)), recorded)
    errors.add(np.zeros((HORIZON, 2)), np.full((HORIZON, 2), np.nan))
    figures = errors.figures()
    assert len(errors) == 1 and figures["plans_by_horizon"] == [1, 1, 1] + [0] * 5
    assert figures["by_horizon"] == [0.5] * 3 + [None] * 5 and figures["executed"] == 0.5


def test_joints_without_end_are_compared_the_short_way_round():
    endless = {**tiny_policy.ROBOT["action"], "continuous": ["a"], "lower": [-np.pi] * 2, "upper": [np.pi] * 2}
    action = robot_from_mapping({**tiny_policy.ROBOT, "action": endless}).action
    errors = ActionErrors(action, 1)
    errors.add(np.array([[3.1, 3.1]]), np.array([[-3.1, -3.1]]))
    np.testing.assert_allclose(errors.by_horizon(), [[2 * np.pi - 6.2, 6.2]])


def lock_step(folder, ticks=24):
    """Record a lock-step run of the tiny policy with wall-clock log times, in an order that a busy recorder may leave."""
    events, plan = [], None
    for k in range(ticks):
        stamp = 5000 * SECOND + k * DT
        at = START + k * 7 * MS
        where = place(100 * k)
        plan = tiny_policy.actions(where) if k % N_ACTION_STEPS == 0 else plan
        events.append(("/camera", at, image(stamp, np.full((HEIGHT, WIDTH, 3), k))))
        events.append(("/joint_states", at + 10 * MS, joint_state(stamp, JOINTS, where)))  # after the next picture
        events.append(("/command", at + 12 * MS, trajectory(stamp, JOINTS, plan[k % N_ACTION_STEPS])))
    return bag_of(folder, events)


def by_header(policy):
    """Return the tiny robot, whose commands are read by their stamps."""
    source = {"topic": "command", "type": "trajectory_msgs/msg/JointTrajectory", "stamp": "header"}
    return robot_from_mapping({**tiny_policy.ROBOT, "action": {**tiny_policy.ROBOT["action"], "source": source}})


def test_a_lock_step_bag_of_a_policy_is_repeated_by_it(tmp_path, policy):
    robot = by_header(policy)
    config = {"lock_step": True, "execution": ExecutionConfig(replan_steps=N_ACTION_STEPS)}
    replay, source, _ = play(lock_step(tmp_path / "bag"), policy, robot, **config)
    errors = verb.compare(source, replay, N_ACTION_STEPS)
    assert len(replay.frames) == 6 and reasons(replay.frames) == {}
    np.testing.assert_array_equal(errors.by_horizon()[:N_ACTION_STEPS], 0.0)
    assert errors.by_horizon()[N_ACTION_STEPS:, 1].min() > 0.1  # b moves against its plan, and the next began there
    counted = replay.execution()
    assert (counted["commands"], counted["chunks_refused"], counted["interventions"]) == (24, 0, {})


def test_lock_step_stamps_of_a_simulation_are_refused_by_the_log_s_clock_elsewhere(tmp_path, policy):
    replay, _, seen = play(lock_step(tmp_path / "bag"), policy, by_header(policy))
    assert seen == [] and set(reasons(replay.frames)) <= {"clock_mismatch", "never_received"}
    with pytest.raises(DataError, match="clock_mismatch: .*--lock-step for a bag of such a simulation, else --max-skew-s 0"):
        refused(tmp_path / "bag", policy)


def test_a_stream_that_falls_silent_drops_each_plan_that_was_due(tmp_path, policy):
    """Joint states end at 2 s for 3 s; at most 0.5 s old they serve. A plan is due each 0.4 s."""
    states = arm([*range(0, 2000, 10), *range(5000, 8000, 10)])
    bag_of(tmp_path / "bag", cameras(range(80)), states, commands(range(50, 8000, 100)))
    replay, _, _ = play(tmp_path / "bag", policy)
    dropped = [frame for frame in replay.frames if frame.reason]
    assert reasons(replay.frames) == {"stale": len(dropped)} and 5 <= len(dropped) <= 7  # 2.5 s to 5 s
    assert "states.arm" in dropped[0].detail and "joint_states" in dropped[0].detail
    assert len(replay.frames) == pytest.approx(20, abs=1)


def test_a_camera_that_falls_silent_is_counted_though_it_asks_for_no_plan(tmp_path, policy):
    ticks = [*range(20), *range(50, 80)]
    bag_of(tmp_path / "bag", cameras(ticks), arm(range(0, 8000, 10)), commands(range(50, 8000, 100)))
    replay, _, _ = play(tmp_path / "bag", policy)
    assert list(reasons(replay.frames)) == ["stale"] and 5 <= reasons(replay.frames)["stale"] <= 7
    assert len(replay.frames) == pytest.approx(20, abs=1)


def test_a_plan_is_missed_once_and_only_where_none_came_in_its_time():
    missed, why = MissedPlans(400), lambda code: NotReady(code, "s", "")  # noqa: E731
    missed.begin(0)
    missed.note(10, why(Reason.NEVER_RECEIVED))
    assert missed.planned(50) == []  # late by 50, but the first that was due
    missed.note(300, why(Reason.STALE))  # none is due before 350
    missed.note(460, why(Reason.STALE))
    assert missed.planned(470) == []
    for time, code in ((860, Reason.STALE), (900, Reason.NO_GOAL), (1300, Reason.NO_GOAL), (1700, Reason.STALE)):
        missed.note(time, why(code))
    assert [(frame.time_ns, frame.reason) for frame in missed.planned(1710)] == [(860, "stale"), (1300, "no_goal")]
    missed.note(2200, why(Reason.STALE))
    assert [frame.time_ns for frame in missed.end()] == [2200]


def test_an_engine_that_fails_and_a_plan_beyond_the_limits_are_dropped_with_their_codes(tmp_path, policy):
    plain(tmp_path / "bag")
    runner = PolicyRunner.load(policy, "onnxruntime")
    answers, act = iter(range(100)), runner.act

    def sometimes(observation, elapsed=None):
        number = next(answers)
        if number == 1:
            raise EngineError("the GPU is gone")
        made = act(observation, elapsed)
        return dataclasses.replace(made, actions=made.actions + 5) if number == 3 else made

    runner.act = sometimes
    replay = verb.play(ReplaySource(open_bag(tmp_path / "bag"), policy.robot), Replay(policy.robot, runner, ReplayConfig(2)))
    assert reasons(replay.frames) == {"inference_failed": 1, "out_of_limits": 1}
    assert "the GPU is gone" in next(f.detail for f in replay.frames if f.reason == "inference_failed")


def test_a_policy_that_takes_longer_than_a_plan_lasts_loses_observations(tmp_path, policy):
    plain(tmp_path / "bag")
    replay, _, _ = play(tmp_path / "bag", policy, replan_steps=1, delay_s=0.25)
    assert reasons(replay.frames) == {"observations_replaced": sum(f.prediction is None for f in replay.frames)}
    answered = [f for f in replay.frames if f.prediction]
    assert {(b.time_ns - a.time_ns) // MS for a, b in zip(answered, answered[1:])} == {250}
    assert len(replay.frames) == 20


def test_the_executor_refuses_a_first_action_far_from_the_arm(tmp_path, policy):
    """The gate is the executor's own: the arm is measured elsewhere, as with another unit."""
    robot = robot_from_mapping({**tiny_policy.ROBOT, "action": {**tiny_policy.ROBOT["action"], "max_velocity": [1.0, 1.0]}})
    plain(tmp_path / "bag")
    replay, _, _ = play(tmp_path / "bag", policy, robot)
    assert replay.execution()["commands"] > 50 and replay.execution()["interventions"] == {}
    far, _, _ = play(tmp_path / "bag", policy, robot, execution=ExecutionConfig(first_jump=0.0))
    assert far.execution()["commands"] == 0 and list(far.execution()["interventions"]) == ["first_jump"]


def test_a_part_of_a_bag_begins_a_history_of_its_own(tmp_path, policy):
    plain(tmp_path / "bag")
    replay, source, seen = play(tmp_path / "bag", policy, span=Span(0.5, 1.2), replan_steps=1)
    ticks = [(frame.stamp_ns - START) // DT for frame in replay.frames]
    assert ticks == list(range(5, 12)) and seen[0]["images.top"][:, 0, 0, 0].tolist() == [5, 5]
    assert np.isfinite(source.recorded(START + 11 * DT, HORIZON)).all()  # what was recorded later is known


def test_a_part_of_a_bag_shows_nothing_outside_of_it_where_actions_are_observed_too(tmp_path, policy):
    """The action is read from the joint states, which are read to the end for what was done after the part."""
    source = {"topic": "joint_states", "type": "sensor_msgs/msg/JointState", "stamp": "header"}
    robot = robot_from_mapping({**tiny_policy.ROBOT, "action": {**tiny_policy.ROBOT["action"], "source": source}})
    bag_of(tmp_path / "bag", cameras(range(20)), arm(range(0, 2000, 10)))
    replay, recorded, _ = play(tmp_path / "bag", policy, robot, Span(0.5, 1.2), replan_steps=1)
    assert replay.observer.intakes[1].received == 71
    later = [place(1190 + 100 * k) for k in range(HORIZON)]
    np.testing.assert_allclose(recorded.recorded(START + 11 * DT, HORIZON), later, atol=1e-7)


def test_after_the_last_command_nothing_is_recorded(tmp_path, policy):
    """It was given at 1.95 s, and is younger than its max_age_s for two more ticks."""
    _, source, _ = play(plain(tmp_path / "bag"), policy)
    known = np.isfinite(source.recorded(START + 17 * DT, HORIZON)).all(axis=1)
    assert known.tolist() == [True] * 3 + [False] * 5


def test_actions_whose_clock_goes_back_are_refused_and_never_left_out_of_the_error(tmp_path, policy):
    events = [cameras(range(20)), arm(range(0, 2000, 10)), commands(range(50, 1000, 100))]
    again = [("/command", START + (1000 + k * 100) * MS, trajectory(SECOND + k * DT, JOINTS)) for k in range(10)]
    with pytest.raises(DataError, match="action: its clock goes back by seconds within the recording"):
        play(bag_of(tmp_path / "bag", *events, again), policy, by_header(policy))


def test_the_settings_of_the_executor_are_those_of_its_node():
    tree = ast.parse(Path(nodes.__path__[0], "chunk_executor_node.py").read_text())
    calls = [c for c in ast.walk(tree) if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "Parameter"]
    defaults = {c.args[0].value: c.args[1] for c in calls}
    for name, value in dataclasses.asdict(ExecutionConfig()).items():
        given = defaults[name]
        assert isinstance(given, ast.Name) or given.value == value, name  # MARGIN and FIRST_JUMP are shared by name


def told(capsys, *words):
    """Return the exit status of the verb and what it said."""
    status = cli.main(["replay", *map(str, words), "--no-progress"])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_json_has_the_keys_that_are_promised(tmp_path, policy, capsys):
    plain(tmp_path / "bag")
    files = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    status, out, _ = told(capsys, tmp_path / "bag", "--policy", policy.path, *files)
    assert status == 0 and "5 plans were due, 0 dropped" in out
    summary = json.loads((tmp_path / "r.json").read_text())
    assert {"frames", "dropped", "dropped_reasons", "action_error", "latency_ms", "execution", "failures"} <= set(summary)
    assert {"mean", "rms", "relative", "executed", "by_horizon", "joints", "best_expert", "unit"} <= set(summary["action_error"])
    assert set(summary["latency_ms"]) == {"p50", "p99", "mean", "max"} and len(summary["action_error"]["by_horizon"]) == HORIZON
    assert (summary["frames"], summary["dropped"], summary["failures"], summary["choice"]) == (5, 0, [], "argmax")
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "words, status, why",
    [
        (["--max-error", "10"], 0, ""),
        (["--max-error", "0.001"], 1, r"the mean action error is 0.\d+ rad, limit 0.001"),
        (["--max-error", "0.05%"], 1, r"is \d+\.\d+% of the range, limit 0.05%"),
        (["--max-dropped", "0"], 0, ""),
    ],
)
def test_the_exit_status_tells_whether_a_limit_was_passed(words, status, why, tmp_path, policy, capsys):
    plain(tmp_path / "bag")
    found, _, err = told(capsys, tmp_path / "bag", "--policy", policy.path, *words)
    assert found == status and re.search(why, err)
    assert ("failed" in err) == bool(status)


def test_dropped_plans_are_an_exit_status_too(tmp_path, policy, capsys):
    bag_of(tmp_path / "bag", cameras(range(80)), arm(range(0, 4000, 10)), commands(range(50, 8000, 100)))
    status, out, err = told(capsys, tmp_path / "bag", "--policy", policy.path, "--max-dropped", "0.1")
    assert status == 1 and "plans were dropped (stale" in err and "dropped (stale" in out
    assert re.search(r"\n  stale, first 4\.\d+ s after the first plan due in .*bag: states.arm: .*joint_states", out)


def test_several_bags_are_one_report_with_a_seed_each(tmp_path, policy, capsys):
    for name in ("one", "two"):
        plain(tmp_path / name)
    words = (tmp_path / "one", tmp_path / "two", "--policy", policy.path, "--json", tmp_path / "r.json")
    status, out, _ = told(capsys, *words)
    summary = json.loads((tmp_path / "r.json").read_text())
    assert status == 0 and "10 plans were due" in out and f"{tmp_path}/two      5        0" in out
    assert [(bag["bag"], bag["frames"]) for bag in summary["per_bag"]] == [(str(tmp_path / n), 5) for n in ("one", "two")]
    assert {bag["mean"] for bag in summary["per_bag"]} == {summary["action_error"]["mean"]}


def test_a_pause_of_years_takes_no_time(tmp_path, policy):
    """A message stamped by a clock that wasn't set yet."""
    later = [(topic, at + 10 * 365 * 86400 * SECOND, message) for topic, at, message in cameras(range(3))]
    every = (cameras(range(10)), arm(range(0, 1000, 10)), commands(range(50, 1000, 100)), later)
    replay, _, _ = play(bag_of(tmp_path / "bag", *every), policy)
    assert sum(frame.prediction is not None for frame in replay.frames) == 3


def test_what_is_left_of_a_damaged_bag_is_replayed_on_request(tmp_path, policy, capsys):
    events = [*cameras(range(20)), *arm(range(0, 2000, 10)), *commands(range(50, 2000, 100))]
    path = write_mcap(tmp_path / "cut.mcap", sorted(events, key=lambda e: e[1]))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError):
        refused(path, policy)
    status, out, err = told(capsys, path, "--policy", policy.path, "--recover")
    assert status == 0 and "plans were due" in out and "left out" in err


@pytest.mark.parametrize(
    "words, why",
    [
        (["--max-error", "much"], "'max-error' is 'much'"),
        (["--max-dropped", "2"], "'max-dropped' is 2.0"),
        (["--step-s", "3"], "'step-s' is 3.0; a chunk of this policy has 8 actions of 0.1 s"),
        (["--from-s", "2", "--to-s", "1"], "'from-s' is 2.0, 'to-s' 1.0"),
        (["--plot", "x.bmp"], "'x.bmp' ends in '.bmp'"),
        (["--json", "nowhere/r.json"], "no folder 'nowhere'"),
        (["--seed", "-1"], "'seed' is -1"),
        (["--goal", "push"], "robot 'tiny' has no section 'goal'"),
        (["--lock-step", "--delay-ms", "5"], "'delay_s' is 0.005"),
        (["--from-s", "100"], "no plan could be made from .*too few messages"),
    ],
)
def test_mistakes_are_told(words, why, tmp_path, policy):
    plain(tmp_path / "bag")
    with pytest.raises((ConfigError, DataError), match=why):
        cli.run(["replay", str(tmp_path / "bag"), "--policy", str(policy.path), "--no-progress", *words])


def refused(folder, policy, *words):
    cli.run(["replay", str(folder), "--policy", str(policy.path), "--no-progress", *words])


def test_a_bag_without_a_topic_is_refused(tmp_path, policy):
    bag_of(tmp_path / "blind", arm(range(0, 800, 10)), commands(range(50, 800, 100)))
    with pytest.raises(DataError, match="topic 'camera' of images_top is absent"):
        refused(tmp_path / "blind", policy)
    bag_of(tmp_path / "idle", cameras(range(8)), arm(range(0, 800, 10)))
    with pytest.raises(DataError, match="topic 'command' of action is absent"):
        refused(tmp_path / "idle", policy)


def test_a_bag_whose_actions_are_all_wrong_is_refused(tmp_path, policy):
    other = [("/command", START + k * DT, trajectory(START + k * DT, ("x", "y"))) for k in range(8)]
    bag_of(tmp_path / "bag", cameras(range(8)), arm(range(0, 800, 10)), other)
    with pytest.raises(DataError, match="all 8 messages were refused: .*no joint 'a'.*; a replay compares with recorded actions"):
        refused(tmp_path / "bag", policy)


def test_actions_of_another_time_are_refused(tmp_path, policy):
    bag_of(tmp_path / "bag", cameras(range(8)), arm(range(0, 800, 10)), commands([-20_000, -19_900]))
    with pytest.raises(DataError, match="no action was recorded at the time of any of 2 plans"):
        refused(tmp_path / "bag", policy)


def test_a_bag_that_never_gives_a_plan_is_refused_with_the_reason(tmp_path, policy):
    bag_of(tmp_path / "bag", cameras(range(20)), arm(range(-3000, -2000, 10)), commands(range(50, 2000, 100)))
    with pytest.raises(DataError, match="no plan could be made from .*stale: states.arm"):
        refused(tmp_path / "bag", policy)


def test_a_bag_of_another_robot_is_refused_unless_the_user_says_how_to_read_it(tmp_path, policy, capsys):
    other = {**tiny_policy.ROBOT, "rate_hz": 20.0}
    plain(tmp_path / "bag", custom_data={ROBOT_KEY: dump_yaml(other)})
    with pytest.raises(PolicyError, match=r"another robot file than the policy's .*rate_hz: 20.0 here, 10.0 there.*--robot"):
        refused(tmp_path / "bag", policy)
    robot = tiny_policy.write_robot(tmp_path / "tiny.yaml")
    status, _, err = told(capsys, tmp_path / "bag", "--policy", policy.path, "--robot", robot)
    assert status == 0 and "warning: " in err and "rate_hz: 20.0" in err
    with pytest.raises(PolicyError, match="doesn't fit robot"):
        refused(tmp_path / "bag", policy, "--robot", str(tiny_policy.write_robot(tmp_path / "fast.yaml", rate_hz=20.0)))


def test_a_bag_is_read_with_the_robot_file_inside_it(tmp_path, policy, capsys):
    """Its joint states come on another topic than the policy's robot file says."""
    moved = {**tiny_policy.ROBOT, "states": {"arm": {**tiny_policy.ROBOT["states"]["arm"], "topic": "arm/joint_states"}}}
    states = [(f"/arm{topic}", at, message) for topic, at, message in arm(range(0, 1000, 10))]
    every = (cameras(range(10)), states, commands(range(50, 1000, 100)))
    bag_of(tmp_path / "bag", *every, custom_data={ROBOT_KEY: dump_yaml(moved)})
    assert told(capsys, tmp_path / "bag", "--policy", policy.path)[0] == 0
    bag_of(tmp_path / "bare", *every)
    refused(tmp_path / "bare", policy)  # a relative name is found below a namespace, too
    with pytest.raises(DataError, match="topic 'elsewhere' of states_arm is absent"):
        away = {"arm": {**tiny_policy.ROBOT["states"]["arm"], "topic": "elsewhere"}}
        refused(tmp_path / "bare", policy, "--robot", str(tiny_policy.write_robot(tmp_path / "away.yaml", states=away)))


def test_the_recorder_s_verdict_is_told_unless_it_accepts(tmp_path, policy, capsys):
    plain(tmp_path / "good", custom_data={"ros_vdd.verdict": "accept"})
    plain(tmp_path / "bad", custom_data={"ros_vdd.verdict": "reject", "ros_vdd.reasons": "/camera: silent\n/arm: lost 3"})
    good, bad = (told(capsys, tmp_path / name, "--policy", policy.path)[2] for name in ("good", "bad"))
    assert "verdict" not in good and "the recorder's verdict is 'reject': /camera: silent; /arm: lost 3" in bad


def test_an_episode_store_is_refused_because_nothing_of_the_live_path_is_left(tmp_path, policy):
    (tmp_path / "store.yaml").write_text("format: x\n")
    with pytest.raises(DataError, match="is an episode store: .*give the bags it was made of"):
        refused(tmp_path, policy)


def test_a_goal_is_taken_from_the_bag_or_from_the_command_line(tmp_path):
    """Goal k adds 0.1 k to every action."""
    told_policy = tiny_policy.write_policy(tmp_path / "told", goal=tiny_policy.TASKS)
    every = (cameras(range(20)), arm(range(0, 2000, 10)), commands(range(50, 2000, 100)))
    bag_of(tmp_path / "silent", *every)
    bag_of(tmp_path / "bag", *every, [("/goal", START - MS, text("push")), ("/goal", START + 1010 * MS, text("lift"))])
    replay, _, seen = play(tmp_path / "bag", told_policy, replan_steps=1)
    assert [int(o["goal"].argmax()) for o in seen] == [0] * 10 + [2] * 10  # picture 10 comes 20 ms after the goal
    with pytest.raises(DataError, match="topic 'goal' of goal is absent"):
        refused(tmp_path / "silent", told_policy)
    refused(tmp_path / "silent", told_policy, "--goal", "pull")


def test_a_clock_that_is_set_in_the_middle_begins_anew(tmp_path, policy):
    early = [*cameras(range(10)), *arm(range(0, 1000, 10)), *commands(range(50, 1000, 100))]
    again = [(topic, at + 10 * DT, message) for topic, at, message in early]  # the same stamps once more
    bag_of(tmp_path / "bag", early, again)
    replay, _, _ = play(tmp_path / "bag", policy, max_skew_s=0.0)
    assert replay.observer.clock_jumps == 0  # within a second they count as late ones
    far = [(topic, at + 30 * DT, message) for topic, at, message in early]
    late = [*cameras(range(20, 30)), *arm(range(2000, 3000, 10)), *commands(range(2050, 3000, 100))]
    bag_of(tmp_path / "jump", late, far)
    replay, _, _ = play(tmp_path / "jump", policy, max_skew_s=0.0)
    assert replay.observer.clock_jumps == 1 and sum(frame.prediction is not None for frame in replay.frames) == 6
