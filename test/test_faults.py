# SPDX-License-Identifier: Apache-2.0
"""The 24 faults that a policy on a robot must survive, each injected into running processes; the table is in docs/faults.md.

Each must end in a hold, a recovery or a clean stop with its reason code; none in a traceback, a hang or a jump. Run it with
`-s` for the times.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

from fault_rig import Process, Rig  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, JointState  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from tiny_policy import HEIGHT, WIDTH  # noqa: E402

POLICY, EXECUTOR = "policy_node", "chunk_executor_node"
SEEN: dict[str, str] = {}  # times of this run, for the table


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    """One policy and one executor for most faults: they must survive them all."""
    rig = Rig(tmp_path_factory.mktemp("faults"), "faults")
    yield rig
    assert rig.close() == [0, 0]
    print(f"\n{rig.judged} of {rig.heard} commands held against the arm")
    print("\n" + "\n".join(f"{name:45s} {times}" for name, times in SEEN.items()))


@pytest.fixture
def arm(robot):
    """It again, healed of the test before."""
    robot.heal()
    del robot.jumps[:]
    return robot


def survives(rig, name, inject, policy="", executor="", words=()):
    """Inject a fault into a running robot; it must hold with these reasons, and go on when the fault is over."""
    rig.run()
    inject(rig)
    told_s = rig.code(POLICY, policy, *words) if policy else 0.0
    told_s += rig.code(EXECUTOR, executor)
    held_s = told_s + rig.holds()
    rig.heal()
    again_s = rig.until(rig.running, "it goes on")
    SEEN[name] = f"told {told_s:.2f} s, held {held_s:.2f} s, again {again_s:.2f} s"
    rig.check()


def goes_on(rig, name, inject, never, until=lambda rig: True):
    """Inject a fault that costs nothing: plans and commands go on, and some reasons are never said."""
    rig.run()
    inject(rig)
    rig.until(lambda: len(rig.commands) > 50 and len(rig.chunks) > 4 and until(rig), "commands go on")
    said = {status["code"] for each in rig.status.values() for status in each}
    assert not said & set(never)
    rig.heal()
    rig.until(rig.running, "it goes on")
    SEEN[name] = "goes on"
    rig.check()


def set_(**changes):
    """Return what changes a message."""

    def change(message):
        for key, value in changes.items():
            setattr(message, key, value)
        return message

    return change


def of(what, change):
    """Return what puts a change into the way of pictures, joints or stamps."""
    return lambda rig: setattr(rig, what, change)


def rearranged(*order):
    """Return what gives a joint state the joints of some places, in this order."""

    def change(message):
        return JointState(name=[message.name[k] for k in order], position=[message.position[k] for k in order])

    return change


UNMEASURED = ("no_measurement", "chunk_expired")  # on a busy machine the plan may end first
NAN = JointState(name=["a", "b"], position=[float("nan"), 0.0])
LARGER = {"width": 2 * WIDTH, "height": 2 * HEIGHT, "step": 6 * WIDTH, "data": bytes(12 * WIDTH * HEIGHT)}
HELD = {  # number and fault: how it is injected, reason of the policy, reason of the executor, words of the policy's
    "1 camera stops": (of("showing", False), "stale", "chunk_expired", ("images.top", "silent")),
    "2 camera frozen on one picture": (of("still", True), "camera_frozen", "chunk_expired", ("same picture",)),
    "4 resolution changes": (of("picture", set_(**LARGER)), "refused_message", "chunk_expired", ("8x6", "4x3")),
    "5 encoding changes": (of("picture", set_(encoding="bgr8")), "refused_message", "chunk_expired", ("bgr8", "rgb8")),
    "7 undersized data": (of("picture", set_(data=bytes(35))), "refused_message", "chunk_expired", ("35",)),
    "9 joint missing": (of("joints", rearranged(0)), "stale", UNMEASURED, ("joint 'b'",)),
    "11 joint twice": (of("joints", rearranged(0, 0)), "refused_message", UNMEASURED, ("a twice",)),
    "12 NaN in a joint state": (of("joints", lambda message: NAN), "refused_message", UNMEASURED, ("nan",)),
    "13 stamps are zero": (of("stamp", lambda s: 0.0), "refused_message", UNMEASURED, ("zero",)),
    "13 stamps of the future": (of("stamp", lambda s: s + 3600), "clock_mismatch", UNMEASURED, ("ahead",)),
    "13 stamps of the past": (of("stamp", lambda s: s - 3600), "clock_mismatch", UNMEASURED, ("behind",)),
    "15 inference raises": (lambda rig: rig.engine("raise"), "inference_failed", "chunk_expired", ("node 7",)),
    "16 inference hangs": (lambda rig: rig.engine("hang"), "inference_hangs", "chunk_expired", ("no answer",)),
    "18 out of GPU memory": (lambda rig: rig.engine("memory"), "inference_failed", "chunk_expired", ("out of memory",)),
    "19 NaN from the policy": (lambda rig: rig.engine("nan"), "inference_failed", "chunk_expired", ("NaN",)),
    "19 infinity from the policy": (lambda rig: rig.engine("inf"), "inference_failed", "chunk_expired", ("infinity",)),
    "19 huge numbers from the policy": (lambda rig: rig.engine("huge"), "out_of_limits", "chunk_expired", ("1e+30",)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_fault_holds_the_arm_with_its_reason_and_is_over_when_it_is_over(name, arm):
    inject, policy, executor, words = HELD[name]
    survives(arm, name, inject, policy, executor, words)


def padded(message):
    """Return a picture with padded rows that calls itself big-endian; 8 bits have no order."""
    rows = [bytes(message.data[k * 3 * WIDTH : (k + 1) * 3 * WIDTH]) + b"\xee" * 4 for k in range(HEIGHT)]
    return Image(width=WIDTH, height=HEIGHT, step=3 * WIDTH + 4, is_bigendian=1, encoding="rgb8", data=b"".join(rows))


def halved(rig):
    rate = rig.figure(POLICY, "images.top.rate_hz")
    return 0 < rate < 14


COSTS_NOTHING = {
    "3 camera rate halves": (of("pictures_s", 0.1), ("stale", "camera_frozen", "refused_message"), halved),
    "6 padded rows, big-endian": (of("picture", padded), ("refused_message",), lambda rig: True),
    "10 joints in another order": (of("joints", rearranged(1, 0)), ("refused_message", "first_jump"), lambda rig: True),
}


@pytest.mark.parametrize("name", COSTS_NOTHING)
def test_a_fault_that_costs_nothing_changes_nothing(name, arm):
    inject, never, until = COSTS_NOTHING[name]
    goes_on(arm, name, inject, never, until)


def test_13_stamps_that_go_back_begin_a_new_history(arm):
    """By three seconds, as in a bag that loops: for the executor all of it is too old; back in time again all goes on."""
    jumps = arm.figure(POLICY, "clock_jumps")
    survives(arm, "13 stamps go back", of("stamp", lambda s: s - 3), executor=UNMEASURED)
    arm.until(lambda: arm.figure(POLICY, "clock_jumps") >= (jumps if jumps == jumps else 0) + 2, "both jumps are counted")


def test_17_a_killed_policy_is_a_hold_and_a_new_one_goes_on(arm):
    arm.run()
    arm.processes[POLICY].kill()
    told_s = arm.code(EXECUTOR, "chunk_expired")
    held_s = told_s + arm.holds()
    arm.start(POLICY)
    again_s = arm.until(arm.running, "it goes on")
    SEEN["17 inference process killed"] = f"told {told_s:.2f} s, held {held_s:.2f} s, again {again_s:.2f} s"
    arm.check()


@pytest.mark.parametrize("stall_s", [0.3, 1.5], ids=["for less than a plan", "for longer than a plan"])
def test_20_an_executor_that_is_kept_from_running_misses_slots_and_makes_up_for_none(stall_s, arm):
    arm.run()
    missed = arm.figure(EXECUTOR, "slots_missed")
    arm.processes[EXECUTOR].send(signal.SIGSTOP)
    begun = time.monotonic()
    arm.until(lambda: time.monotonic() - begun > stall_s, "it stands")
    arm.processes[EXECUTOR].send(signal.SIGCONT)
    count = len(arm.commands)
    arm.until(lambda: len(arm.commands) > count + 10 and arm.running(), "it goes on")
    more = (missed if missed == missed else 0) + stall_s / 0.02 / 2
    arm.until(lambda: arm.figure(EXECUTOR, "slots_missed") > more, "missed slots are counted")
    SEEN[f"20 executor stands for {stall_s:g} s"] = "goes on"
    arm.check()


def test_20_a_machine_that_is_too_busy_makes_no_jump(arm):
    arm.run()
    hog = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(hog) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        count, begun = len(arm.commands), time.monotonic()
        arm.until(lambda: time.monotonic() - begun > 1.5 and len(arm.commands) > count + 20, "commands go on")
    finally:
        for each in hogs:
            each.kill()
            each.wait()
    arm.until(arm.running, "it goes on")
    SEEN["20 twice as many busy processes as cores"] = "goes on"
    arm.check()


def test_21_a_camera_driver_that_dies_is_a_hold_and_its_restart_a_recovery(arm):
    driver = arm.drive_camera()
    try:
        arm.run()
        driver.kill()
        told_s = arm.code(POLICY, "stale", "images.top") + arm.code(EXECUTOR, "chunk_expired")
        held_s = told_s + arm.holds()
        driver = arm.drive_camera()
        again_s = arm.until(arm.running, "it goes on")
    finally:
        driver.kill()
        arm.heal()
    SEEN["21 publisher killed and started again"] = f"told {told_s:.2f} s, held {held_s:.2f} s, again {again_s:.2f} s"
    arm.check()


class Recorder:
    """A recorder that has begun an episode beside a rig."""

    def __init__(self, rig):
        rig.run()
        self.root = rig.folder / f"episodes_{len(list(rig.folder.glob('episodes_*')))}"
        given = {"robot": rig.robot, "root": self.root, "task": "fault"}
        self.process = Process(rig.folder, rig.namespace, "recorder_node", **given)
        client = rig.peer.node.create_client(Trigger, "recorder_node/start_episode")
        asked, asked_s = [], 0.0

        def begun():  # it refuses until it has heard every topic, and of one that was killed there is never an answer
            nonlocal asked_s
            if client.service_is_ready() and time.monotonic() - asked_s > 0.5:
                asked_s = time.monotonic()
                asked.append(client.call_async(Trigger.Request()))
            return any(future.done() and future.result().success for future in asked)

        rig.until(begun, "the recorder begins")
        rig.until(lambda: self.size() > 10_000, "it records")
        rig.run()

    def size(self):
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def test_22_a_killed_recorder_disturbs_nobody(arm):
    recorder = Recorder(arm)
    recorder.process.kill()
    arm.until(lambda: len(arm.commands) > 50 and len(arm.chunks) > 3, "commands go on")
    arm.until(arm.running, "it runs")
    SEEN["22 recorder killed"] = "goes on"
    arm.check()


def test_23_a_disk_that_takes_no_more_disturbs_nobody(arm):
    recorder = Recorder(arm)
    try:
        full = recorder.size()
        resource.prlimit(recorder.process.number, resource.RLIMIT_FSIZE, (full, full))
        arm.until(lambda: len(arm.commands) > 100 and len(arm.chunks) > 5, "commands go on")
        arm.until(arm.running, "it runs")
    finally:
        recorder.process.kill()
    SEEN["23 disk full"] = "goes on"
    arm.check()


def change(rig, label):
    """Ask the policy for a transition; return whether it was made."""
    client = rig.peer.node.create_client(ChangeState, f"{POLICY}/change_state")
    rig.until(client.service_is_ready, "the policy listens")
    future = client.call_async(ChangeState.Request(transition=Transition(label=label)))
    rig.until(future.done, label)
    return future.result().success


def test_24_a_policy_file_that_is_corrupt_at_reload_is_refused_and_the_node_lives(arm):
    graph = arm.policy / "policy.onnx"
    whole = graph.read_bytes()
    arm.run()
    assert change(arm, "deactivate") and change(arm, "cleanup")
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert not change(arm, "configure")
    finally:
        graph.write_bytes(whole)
    arm.code(POLICY, "not_configured", "policy.onnx")
    arm.holds()
    assert change(arm, "configure") and change(arm, "activate")
    again_s = arm.until(arm.running, "it goes on")
    SEEN["24 policy file corrupt at reload"] = f"again {again_s:.2f} s"
    arm.check()


@pytest.fixture
def rig(tmp_path, request):
    """A rig of a test's own."""
    made = []

    def make(**options):
        made.append(Rig(tmp_path, f"faults_{len(request.node.name)}", **options))
        return made[-1]

    yield make
    assert [rig.close() for rig in made] == [[0, 0]] * len(made)


