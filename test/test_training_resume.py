# SPDX-License-Identifier: Apache-2.0
"""A training killed at any step and resumed is the unbroken one, bit by bit; a wrong or damaged state is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import methods  # noqa: E402
from ros_vdd.config import build, dump_yaml  # noqa: E402
from ros_vdd.data.episodes import EpisodeWriter  # noqa: E402
from ros_vdd.errors import ConfigError, DataError, PolicyError, RosVddError  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.config import LoopConfig, TrainConfig  # noqa: E402

STEPS = 6  # logs at every step, checkpoints at 2, 4, 6, validation at 3 and 6


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return {"encoder": toy.store(root / "seeing", toy.SEEING).root, "other": toy.store(root / "blind").root}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, stores):
    """An untrained teacher in the units of the store."""
    values = toy.config("score_matching", "diffusion", stores["other"], {"steps": 1})
    out = tmp_path_factory.mktemp("teacher") / "policy"
    return TrainingRun(build(TrainConfig, values), str(out), progress=False).run()


@pytest.fixture
def configured(stores, teacher):
    def make(name="em", data=None, **fields):
        module = methods.find(name)
        given = {"teacher": str(teacher.path)} if module.NEEDS_TEACHER else {}
        data = data or stores.get(module.KIND, stores["other"])
        return build(TrainConfig, toy.config(name, module.KIND, data, **{**given, **fields}))

    return make


def train(config, out):
    return TrainingRun(config, str(out), progress=False).run()


def checkpoint_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.training") / "checkpoint.safetensors"


def result(out: Path) -> dict[str, bytes]:
    """Everything a training leaves that must not depend on kills: weights, optimiser, averages, logs."""
    files = [out / "weights.safetensors", *sorted(checkpoint_of(out).parent.glob("*.csv"))]
    from safetensors.torch import load_file

    state = {k: v.numpy().tobytes() for k, v in load_file(str(checkpoint_of(out))).items()}
    return {**{p.name: p.read_bytes() for p in files}, **state}


@pytest.mark.parametrize("name", methods.names())
def test_a_run_killed_at_any_step_ends_as_the_unbroken_one(name, configured, tmp_path):
    config = configured(name)
    train(config, tmp_path / "unbroken")
    expected = result(tmp_path / "unbroken")
    assert {"train.csv", "validation.csv", "weights.safetensors"} < expected.keys()
    for step in range(1, STEPS):
        out = tmp_path / f"killed{step}"
        with toy.killed_before(step):
            train(config, out)
        train(config, out)
        got = result(out)
        assert got.keys() == expected.keys()
        assert [k for k in got if got[k] != expected[k]] == [], f"killed before step {step}"


SOURCES = {"forward": 0.25, "teacher": 0.25, "student": 0.25, "buffer": 0.25, "warmup": 0.0, "capacity": 6}


@pytest.mark.parametrize("name", [n for n in methods.names() if "states" in methods.find(n).Options.__dataclass_fields__])
def test_states_that_were_reached_before_a_kill_are_remembered(name, configured, tmp_path):
    shares = {**SOURCES, "forward": 0.5, "buffer": 0.0} if name == "dmd2" else SOURCES
    config = configured(name, options={**toy.OPTIONS.get(name, {}), "states": shares})
    train(config, tmp_path / "unbroken")
    with toy.killed_before(3):
        train(config, tmp_path / "killed")
    train(config, tmp_path / "killed")
    assert result(tmp_path / "killed") == result(tmp_path / "unbroken")
    assert name == "dmd2" or "companion.buffer.x" in result(tmp_path / "killed")


def test_a_run_killed_twice_ends_as_the_unbroken_one(configured, tmp_path):
    config = configured()
    train(config, tmp_path / "unbroken")
    for step in (3, 5):
        with toy.killed_before(step):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed")
    assert result(tmp_path / "killed") == result(tmp_path / "unbroken")


def test_a_process_that_is_really_killed_resumes(configured, stores, tmp_path):
    """SIGKILL leaves no chance to tidy up; the child sends it to itself at a known step."""
    values = toy.config("em", "mixture", stores["other"])
    (tmp_path / "train.yaml").write_text(dump_yaml(values), encoding="utf-8")
    code = (
        "import os, signal, sys\n"
        "from ros_vdd.training.loop import Loop\n"
        "from ros_vdd import cli\n"
        "real = Loop.step\n"
        "Loop.step = lambda self, n: os.kill(os.getpid(), signal.SIGKILL) if n == 3 else real(self, n)\n"
        "cli.main(sys.argv[1:])\n"
    )
    arguments = ["train", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "killed"), "--no-progress"]
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    config = build(TrainConfig, values)
    train(config, tmp_path / "killed")
    train(config, tmp_path / "unbroken")
    assert result(tmp_path / "killed") == result(tmp_path / "unbroken")


def test_a_run_killed_after_its_last_step_still_tells_its_validation(configured, tmp_path):
    config, validate = configured(), lambda bundle: bundle.manifest.provenance["validation"]
    unbroken = validate(train(config, tmp_path / "unbroken"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(toy.Killed):
        patch.setattr(TrainingRun, "_write", lambda *arguments: (_ for _ in ()).throw(toy.Killed))
        train(config, tmp_path / "killed")
    assert validate(train(config, tmp_path / "killed")) == unbroken


@pytest.mark.parametrize(
    "change",
    [{"loop": {"learning_rate": 1e-4}}, {"seed": 1}, {"options": {"temperature": 2.0}}],
    ids=["loop", "seed", "options"],
)
def test_a_changed_configuration_refuses_the_checkpoint(change, configured, tmp_path):
    with toy.killed_before(3):
        train(configured(), tmp_path / "policy")
    with pytest.raises(DataError, match="belongs to another configuration.*choose another --out"):
        train(configured(**change), tmp_path / "policy")


def test_a_grown_store_refuses_the_checkpoint(configured, tmp_path):
    store = toy.store(tmp_path / "store")
    with toy.killed_before(3):
        train(configured(data=store.root), tmp_path / "policy")
    EpisodeWriter(store.root, toy.BLIND).add(toy.arrays(toy.BLIND, 5, np.random.default_rng(7)), {})
    with pytest.raises(DataError, match="belongs to another configuration, data set"):
        train(configured(data=store.root), tmp_path / "policy")


def test_a_retrained_start_refuses_the_checkpoint(configured, tmp_path):
    train(configured(seed=1), tmp_path / "start")
    config = configured(start=str(tmp_path / "start"))
    with toy.killed_before(3):
        train(config, tmp_path / "policy")
    checkpoint_of(tmp_path / "start").unlink()
    train(configured(seed=2), tmp_path / "start")
    with pytest.raises(DataError, match="belongs to another"):
        train(config, tmp_path / "policy")


def test_a_truncated_checkpoint_is_refused(configured, tmp_path):
    with toy.killed_before(3):
        train(configured(), tmp_path / "policy")
    path = checkpoint_of(tmp_path / "policy")
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="checkpoint.*can't be read.*delete it"):
            train(configured(), tmp_path / "policy")


def test_a_checkpoint_with_one_byte_changed_is_refused(configured, tmp_path):
    with toy.killed_before(3):
        train(configured(), tmp_path / "policy")
    path = checkpoint_of(tmp_path / "policy")
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 15).astype(int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DataError, match="checkpoint"):
            train(configured(), tmp_path / "policy")


def test_a_half_written_checkpoint_beside_the_good_one_does_no_harm(configured, tmp_path):
    train(configured(), tmp_path / "unbroken")
    with toy.killed_before(3):
        train(configured(), tmp_path / "policy")
    checkpoint_of(tmp_path / "policy").with_suffix(".partial").write_bytes(b"half")
    train(configured(), tmp_path / "policy")
    assert result(tmp_path / "policy") == result(tmp_path / "unbroken")


def test_logs_of_a_run_without_a_checkpoint_are_begun_anew(configured, tmp_path):
    """Its columns may be another method's."""
    with toy.killed_before(1):
        train(configured("score_matching"), tmp_path / "policy")
    train(configured("em"), tmp_path / "policy")
    rows = (checkpoint_of(tmp_path / "policy").parent / "train.csv").read_text().split()
    assert "gate_entropy" in rows[0] and len(rows) == 1 + STEPS


