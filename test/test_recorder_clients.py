# SPDX-License-Identifier: Apache-2.0
"""Keyboard and joystick ask the recorder for what each key and button means, once, and say what it answered."""

import sys
from types import SimpleNamespace

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Joy  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.nodes.recorder_client import REQUESTS  # noqa: E402
from ros_vdd.nodes.recorder_joystick import DEFAULTS, RecorderJoystick  # noqa: E402
from ros_vdd.nodes.recorder_keyboard import KEYS, RecorderKeyboard  # noqa: E402


@pytest.fixture
def desk():
    """A recorder that notes what it is asked for, and an executor that its clients share."""
    rclpy.init(args=[])
    node, asked = rclpy.create_node("recorder_node"), []

    def answer(name, request, response):
        asked.append((name, getattr(request, "data", None)))
        response.success, response.message = name != "undo_discard", f"{name} done"
        return response

    for service, value in dict(REQUESTS.values()).items():
        kind = Trigger if value is None else SetBool
        node.create_service(kind, f"~/{service}", lambda q, r, name=service: answer(name, q, r))
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def until(condition):
        for _ in range(400):
            if condition():
                return
            executor.spin_once(timeout_sec=0.05)
        raise AssertionError("it never came true")

    yield SimpleNamespace(node=node, asked=asked, executor=executor, until=until)
    executor.shutdown()
    node.destroy_node()
    if rclpy.ok():
        rclpy.shutdown()


def ready(desk, client_node):
    desk.executor.add_node(client_node)
    desk.until(lambda: all(c.service_is_ready() for c in client_node._client._clients.values()))


def test_every_request_has_a_key_and_a_button():
    assert set(KEYS.values()) == set(DEFAULTS) == set(REQUESTS)
    assert len(set(DEFAULTS.values())) == len(DEFAULTS)


def test_each_key_asks_for_its_own_and_the_answer_is_printed(desk, monkeypatch, capfd, tmp_path):
    (tmp_path / "keys").write_text("")
    monkeypatch.setattr(sys, "stdin", (tmp_path / "keys").open())
    monkeypatch.setattr("select.select", lambda *_: ([], [], []))
    keyboard = RecorderKeyboard()
    ready(desk, keyboard)
    for key, what in KEYS.items():
        keyboard.press(key)
        desk.until(lambda: desk.asked and desk.asked[-1] == REQUESTS[what])
    desk.until(lambda: "mark_success done" in capfd.readouterr().out)
    keyboard.press("?")
    assert "s start" in capfd.readouterr().out
    keyboard.press("u")
    shown = []
    desk.until(lambda: shown.append(capfd.readouterr().out) or "NOT DONE: undo_discard done" in "".join(shown))
    keyboard.press("q")
    assert not rclpy.ok()
    keyboard.destroy_node()


def test_a_button_asks_when_it_goes_down_and_not_while_it_is_held(desk):
    joystick = RecorderJoystick()
    ready(desk, joystick)
    hold = lambda *numbers: joystick._take(Joy(buttons=[int(n in numbers) for n in range(12)]))  # noqa: E731
    hold(DEFAULTS["discard"])  # was held when we came
    for numbers in ([], [DEFAULTS["start"]], [DEFAULTS["start"]], [DEFAULTS["start"], DEFAULTS["success"]], []):
        hold(*numbers)
    desk.until(lambda: len(desk.asked) == 2)
    assert sorted(desk.asked, key=str) == [("mark_success", True), ("start_episode", None)]
    hold(11)
    for _ in range(10):
        desk.executor.spin_once(timeout_sec=0.02)
    assert len(desk.asked) == 2
    joystick.destroy_node()


def test_one_button_with_two_meanings_is_refused(desk):
    with pytest.raises(ConfigError, match="button 7 means start and stop"):
        RecorderJoystick(parameter_overrides=[Parameter("stop_button", value=7)])


def test_a_recorder_that_is_not_there_is_told(capfd, monkeypatch, tmp_path):
    (tmp_path / "keys").write_text("")
    monkeypatch.setattr(sys, "stdin", (tmp_path / "keys").open())
    rclpy.init(args=[])
    keyboard = RecorderKeyboard(parameter_overrides=[Parameter("recorder", value="nobody")])
    keyboard.press("s")
    assert "NOT DONE: start: no answer from 'nobody'" in capfd.readouterr().out
    keyboard.destroy_node()
    rclpy.shutdown()
