# SPDX-License-Identifier: Apache-2.0
"""The doctor finds what is wrong, says what to do, and never fails for what is merely absent."""

from __future__ import annotations

import json

import pytest

from ros_vdd.cli import main
from ros_vdd.offline import doctor
from ros_vdd.resources import share_dir


def test_json_is_a_list_of_findings_with_stable_keys(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"python", "numpy", "onnxruntime", "ros", "gpu", "fastdds"} <= {f["check"] for f in findings}
    assert all(list(f) == ["check", "level", "detail", "remedy"] for f in findings)
    assert {f["level"] for f in findings} <= {"ok", "warn", "error"}


def test_whatever_is_not_ok_has_a_remedy():
    assert [f.check for f in doctor.examine() if f.level != "ok" and not f.remedy] == []


def test_a_shipped_robot_file_is_ok(capsys):
    assert main(["doctor", "--robot", "pusht"]) == 0
    assert "pusht: cameras top; 2 state values; 2 joints at 10 Hz" in capsys.readouterr().out


def test_a_robot_file_s_goal_is_told(tmp_path, capsys):
    text = (share_dir() / "config/robots/pusht.yaml").read_text(encoding="utf-8")
    (tmp_path / "told.yaml").write_text(text + "\ngoal: {topic: task, tasks: [push, pull]}\n", encoding="utf-8")
    assert main(["doctor", "--robot", str(tmp_path / "told.yaml")]) == 0
    assert "at 10 Hz; goal of 2 tasks on 'task'" in capsys.readouterr().out


def test_a_wrong_robot_file_is_an_error_and_status_1(tmp_path, capsys):
    path = tmp_path / "robot.yaml"
    text = (share_dir() / "config/robots/pusht.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("rate_hz: 10.0", "rate_hz: -10.0", 1), encoding="utf-8")
    assert main(["doctor", "--robot", str(path)]) == 1
    assert "rate_hz" in capsys.readouterr().out


def test_old_python_is_an_error():
    assert doctor.check_python((3, 9, 2)).level == "error"


def test_a_missing_package_has_the_level_of_its_use():
    finding = doctor.check_package("no_such_module", "no-such", "warn", "pip install it")
    assert finding == ("no-such", "warn", "not installed", "pip install it")


def test_two_packages_that_own_cv2_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: "contrib" not in name)
    assert "overwrite" in doctor.check_opencv().detail


def test_a_profile_that_does_not_exist_is_an_error():
    assert doctor.check_profile({"FASTDDS_DEFAULT_PROFILES_FILE": "/nowhere.xml"}).level == "error"


def test_no_profile_says_which_variable_to_set():
    assert "FASTDDS_DEFAULT_PROFILES_FILE" in doctor.check_profile({}).remedy
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" in doctor.check_profile({"ROS_DISTRO": "jazzy"}).remedy


def test_little_shared_memory_is_told(tmp_path):
    assert doctor.check_shared_memory(tmp_path / "absent").level == "warn"


def test_a_damaged_shipped_policy_is_an_error(tmp_path):
    (tmp_path / "broken").mkdir()
    assert [f.level for f in doctor.check_policies(tmp_path)] == ["error"]


@pytest.mark.parametrize("missing", ["rclpy", "sensor_msgs"])
def test_missing_ros_packages_are_named(monkeypatch, missing):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert missing in doctor.check_ros().detail