def test_a_torn_last_row_of_a_log_is_dropped(configured, tmp_path):
    train(configured(), tmp_path / "unbroken")
    with toy.killed_before(3):
        train(configured(), tmp_path / "policy")
    with (checkpoint_of(tmp_path / "policy").parent / "train.csv").open("a") as stream:
        stream.write("1")  # of a row for step 1000, say
    train(configured(), tmp_path / "policy")
    assert result(tmp_path / "policy") == result(tmp_path / "unbroken")


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_diverged_step_stops_before_it_spoils_the_checkpoint(spoil, configured, tmp_path):
    from ros_vdd.methods import em

    real = em.Method.loss

    def diverging(self, batch, draws, progress):
        loss, figures = real(self, batch, draws, progress)
        if progress < 3 / STEPS:
            return loss, figures
        return loss * float("nan"), {**figures, "loss": float("nan") if spoil == "loss" else 1.0}

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RosVddError, match=f"step 3: the {spoil}.* is nan; lower"),
    ):
        patch.setattr(em.Method, "loss", diverging)
        train(configured(loop={"checkpoint_every": 1}), tmp_path / "policy")
    train(configured(loop={"checkpoint_every": 1}), tmp_path / "policy")


def test_a_place_that_is_taken_is_told_before_training(configured, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("dear")
    with pytest.raises(PolicyError, match="is not a policy folder; choose another place"):
        TrainingRun(configured(), str(tmp_path / "thesis"), progress=False)


def test_an_empty_store_is_told(configured, tmp_path):
    EpisodeWriter(tmp_path / "empty", toy.BLIND)
    with pytest.raises(DataError, match="holds no episode"):
        train(configured(data=tmp_path / "empty"), tmp_path / "policy")


def test_a_store_of_one_episode_trains_without_validation_and_says_so(configured, tmp_path, capsys):
    store = toy.store(tmp_path / "store", lengths=(9,))
    bundle = TrainingRun(configured(data=store.root), str(tmp_path / "policy")).run()
    assert bundle.manifest.provenance["validation"] == {}
    assert "no validation: of 1 episodes" in capsys.readouterr().out


def test_averaged_weights_are_what_is_written(configured, tmp_path):
    bundle = train(configured(), tmp_path / "policy")
    from safetensors.torch import load_file

    written = load_file(str(bundle.file("weights.safetensors")))
    state = load_file(str(checkpoint_of(tmp_path / "policy")))
    name = "mean_head.weight"
    assert torch.equal(written[name], state[f"average.{name}"])
    assert not torch.equal(written[name], state[f"module.{name}"])


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    loop = LoopConfig(steps=1100, warmup_steps=100, learning_rate=1.0, final_learning_rate=0.2)
    assert [loop.learning_rate_at(s) for s in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1.0])
    assert [loop.learning_rate_at(s) for s in (100, 600, 1100)] == pytest.approx([1.0, 0.6, 0.2])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"ema": 1.0}, {"learning_rate": 0.0}, {"warmup_steps": -1}])
