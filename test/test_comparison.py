# SPDX-License-Identifier: Apache-2.0
"""The comparison script: a teacher's copy whose graph is refused is scored in PyTorch, and told apart in the table."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")
pytest.importorskip("onnxruntime", reason="the parity check needs onnxruntime")

import toy  # noqa: E402
from ros_vdd import bundle, policies  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.offline import export  # noqa: E402
from ros_vdd.policies.diffusion import DiffusionConfig  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "comparison.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmarks_comparison", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def folder(tmp_path):
    """A comparison's folder that holds an untrained teacher."""
    torch.manual_seed(0)
    policy = policies.DiffusionPolicy(load_robot("toy2d"), build(DiffusionConfig, toy.NETWORKS["diffusion"]))
    from safetensors.torch import save

    manifest = policies.manifest(policy, "teacher", provenance={"parameters": 1234})
    bundle.write(tmp_path / "teacher_0", manifest, {bundle.WEIGHTS: save(policy.state_dict())})
    return tmp_path


@pytest.fixture
def refused(monkeypatch):
    """Let every parity check fail."""
    monkeypatch.setattr(export, "parity", lambda bundle, draws: (1.0, 1.0))


def task(script):
    return script.Task("toy2d", 2, script.teachers("teacher", (1,)), seed=0)


def done(script, folder):
    perform = task(script)
    script.perform(perform, perform.runs[0], 0, folder, None)
    return json.loads((folder / "teacher_1_0.argmax.json").read_text())


def test_a_copy_with_a_graph_is_scored_by_it(script, folder, capsys):
    assert done(script, folder)["backend"] == "onnxruntime"
    assert "--backend" not in capsys.readouterr().out


def test_a_copy_whose_graph_is_refused_is_scored_in_pytorch_and_it_is_said(script, folder, refused, capsys):
    scored = done(script, folder)
    assert (scored["backend"], scored["episodes"]) == ("eager", 2)
    assert not (folder / "teacher_1_0" / bundle.GRAPH).exists()
    out = capsys.readouterr().out
    assert "teacher_1_0 stays without a graph and is scored in PyTorch: the ONNX graph of" in out
    assert "--backend eager --json" in out


def test_a_copy_without_a_graph_is_in_the_table_and_not_timed(script, folder, refused):
    done(script, folder)
    script.time_all(task(script), folder)
    assert not (folder / "timing.json").exists()
    (row,) = script.collect(task(script), folder)
    assert row["backend"] == "eager" and row["latency_ms"] is None and row["nfe"] == 1
    text = script.table(task(script), [row])
    assert "| teacher_1* |" in text and "Scored in PyTorch" in text


def test_one_timed_policy_is_read_back_like_several(script, folder):
    done(script, folder)
    latency = {"policy_folder": "teacher_1_0", "latency_ms": {"p50": 0.5}}
    for timing in (latency, [latency]):
        (folder / "timing.json").write_text(json.dumps(timing))
        (row,) = script.collect(task(script), folder)
        assert row["latency_ms"] == 0.5
    assert "Scored in PyTorch" not in script.table(task(script), [row])


def test_what_is_scored_is_not_done_again(script, folder, refused, capsys):
    done(script, folder)
    capsys.readouterr()
    done(script, folder)
    assert capsys.readouterr().out == ""


def test_a_teacher_that_is_not_there_ends_the_comparison(script, folder):
    run = script.Run("nobody_1", teacher="nobody", steps=1)
    with pytest.raises(SystemExit, match="ros-vdd: .*nobody_0"):
        script.perform(task(script), run, 0, folder, None)


def test_a_given_teacher_takes_the_place_of_each_seeds_own(script, folder, capsys):
    other = (folder / "teacher_0").rename(folder / "given")
    own, copy = script.Run("teacher", "avoiding_teacher"), task(script).runs[0]
    for run in (own, copy):
        script.perform(task(script), run, 3, folder, None, given=str(other))
    assert not (folder / "teacher_3").exists() and (folder / "teacher_1_3" / bundle.GRAPH).exists()


def test_trainings_of_any_seeds_are_in_the_table(script, folder):
    """Of a comparison that began with --first 4 there is none of seed 0."""
    (folder / "teacher_0").rename(folder / "teacher_4")
    perform = task(script)
    script.perform(perform, perform.runs[0], 4, folder, None)
    script.time_all(perform, folder)
    (row,) = script.collect(perform, folder)
    assert row["seeds"] == 1 and row["latency_ms"] > 0


def test_seeds_of_two_digits_are_in_the_table_and_other_runs_are_not(script, folder):
    (folder / "teacher_0").rename(folder / "teacher_12")
    perform = task(script)
    script.perform(perform, perform.runs[0], 12, folder, None)
    (row,) = script.collect(perform, folder)
    assert row["policy"] == "teacher_1" and row["seeds"] == 1
    assert script.trainings(folder, script.Run("teacher")) == [folder / "teacher_12"]


def finished(script, folder, **changes):
    """Return a run whose training lies finished in the folder."""
    from ros_vdd.config import dump_yaml, parse_yaml, to_plain
    from ros_vdd.offline.training_run import read_config

    run = script.Run("student", "avoiding_consistency", ("policy.sampler.steps=1",), "teacher")
    settings = ["seed=0", "name=student", *run.set, *(f"{key}={value}" for key, value in changes.items())]
    place = folder / "student_0"
    shutil.copytree(folder / "teacher_0", place)
    manifest = parse_yaml((place / bundle.MANIFEST).read_text())
    training = {**to_plain(read_config(run.config, settings)), "teacher": str(folder / "teacher_0")}
    (place / bundle.MANIFEST).write_text(dump_yaml({**manifest, "training": training}))
    (folder / "student_0.argmax.json").write_text("{}")
    return run


def test_what_was_finished_by_the_same_settings_is_taken_wherever_it_lies(script, folder):
    run = finished(script, folder)
    script.perform(task(script), run, 0, folder, "anywhere")
    moved = folder.rename(folder.with_name("moved"))
    script.perform(task(script), run, 0, moved, None)


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"changes": ["loop.steps=5"]}, "student_0 was made with loop.steps 3000, and asked for is 5; give another --out"),
        ({"changes": ["options.weighting=uniform"]}, "was made with options.weighting edm, and asked for is uniform"),
        ({"changes": ["loop.stepz=5"]}, "ros-vdd: .*stepz"),
        ({"given": "models/another"}, "was made with teacher teacher_0, and asked for is another"),
    ],
)
def test_what_was_finished_by_other_settings_is_refused(script, folder, asked, told):
    """Otherwise the old figures would stand for the new settings."""
    run = finished(script, folder)
    with pytest.raises(SystemExit, match=told):
        script.perform(task(script), run, 0, folder, None, **asked)


def test_a_misspelt_run_is_told_before_anything_is_done(script, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["comparison.py", "toy2d", "--out", str(folder), "--only", "teacher_11"])
    with pytest.raises(SystemExit, match="--only 'teacher_11': there is no such run; .*did you mean 'teacher_1'"):
        script.main({"toy2d": task(script)}, "about")


def test_a_comparison_of_which_nothing_is_finished_says_so(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["comparison.py", "toy2d", "--out", str(tmp_path), "--seeds", "0"])
    with pytest.raises(SystemExit, match="nothing of toy2d is finished in"):
        script.main({"toy2d": task(script)}, "about")