SPOILS = {"cut off": lambda data: data[: len(data) // 3], "zeros": lambda data: bytes(len(data))}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_8_a_corrupt_jpeg_is_refused(spoil, compressed):
    def corrupt(message):
        return CompressedImage(format=message.format, data=spoil(bytes(message.data)))

    survives(compressed, "8 corrupt JPEG", of("picture", corrupt), "refused_message", "chunk_expired")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A rig whose camera sends JPEG."""
    camera = {"topic": "camera/compressed", "type": "sensor_msgs/msg/CompressedImage"}
    made = Rig(tmp_path_factory.mktemp("compressed"), "compressed", camera)
    yield made
    assert made.close() == [0, 0]


def test_14_a_simulation_that_begins_anew_costs_one_history(rig):
    simulated = rig(sim_time=True)
    for shift_s in (-100.0, 50.0):
        simulated.run()
        simulated.set_clock(shift_s)
        told_s = simulated.until(lambda: simulated.figure(POLICY, "clock_jumps") >= 1, "the jump is counted")
        del simulated.commands[:], simulated.chunks[:]
        simulated.until(lambda: simulated.running() and len(simulated.commands) > 20, "it goes on")
        SEEN[f"14 simulated time set by {shift_s:g} s"] = f"told {told_s:.2f} s"
        simulated.check()


@pytest.mark.parametrize("fault, words", [("memory", "out of memory"), ("hang", "no answer within 0.3 s")])
def test_18_with_a_fallback_the_next_engine_answers_and_the_arm_never_holds(fault, words, rig):
    spared = rig(policy={"fallback": "onnxruntime", "engine_timeout_s": 0.3})
    spared.run()
    spared.engine(fault)
    spared.until(lambda: spared.figures.get(POLICY, {}).get("engine") == "onnxruntime", "the next engine serves")
    count = len(spared.chunks)
    spared.until(lambda: len(spared.chunks) > count + 2, "plans go on")
    assert words in spared.figures[POLICY]["engine.failures"]
    assert not {"inference_failed", "inference_hangs"} & {status["code"] for status in spared.status[POLICY]}
    spared.until(spared.running, "it goes on")
    spared.engine("")
    spared.check()
