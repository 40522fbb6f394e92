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
from ros_vdd.errors import ConfigError, EngineError, PolicyError  # noqa: E402
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


@pytest.mark.parametrize(
    "samples, rank", [([1, 2, 3, 4], 0.5), ([3, 4, 5, 6], 0.0), ([0, 1, 2, 2.4], 1.0), ([2.5, 2.5, 0, 9], 0.5)]
)
def test_the_rank_is_the_share_of_own_chunks_that_are_less_strange(samples, rank):
    assert Energy(2.5, np.array(samples)).rank == rank


def test_the_score_counts_robust_standard_deviations_in_any_unit():
    samples = np.random.default_rng(0).normal(3, 2, 100_000)
    said = Energy(7.0, samples)
    assert said.score == pytest.approx(2, rel=0.02)  # of a normal law they are its standard deviations
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
    from ros_vdd.offline.export_sampler import resampled

    with pytest.raises(PolicyError, match="was trained for its 2 steps and has weights for each; leave --steps out"):
        resampled(folder(tmp_path / "bare"), tmp_path / "out", 1, None)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_slope_is_what_autograd_says(step):
    """In float64, with padding, at every level, through norms, SiLUs and conditions."""
    network, (x, condition, mask) = critic().double(), [value.double() for value in inputs()]
    mask[:2, 4:] = 0
    steps, x = torch.full((5,), step), (3 * x).requires_grad_()
    (expected,) = torch.autograd.grad(network(x, steps, condition, mask).sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(network.slope(x, steps, condition, mask), expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().min(dim=1).values[2:].min() > 0 and not expected[:2, 4:].any()


def bowl(centre):
    """Return a slope, and the energy that it is of: a quadratic bowl at every step."""
    return lambda x, step, *_: x - centre, lambda x, *_: 0.5 * (x - centre).square().sum(dim=1)


def guided(guidance, sigma_data=100.0):
    """Return a student whose clean estimate is nearly the state itself, so that what moves a state moves the chunk."""
    fields = {**toy.NETWORKS["few_step"], **toy.FEW_STEPS["dxmi"], "guidance": guidance, "sigma_data": sigma_data}
    fields["sampler"] = {"steps": 3, "sigma_max": 0.5, "clip": False}
    torch.manual_seed(0)
    make, configuration = policies.KINDS["few_step"]
    return make(toy.BLIND, build(configuration, fields)).eval()


def test_guidance_lowers_the_energy_of_samples_the_more_the_further():
    context, noise = torch.zeros(500, 4), torch.randn(500, 3, 4, 2, generator=torch.Generator().manual_seed(1))
    slope, energy = bowl(0.5)
    energies = []
    for guidance in (0.0, 0.5, 1.0):
        policy = guided(guidance)
        policy.critic.slope = slope
        with torch.no_grad():
            energies.append(energy(policy.sample(context, noise)).mean().item())
    assert energies[0] > 1.1 * energies[1] > 1.1 * 1.1 * energies[2]


def test_guidance_moves_each_noised_state_by_sigma_times_the_slope():
    policy, context = guided(0.7), torch.zeros(6, 4)
    noise = torch.randn(6, 3, 4, 2, generator=torch.Generator().manual_seed(1))
    asked = []

    def slope(x, step, condition, mask):
        asked.append((step[0].item(), mask.mean().item()))
        return torch.ones_like(x)

    policy.critic.slope = slope
    with torch.no_grad():
        plain, moved = policy.walk(context, noise)[0], policy.walk(context, noise, 0.7)[0]
    torch.testing.assert_close(moved[0], plain[0])
    torch.testing.assert_close(moved[1], plain[1] - 0.7 * policy.log_sigma[0].exp())
    assert asked == [(1, 1.0), (2, 1.0)]  # where noise is added; the chunk itself isn't moved


def test_guidance_follows_the_critics_own_value_downhill():
    """A trained-like critic instead of a bowl: what is guided by little ends lower in V at the first state that is moved."""
    torch.manual_seed(3)
    policy = toy.network("few_step", **toy.FEW_STEPS["dxmi"])
    context, noise = torch.randn(200, 4), torch.randn(200, 2, 4, 2)
    with torch.no_grad():
        plain, moved = (policy.walk(context, noise, g)[0][1] for g in (0.0, 0.1))
        value = lambda x: policy.critic(x, torch.ones(200).long(), context, torch.ones_like(x))  # noqa: E731
        assert (value(moved) <= value(plain)).float().mean() > 0.99 and value(moved).mean() < value(plain).mean()


def test_a_guided_student_exports_and_differs(tmp_path, student):
    from ros_vdd.offline.export import export
    from ros_vdd.offline.export_sampler import resampled

    made = export(resampled(student, tmp_path / "guided", None, None, 2.0), draws=5)
    assert made.manifest.network["guidance"] == 2.0 and made.manifest.export["parity_max_normalised"] < 1e-4
    inputs = backends.random_inputs(made, np.random.default_rng(0))
    plain, *guided = (
        backends.load(bundle, name).run(inputs)["actions"]
        for bundle, name in ((student, "onnxruntime"), (made, "onnxruntime"), (made, "eager"))
    )
    np.testing.assert_allclose(*guided, atol=1e-5)
    assert np.abs(plain - guided[0]).max() > 1e-3


def test_guidance_without_meaning_is_refused(tmp_path):
    from ros_vdd.offline.export_sampler import resampled
    from ros_vdd.policies.few_step import FewStepConfig

    for wrong in ({"guidance": 0.1}, {"guidance": 0.1, "walk": "posterior", "sampler": {"steps": 2}}):
        with pytest.raises(ConfigError, match="only a student that walks by 'posterior' and has a critic is guided by it"):
            build(FewStepConfig, wrong)
    with pytest.raises(ConfigError, match="'guidance' is -1.0; expected at least 0"):
        build(FewStepConfig, {"guidance": -1.0})
    with pytest.raises(PolicyError, match="mixture policy without a critic to guide it; leave --guidance out"):
        resampled(toy.policy(tmp_path / "mixture", "mixture"), tmp_path / "out", None, None, 0.1)
