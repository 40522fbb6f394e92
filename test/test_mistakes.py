# SPDX-License-Identifier: Apache-2.0
"""What a user types by mistake is answered with what it is and what to type instead."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("onnx", reason="the tiny policy is made with onnx")
pytest.importorskip("mcap", reason="the bags are written with the mcap library")
pytest.importorskip("rosbags", reason="the bags are written with the rosbags library")

from make_bags import joint_state, write_bag  # noqa: E402
from tiny_policy import write_policy, write_robot  # noqa: E402

from ros_vdd import backends, cli, envs  # noqa: E402
from ros_vdd.data.episodes import EpisodeWriter  # noqa: E402
from ros_vdd.errors import EngineError, EnvError  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

MESSAGES = [("/joint_states", i * 10**8, joint_state(i)) for i in range(20)]


def write_store(folder):
    """Write a store of one demonstration of Avoiding."""
    EpisodeWriter(folder, load_robot("avoiding")).add(*next(envs.demonstrations("avoiding")))


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder and return its one line of refusal."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert cli.main([str(w) for w in words]) == cli.USER_ERROR
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("word, launched", [("record", "record.launch.py"), ("run", "policy.launch.py")])
def test_what_is_launched_is_told_instead_of_the_nearest_verb(word, launched, refused):
    told = refused(word, "--robot", "my_arm.yaml")
    assert f"ros2 launch ros_vdd {launched}" in told and "did you mean" not in told


def test_a_folder_of_bags_is_told_from_a_bag(refused, tmp_path):
    robot = write_robot(tmp_path / "arm.yaml")
    (tmp_path / "session").mkdir()
    write_bag(tmp_path / "session" / "episode_000000", MESSAGES)
    for words in (["convert", "session", "--robot", robot, "--out", "store", "--no-progress"], ["inspect", "session"]):
        told = refused(*words)
        assert "a folder of bags" in told and "session/*" in told and "session/episode_000000" in told


def test_one_episode_and_a_folder_of_stores_are_told_from_a_bag(refused, tmp_path):
    (tmp_path / "data").mkdir()
    write_store(tmp_path / "data" / "toy")
    assert "an episode of the store 'data/toy'" in refused("inspect", "data/toy/episode_000000")
    assert "a folder of episode stores; give one: data/toy" in refused("inspect", "data")


def test_a_folder_for_a_yaml_file_is_told(refused, tmp_path):
    (tmp_path / "arm").mkdir()
    assert "'arm' is a folder; expected a YAML file" in refused("convert", "env:toy2d", "--robot", "arm", "--out", "store")


def test_a_path_that_is_not_there_names_its_neighbours(refused, tmp_path):
    write_policy(tmp_path / "runs" / "my_vdd")
    told = refused("inspect", "runs/my_vd")
    assert "no file or folder 'runs/my_vd'; available: runs/my_vdd; did you mean 'runs/my_vdd'?" in told
    assert "no folder 'run'" in refused("inspect", "run/my_vdd")


@pytest.mark.parametrize("verb", [["evaluate", "avoiding_vdd", "--env", "avoiding"], ["benchmark", "avoiding_vdd"]])
def test_no_result_is_written_into_a_policy_folder(verb, refused, tmp_path):
    folder = write_policy(tmp_path / "tiny").path
    assert "is a policy folder" in refused(*verb, "--json", folder / "score.json")
    assert not (folder / "score.json").exists()


@pytest.mark.parametrize("name", ["./my_env.py", "envs/stacking.py", "pusht.yaml", "my_lab.envs.stacking"])
def test_an_environment_that_is_none_is_told_by_what_there_is(name):
    with pytest.raises(EnvError, match=f"no environment '{name}'.*available: avoiding"):
        envs.make(name)


def test_a_module_without_an_environment_is_told():
    with pytest.raises(EnvError, match="no class 'Env'"):
        envs.make("json.decoder")


def test_a_path_is_no_engine():
    with pytest.raises(EngineError, match="no engine './my_engine.py'"):
        backends.module("./my_engine.py")


def test_an_export_never_replaces_what_it_copies(refused, tmp_path):
    pytest.importorskip("torch", reason="export needs torch")
    write_policy(tmp_path / "tiny")
    before = (tmp_path / "tiny" / "SHA256SUMS").read_bytes()
    assert "is POLICY itself" in refused("export", "tiny", "--steps", "5", "--out", "tiny")
    assert "--out FOLDER" in refused("export", "tiny", "--steps", "0")
    assert "which has no sampler" in refused("export", "tiny", "--steps", "0", "--out", "other")
    assert "leave --inpaint out" in refused("export", "tiny", "--inpaint", "--out", "other")
    assert (tmp_path / "tiny" / "SHA256SUMS").read_bytes() == before and not (tmp_path / "other").exists()


def test_fewer_than_no_episodes_are_not_shown(refused, tmp_path):
    write_store(tmp_path / "store")
    assert refused("inspect", "store", "--html", "page.html", "--full", "-1").endswith("--full -1: expected 0 or more")


def test_one_episode_is_no_episodes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "store")
    assert cli.main(["convert", "store", "--out", "again", "--no-progress"]) == 0
    assert capsys.readouterr().out.startswith("1 episode, ")


def test_an_empty_store_is_named(refused, tmp_path):
    pytest.importorskip("torch", reason="the training stack needs torch")
    EpisodeWriter(tmp_path / "empty", load_robot("avoiding"))
    assert "the store 'empty' holds no episode" in refused("train", "avoiding_teacher", "--data", "empty")


def test_a_policy_that_a_training_begins_with_and_is_missing_is_told_by_its_key(refused, tmp_path):
    pytest.importorskip("torch", reason="the training stack needs torch")
    write_store(tmp_path / "store")
    words = ("distill", "avoiding_vdd", "--data", "store", "--no-progress")
    assert "'teacher': no file or folder 'runs/avoiding_teacher'" in refused(*words)
    assert "'start': no file or folder 'runs/avoiding_mixture'" in refused(*words, "--teacher", "avoiding_teacher")


def test_a_training_without_a_bar_still_says_what_it_wrote(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="the training stack needs torch")
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "store")
    assert cli.main(["train", "avoiding_mixture", "--data", "store", "loop.steps=1", "loop.batch_size=4", "--no-progress"]) == 0
    assert "wrote runs/avoiding_mixture" in capsys.readouterr().out


@pytest.mark.parametrize("width, told", [(32, True), (192, False)])
def test_a_student_that_cant_begin_as_its_teacher_says_so(width, told, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="the training stack needs torch")
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "store")
    sizes = (f"policy.width={width}", "loop.steps=1", "loop.batch_size=4", "--teacher", "avoiding_teacher", "--no-progress")
    assert cli.main(["distill", "avoiding_lcm", "--data", "store", *sizes]) == 0
    assert ("begins at random numbers: 'options.warm_start' is true" in capsys.readouterr().out) is told


@pytest.mark.parametrize("module", ["policy_node", "chunk_executor_node", "recorder_node"])
def test_a_node_without_ros_says_where_to_get_it(module):
    program = f"import sys; sys.modules['rclpy'] = None; import ros_vdd.nodes.{module}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("source a ROS 2 installation, or pip install 'ros_vdd[ros]'")
