# SPDX-License-Identifier: Apache-2.0
"""What a run does around its steps: the method's own start, the time it took, the warning about dead experts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402
from ros_vdd.methods import em  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training import checkpoint  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("loop") / "store").root


def train(data, out, loop=None):
    return TrainingRun(build(TrainConfig, toy.config("em", "mixture", data, loop)), str(out), progress=False).run()


@pytest.fixture
def prepared(monkeypatch):
    """Let em set its gate's bias to a drawn number before the first step; returns what it was given each time."""
    given = []

    def prepare(self, data, draws):
        given.append((len(data), data.batch(torch.arange(3).numpy())["actions"].shape, draws.normal((2,)).tolist()))
        torch.nn.init.constant_(self.policy.gate[-1].bias, given[-1][2][0])

    monkeypatch.setattr(em.Method, "prepare", prepare)
    return given


def test_a_method_prepares_a_fresh_run_once_and_a_resumed_one_never(prepared, data, tmp_path):
    with toy.killed_before(3):
        train(data, tmp_path / "policy")
    train(data, tmp_path / "policy")
    assert len(prepared) == 1
    count, shape, _ = prepared[0]
    assert count > 3 and tuple(shape) == (3, toy.SIZES["horizon"], 2)


def test_a_run_killed_before_its_first_checkpoint_is_prepared_alike_again(prepared, data, tmp_path):
    with toy.killed_before(1):
        train(data, tmp_path / "policy")
    train(data, tmp_path / "policy")
    assert len(prepared) == 2 and prepared[0] == prepared[1]


def test_averaged_weights_begin_at_what_was_prepared(prepared, data, tmp_path, monkeypatch):
    """With learning rates of nearly nothing the average stays there."""
    from safetensors.torch import load_file

    still = {"learning_rate": 1e-12, "final_learning_rate": 0.0, "weight_decay": 0.0}
    bundle = train(data, tmp_path / "policy", still)
    bias = load_file(str(bundle.file("weights.safetensors")))["gate.2.bias"]
    assert bias.tolist() == pytest.approx([prepared[0][2][0]] * 2)


def test_cpu_time_is_told_and_goes_on_over_a_kill(data, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("time.process_time", lambda: float(next(clock)))
    with toy.killed_before(3):  # checkpoint after 2 steps of 10 s
        train(data, tmp_path / "policy")
    provenance = train(data, tmp_path / "policy").manifest.provenance
    assert provenance["training_cpu_seconds"] == 60.0
    assert provenance["processes"] == 1 and provenance["device"] in ("cpu", "cuda")


def state_of(module):
    return dict(module.named_parameters()), torch.optim.AdamW(module.parameters())


def test_a_checkpoint_from_before_cpu_time_was_kept_still_loads(tmp_path):
    from safetensors.torch import save_file

    module = torch.nn.Linear(2, 2)
    average, optimizer = state_of(module)
    tensors = {f"module.{k}": v.detach().clone() for k, v in average.items()}
    tensors |= {f"average.{k}": v.detach().clone() for k, v in average.items()}
    metadata = {"step": "7", "run": "r", "sha256": checkpoint._sha256(tensors, "7")}
    save_file(tensors, str(tmp_path / "old.safetensors"), metadata)
    assert checkpoint.load(tmp_path / "old.safetensors", "r", module, {}, optimizer) == (7, 0.0)


def test_a_changed_cpu_time_is_damage(tmp_path):
    module = torch.nn.Linear(2, 2)
    average, optimizer = state_of(module)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, 7, "r", module, average, optimizer, 12.5)
    assert checkpoint.load(path, "r", module, {}, optimizer) == (7, 12.5)
    path.write_bytes(path.read_bytes().replace(b"12.500", b"13.500"))
    with pytest.raises(DataError, match="is damaged"):
        checkpoint.load(path, "r", module, {}, optimizer)


def test_another_device_may_continue_a_run(data, tmp_path):
    train(data, tmp_path / "unbroken", {"device": "cpu"})
    with toy.killed_before(3):
        train(data, tmp_path / "policy", {"device": "auto", "compile": False})
    train(data, tmp_path / "policy", {"device": "cpu"})
    if not torch.cuda.is_available():
        one, other = ((tmp_path / n / "weights.safetensors").read_bytes() for n in ("unbroken", "policy"))
        assert one == other


@pytest.mark.parametrize("instructions, used", [({"avx512_bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32")])
def test_the_policy_tells_which_precision_auto_was(instructions, used, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    bundle = train(data, tmp_path / "policy", {"device": "cpu", "precision": "auto", "steps": 1})
    assert bundle.manifest.provenance["precision"] == used
    assert f"cpu, {used} ->" in capsys.readouterr().out


def test_bf16_without_instructions_for_it_is_told(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    bundle = train(data, tmp_path / "policy", {"device": "cpu", "precision": "bf16", "steps": 1})
    assert bundle.manifest.provenance["precision"] == "bf16", "what was asked for is done"
    assert "this cpu has no instructions for it" in capsys.readouterr().out


@pytest.mark.parametrize("dead, told", [(0.0, False), (0.4, False), (1.0, True), (1.6, True)])
def test_dead_experts_are_warned_of_at_the_end(dead, told, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(em.Method, "validate", lambda self, batch, draws: {"loss": 1.0, "dead_experts": dead})
    train(data, tmp_path / "policy")
    warning = f"warning: {round(dead)} of 2 experts are hardly ever used"
    assert (warning in capsys.readouterr().err) == told
