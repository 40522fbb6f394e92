# SPDX-License-Identifier: Apache-2.0
"""The critic of a student: its last value is the energy, padding changes nothing, a chunk is ranked among the student's own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the critic needs torch")

import ros_vdd  # noqa: E402
import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.bundle import WEIGHTS, write  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.errors import EngineError, PolicyError  # noqa: E402
from ros_vdd.networks.critic import Critic  # noqa: E402
from ros_vdd.runtime.energy import Energy, EnergyRunner  # noqa: E402

LEVELS = [20.0, 0.5, 0.0]
OBSERVATION = toy.observation(toy.BLIND)


def critic(size=6, trained=True) -> Critic:
    torch.manual_seed(0)
    made = Critic(size, 3, LEVELS, 16, 2)
    if trained:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return made.eval()


def inputs(rows=5, size=6):
    torch.manual_seed(1)
    return torch.randn(rows, size), torch.randn(rows, 3), torch.ones(rows, size)


def test_the_value_at_the_last_step_is_the_energy():
    network, (x, condition, mask) = critic(), inputs()
    assert torch.equal(network.energy(x, condition, mask), network(x, torch.full((5,), 2), condition, mask))


def test_an_untrained_critic_holds_everything_for_alike():
    x, condition, mask = inputs()
    assert torch.equal(critic(trained=False)(x, torch.tensor([0, 1, 2, 0, 1]), condition, mask), torch.zeros(5))


def test_step_observation_and_mask_are_told():
    network, (x, condition, mask) = critic(), inputs()
    said = network(x, torch.ones(5).long(), condition, mask)
    fewer = torch.cat([mask[:, :4], torch.zeros(5, 2)], dim=1)
    step = torch.ones(5).long()
    for other in ((x, step - 1, condition, mask), (x, step, condition + 1, mask), (x, step, condition, fewer)):
        assert not torch.isclose(network(*other), said).any()


def test_what_the_mask_leaves_out_changes_nothing():
    network, (x, condition, mask) = critic(), inputs()
    mask[:, 4:] = 0
    spoilt = torch.where(mask.bool(), x, torch.tensor(1e6))
    assert torch.equal(network.energy(x, condition, mask), network.energy(spoilt, condition, mask))


def test_states_of_every_level_come_in_at_the_same_scale():
    network, (x, condition, mask) = critic(), inputs()
    seen = []
    network.enter.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, :6]))
    for step, level in enumerate(LEVELS):
        network(x * (level**2 + 0.25) ** 0.5, torch.full((5,), step), condition, mask)
    for one in seen:
        torch.testing.assert_close(one, x)


@pytest.mark.parametrize("samples, rank", [([1, 2, 3, 4], 0.5), ([3, 4, 5, 6], 0.0), ([0, 1, 2, 2.4], 1.0), ([2.5, 2.5, 0, 9], 0.5)])
def test_the_rank_is_the_share_of_own_chunks_that_are_less_strange(samples, rank):
    assert Energy(2.5, np.array(samples)).rank == rank


def test_the_score_counts_robust_standard_deviations_in_any_unit():
    samples = np.random.default_rng(0).normal(3, 2, 100_000)
    said = Energy(7.0, samples)
    assert said.score == pytest.approx(2, rel=0.02)  # scipy.stats.median_abs_deviation(scale="normal") makes it 1 for a normal law
    assert Energy(5 * 7.0 - 9, 5 * samples - 9).score == pytest.approx(said.score)
    assert Energy(3.0, np.array([3.0, 3.0])).score == 0 and np.isfinite(Energy(4.0, np.array([3.0, 3.0])).score)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The folder of an untrained student with a critic, exported; every test reads it only."""
    pytest.importorskip("onnxscript", reason="export needs onnxscript")
    pytest.importorskip("onnxruntime", reason="the graph is run by onnxruntime")
    from ros_vdd.offline.export import export

    return export(folder(tmp_path_factory.mktemp("exported") / "student"), draws=5)


