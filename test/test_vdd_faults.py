# SPDX-License-Identifier: Apache-2.0
"""Faults of the official VDD code, one test each: what it does, reproduced in a few lines, and that ours doesn't.

Two more stand elsewhere: the score of VP teachers (test_vp.py) and the tables of repeated factors (test_gaussians.py).
"""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from test_vdd import Free, TwoModes, recorded  # noqa: E402

from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import vdd  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy  # noqa: E402
from ros_vdd.policies.gaussians import Diagonal  # noqa: E402
from ros_vdd.policies.mixture import Mixture, MixtureConfig, MixturePolicy  # noqa: E402
from ros_vdd.training.config import LoopConfig, TrainConfig  # noqa: E402


def test_the_learning_rate_lasts_to_the_last_iteration():
    """Official: a schedule of n + 1 steps is stepped twice an iteration, so experts stop learning half way."""
    steps, config = 20_000, LoopConfig(steps=20_000, learning_rate=1e-4, final_learning_rate=1e-6)
    official = [max(0.0, 1e-4 * (1 - 2 * step / (steps + 1))) for step in (steps // 2 + 1, steps - 1)]
    assert official == [0.0, 0.0]
    rates = [config.learning_rate_at(step) for step in range(config.warmup_steps, steps)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:]))
    assert config.learning_rate_at(steps // 2) == pytest.approx(5e-5, rel=0.05)
    assert config.learning_rate_at(steps - 1) >= 1e-6


def official_log_responsibility(log_gate, log_probs):
    """In probability space with a floor of 1e-8 under the mixture's density, as its expert step forms it."""
    joint = log_gate + log_probs
    return joint - (joint.exp().sum(dim=-1, keepdim=True) + 1e-8).log()


@pytest.mark.parametrize("size, official", [(2, -1.39), (9, -1.45), (14, -3.48), (56, -62.5)])
def test_four_equal_experts_share_a_sample_in_any_dimension(size, official):
    """The truth is ln 1/4 = -1.386 whatever the sample; the floor makes the official code say less from 9 numbers on."""
    experts, log_gate = Diagonal(torch.zeros(1, 4, size), torch.ones(1, 4, size)), torch.full((1, 4), -math.log(4))
    x = torch.randn(1, 4096, size, generator=torch.Generator().manual_seed(size))
    ours = Mixture(experts, log_gate).responsibilities(x)
    torch.testing.assert_close(ours, torch.full_like(ours, -math.log(4)), rtol=0, atol=1e-5)
    assert official_log_responsibility(log_gate, experts.log_prob(x)).mean().item() == pytest.approx(official, rel=0.03)


def test_repulsion_between_experts_lasts_in_high_dimensions():
    """Official: under the floor ln q~ no longer depends on the other experts, and they collapse onto one mode."""
    size = 56
    experts = Diagonal(torch.stack([torch.zeros(size), torch.full((size,), 0.1)])[None], torch.ones(1, 2, size))
    x = experts.mean[:, :1].clone().requires_grad_()
    log_gate = torch.full((1, 2), -math.log(2))
    (ours,) = torch.autograd.grad(Mixture(experts, log_gate).responsibilities(x)[..., 0].sum(), x)
    expected = (x.detach() - 0.1 - x.detach()) * 0.5  # share of the other expert is within a few percent of one half
    assert torch.cosine_similarity(ours.flatten(), expected.flatten(), dim=0) > 0.999
    assert ours.abs().min() > 0.02


@pytest.mark.parametrize("wrong", [{"covariance": "Full"}, {"gate": "Learned"}, {"covariance": "diag"}])
def test_a_name_that_isnt_known_to_the_letter_is_refused(wrong):
    """Official: 'mish' silently gives PReLU and 'tanh' gives Sigmoid."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(MixtureConfig, wrong)


def test_dropout_disturbs_neither_gate_nor_responsibilities():
    """Official: dropout is active while gate features and responsibilities are formed."""
    config = build(MixtureConfig, {**toy.NETWORKS["mixture"], "dropout": 0.5})
    policy = MixturePolicy(toy.BLIND, config).train()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    teacher = DiffusionPolicy(toy.BLIND, build(DiffusionConfig, toy.NETWORKS["diffusion"])).eval()
    batch = {"state": torch.randn(6, 2, 2), "actions": torch.randn(6, 4, 2), "mask": torch.ones(6, 4)}
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        _, figures = vdd.Method(vdd.Options(), policy, teacher).loss(batch, Draws(0))
        found.append(figures)
    assert found[0]["experts"] != found[1]["experts"], "the experts are trained with dropout"
    assert found[0]["gate"] == found[1]["gate"] and found[0]["gate_entropy"] == found[1]["gate_entropy"]
    assert policy.training


@pytest.mark.parametrize("key", ["final_num_rollouts", "num_final_rollouts"])
def test_a_configuration_key_that_nothing_reads_is_refused(key):
    """Official: final_num_* are never read, so the final evaluation isn't the configured one."""
    with pytest.raises(ConfigError, match=key):
        build(TrainConfig, {"name": "x", "method": "vdd", "data": "d", key: 480})


def test_the_policy_is_the_last_average_and_not_the_best_of_many_rollouts(tmp_path):
    """Official: the best of all checkpoints on 40 rollouts is kept and reported. Nothing here looks at a rollout in training."""
    store = toy.store(tmp_path / "store")
    config = build(TrainConfig, toy.config("em", "mixture", store.root, {"steps": 4, "validate_every": 1}))
    bundle = TrainingRun(config, str(tmp_path / "policy"), progress=False).run()
    assert sorted(p.name for p in bundle.path.iterdir()) == ["SHA256SUMS", "policy.yaml", "weights.safetensors"]
    assert bundle.manifest.scores == {}


def test_the_teacher_is_asked_once_a_step_for_all_samples():
    """Official: the toy's score is evaluated B times too often."""
    teacher = TwoModes()
    vdd.Method(vdd.Options(samples=5), Free([-1.0, 1.0], [0.3, 0.3]), teacher).loss(recorded(16), Draws(0))
    assert [len(sigma) for sigma in teacher.asked] == [16 * 2 * 5]


def test_students_learn_from_pictures(tmp_path):
    """Official: the image path uses buffers that are never defined."""
    store = toy.store(tmp_path / "store", toy.SEEING)
    windows = Windows(store, range(len(store)), 2, 4)
    student, teacher = toy.network("mixture", toy.SEEING), toy.network("diffusion", toy.SEEING)
    loss, _ = vdd.Method(vdd.Options(), student, teacher).loss(windows.batch(torch.arange(8).numpy()), Draws(0))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in student.encoders["images_top"].parameters())
