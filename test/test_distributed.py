# SPDX-License-Identifier: Apache-2.0
"""Two processes that share a batch train the weights of one, killed or not; the first alone writes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

import toy  # noqa: E402
from ros_vdd import methods  # noqa: E402
from ros_vdd.config import build, dump_yaml  # noqa: E402
from ros_vdd.errors import ConfigError, RosVddError  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.config import LoopConfig, TrainConfig  # noqa: E402
from ros_vdd.training.distributed import Group, join  # noqa: E402
from ros_vdd.training.loop import Loop  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "score_matching": {},
    "em": {},
    "regression": toy.OPTIONS["regression"],
    "vdd": {},
    "dmd2": {"adversarial": 0.1},
    "ctm": {},
    "consistency from its own states": {"states": {"forward": 0.5, "student": 0.5, "warmup": 0.0}},
    "progressive from its teacher's states": {"states": {"forward": 0.5, "teacher": 0.5, "warmup": 0.0}},
    "dxmi": {},
    "vdd from the teacher": {"targets": "teacher", "observation_noise": 0.1, "likelihood_weight": 1.0},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(rank: int, runs: list[tuple[dict, str, int]]) -> None:
    """Be one of two processes, as torchrun would start them, for one training after another."""
    torch.set_num_threads(1)
    for values, out, port in runs:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        bundle = TrainingRun(build(TrainConfig, values), out, progress=False).run()
        assert (bundle is None) == (rank == 1), "the first process alone returns what it wrote"


@pytest.fixture(scope="module")
def configurations(tmp_path_factory):
    """A configuration for each case; padded windows are in every batch, the processes' counts differ."""
    root = tmp_path_factory.mktemp("distributed")
    blind, seeing = toy.store(root / "blind").root, toy.store(root / "seeing", toy.SEEING).root
    teacher = toy.config("score_matching", "diffusion", blind, {"steps": 30, "learning_rate": 3e-3})
    TrainingRun(build(TrainConfig, teacher), str(root / "teacher"), progress=False).run()
    made = {}
    for case, options in CASES.items():
        module = methods.find(case.split()[0])
        given = {"teacher": str(root / "teacher")} if module.NEEDS_TEACHER else {}
        data = seeing if module.KIND == "encoder" else blind
        made[case] = toy.config(case.split()[0], module.KIND, data, options=options, **given)
    return made


@pytest.fixture(scope="module")
def trained(configurations, tmp_path_factory):
    """The folder in which every case was trained twice: at one/CASE by one process, at two/CASE by two."""
    root = tmp_path_factory.mktemp("trained")
    for case, values in configurations.items():
        TrainingRun(build(TrainConfig, values), str(root / "one" / case), progress=False).run()
    runs = [(values, str(root / "two" / case), free_port()) for case, values in configurations.items()]
    torch.multiprocessing.spawn(work, (runs,), nprocs=2)
    return root


def state(out: Path) -> dict[str, torch.Tensor]:
    """Return the weights, their average and the optimiser's moments at the end."""
    from safetensors.torch import load_file

    return load_file(str(out.with_name(f"{out.name}.training") / "checkpoint.safetensors"))


def table(out: Path, name: str) -> np.ndarray:
    return np.genfromtxt(out.with_name(f"{out.name}.training") / name, delimiter=",", names=True)


def assert_the_same_training(one: Path, two: Path) -> None:
    expected, got = state(one), state(two)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name] - value).norm() / value.norm().clamp(min=1e-3)
        assert error < 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_weights_of_one(case, trained):
    assert_the_same_training(trained / "one" / case, trained / "two" / case)


def test_the_figures_of_two_processes_are_those_of_the_whole_batch(trained):
    for case in ("score_matching", "vdd"):
        one, two = (table(trained / n / case, "train.csv") for n in ("one", "two"))
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
        one, two = (table(trained / n / case, "validation.csv") for n in ("one", "two"))
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_processes_that_torchrun_started_are_killed_and_resume(configurations, trained, tmp_path):
    """One of the two sends itself SIGKILL before step 3; the same command then ends at the unbroken run's very bits."""
    (tmp_path / "train.yaml").write_text(dump_yaml(configurations["em"]), encoding="utf-8")
    (tmp_path / "dying.py").write_text(
        "import os, signal, sys\n"
        "from ros_vdd import cli\n"
        "from ros_vdd.training.loop import Loop\n"
        "real = Loop.step\n"
        "def step(self, n):\n"
        "    if n == 3 and self.group.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, n)\n"
        "Loop.step = step\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    arguments = ["train", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "killed")]
    killed = torchrun(str(tmp_path / "dying.py"), *arguments)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr[-2000:]
    assert not (tmp_path / "killed").exists()
    shutil.copytree(tmp_path / "killed.training", tmp_path / "alone.training")
    resumed = torchrun("-m", "ros_vdd", *arguments)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert resumed.stdout.count("wrote") == 1 and "2 processes on cpu" in resumed.stdout
    assert "Warning" not in resumed.stderr, resumed.stderr
    unbroken, got = state(trained / "two" / "em"), state(tmp_path / "killed")
    assert all(torch.equal(got[name], value) for name, value in unbroken.items())
    one = TrainingRun(build(TrainConfig, configurations["em"]), str(tmp_path / "alone"), progress=False).run()
    assert one is not None
    assert_the_same_training(trained / "one" / "em", tmp_path / "alone")  # another number of processes may go on


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 3), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="'loop.batch_size' is 256, for 3 processes.*multiple of 3"):
        with join(LoopConfig()):
            pass


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # some schedulers set it for their own use
    with join(LoopConfig(device="cpu")) as group:
        assert group == Group() and not torch.distributed.is_initialized()


def test_processes_that_see_different_checkpoints_stop(configurations, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Elsewhere(Group):
        """Its neighbour resumes at step 4."""

        def mean(self, figures):
            return {k: (v + 4) / 2 for k, v in figures.items()}

    method = methods.find("em")
    policy = toy.network("mixture")
    data = type("Data", (), {"__len__": lambda self: 5})()
    loop = Loop(method.Method(method.Options(), policy), data, None, LoopConfig(), 0, tmp_path / "run", "run", Elsewhere())
    with pytest.raises(RosVddError, match="don't all see the checkpoint"):
        loop.run(progress=False)