def folder(path):
    from safetensors.torch import save

    torch.manual_seed(0)
    fields = {**toy.NETWORKS["few_step"], **toy.FEW_STEPS["dxmi"]}
    make, configuration = policies.KINDS["few_step"]
    made = make(toy.BLIND, build(configuration, fields))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.action_normalizer.fit(np.array([[-1.0, -2.0], [1.0, 2.5]]))
    made.state_normalizer.fit(np.array([[-0.5, 0.0], [1.5, 2.0]]))
    return write(path, policies.manifest(made, "toy_student"), {WEIGHTS: save(made.state_dict())})


@pytest.mark.parametrize("length", [1, 4])
def test_the_graph_tells_the_energies_that_pytorch_tells(length, student):
    chunk = np.random.default_rng(0).uniform(-1, 1, (length, 2)).astype(np.float32)
    said = ros_vdd.load(student.path).energy(OBSERVATION, chunk)
    policy = policies.load(student)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((backends.ENERGY_SAMPLES, 2, 4, 2), np.float32))
    seen = {name: torch.from_numpy(value)[None] for name, value in OBSERVATION.items()}
    context, mask = policy.context(seen), torch.zeros(1, 4, 2)
    mask[:, :length] = 1
    with torch.no_grad():
        own = policy.sample(context.expand(len(noise), -1), noise)
        samples = policy.critic.energy(own, context.expand(len(noise), -1), mask.flatten(1).expand(len(noise), -1))
        whole = torch.cat([torch.from_numpy(chunk), torch.zeros(4 - length, 2)])[None]
        energy = policy.critic.energy(policy.from_chunk(whole), context, mask.flatten(1))
    np.testing.assert_allclose(said.samples, samples, rtol=1e-4, atol=1e-5)
    assert said.energy == pytest.approx(energy.item(), rel=1e-4, abs=1e-5)


def test_the_same_question_has_the_same_answer(student):
    policy = ros_vdd.load(student.path)
    chunk = policy.act(OBSERVATION)
    first = policy.energy(None, chunk)
    np.testing.assert_array_equal(policy.energy(OBSERVATION, chunk).samples, first.samples)
    assert 0 <= first.rank <= 1 and first.excess == pytest.approx(first.energy - np.median(first.samples))


@pytest.mark.parametrize("wrong", [np.zeros((5, 2)), np.zeros((0, 2)), np.zeros((4, 3)), np.full((4, 2), np.nan)])
def test_a_chunk_that_does_not_fit_is_refused(wrong, student):
    with pytest.raises(EngineError, match="chunk"):
        ros_vdd.load(student.path).energy(OBSERVATION, wrong)


def test_an_energy_that_is_not_finite_is_refused(student):
    answer = {"energy": np.full(1, np.nan), "samples": np.zeros((1, 3))}
    engine = type("Engine", (), {"name": "broken", "run": lambda self, inputs: answer})()
    with pytest.raises(EngineError, match="engine 'broken' answered an energy that isn't finite"):
        EnergyRunner(student, engine).evaluate(OBSERVATION, np.zeros((4, 2)))


def test_the_measured_error_is_recorded(student):
    assert 0 < student.manifest.export["parity_energy"] < 1e-3


def test_a_policy_without_a_critic_says_so(tmp_path):
    with pytest.raises(EngineError, match="mixture policy without a critic; only a student that was trained with one"):
        backends.load_energy(toy.policy(tmp_path / "mixture", "mixture"))


def test_a_student_that_was_not_exported_says_how(tmp_path):
    with pytest.raises(PolicyError, match="no 'critic.onnx'.*ros-vdd export"):
        backends.load_energy(folder(tmp_path / "bare"))


def test_a_student_with_weights_for_each_step_keeps_its_steps(tmp_path):
    from ros_vdd.offline.export import resampled

    with pytest.raises(PolicyError, match="was trained for its 2 steps and has weights for each; leave --steps out"):
        resampled(folder(tmp_path / "bare"), tmp_path / "out", 1, None)