def test_loop_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoopConfig(**wrong)


def test_what_another_optimiser_trains_of_the_policy_is_averaged_too(configured, tmp_path):
    """DxMI's critic and noise have rates of their own, and are shipped with the student."""
    from safetensors.torch import load_file

    bundle = train(configured("dxmi"), tmp_path / "policy")
    written, state = load_file(str(bundle.file("weights.safetensors"))), load_file(str(checkpoint_of(tmp_path / "policy")))
    for name in ("critic.leave.1.weight", "log_sigma"):
        assert torch.equal(written[name], state[f"average.{name}"]) and not torch.equal(written[name], state[f"module.{name}"])


def test_companions_learn_alone_as_long_as_the_method_says(configured, tmp_path):
    """Half of 6 steps: the student's optimiser has done 3, and stands where a fresh one would."""
    config = configured("dxmi", options={"practice": 0.5})
    train(config, tmp_path / "policy")
    from safetensors.torch import load_file

    state = load_file(str(checkpoint_of(tmp_path / "policy")))
    assert state["optimizer.0.step"].item() == STEPS / 2
    assert state["optimizers.critic.0.step"].item() == 3 * STEPS, "an energy and two values a step"


def test_a_run_killed_while_companions_learn_alone_ends_as_the_unbroken_one(configured, tmp_path):
    config = configured("dxmi", options={"practice": 0.5})
    train(config, tmp_path / "unbroken")
    with toy.killed_before(2):
        train(config, tmp_path / "policy")
    train(config, tmp_path / "policy")
    assert result(tmp_path / "policy") == result(tmp_path / "unbroken")
