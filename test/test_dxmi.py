# SPDX-License-Identifier: Apache-2.0
"""DxMI: its walk, costs, values and energies against closed forms; the trained noise of a step against its known optimum."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.diffusion.walks import boxed  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import dxmi  # noqa: E402
from ros_vdd.methods._dxdp import Costs, DynamicProgram, Velocity, Walked, ending_in  # noqa: E402
from ros_vdd.policies.few_step import FewStepConfig, FewStepPolicy  # noqa: E402

ROWS, SIZE = 16, 8
CRITIC = {"width": 16, "depth": 1}
SAMPLER = {"steps": 2, "sigma_min": 0.01, "sigma_max": 2.0, "clip": False}


def student(robot=toy.BLIND, **changes) -> FewStepPolicy:
    """Return an untrained posterior student with a critic; its first step is from level 2 to 0.3 or so."""
    torch.manual_seed(0)
    fields = {**toy.NETWORKS["few_step"], "walk": "posterior", "critic": CRITIC, "sampler": SAMPLER, **changes}
    made = FewStepPolicy(robot, build(FewStepConfig, fields))
    made.action_normalizer.fit(np.array([[-1.0, -2.0], [1.0, 2.5]]))
    made.state_normalizer.fit(np.array([[-0.5, 0.0], [1.5, 2.0]]))
    return made


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    store = toy.store(tmp_path_factory.mktemp("dxmi") / "store")
    windows = Windows(store, range(len(store)), 2, 4)
    return windows.batch(np.arange(len(windows) - ROWS, len(windows)))  # the last ones are padded


def method(policy=None, **options) -> dxmi.Method:
    return dxmi.Method(build(dxmi.Options, options), policy or student(), toy.network("diffusion"))


def program(value, policy=None, **options) -> DynamicProgram:
    return DynamicProgram(build(Costs, options), policy or student(), value)


def says(policy, clean):
    """Let the denoiser's estimate be this, whatever it is asked."""
    policy.denoiser.forward = lambda x, sigma, condition: clean.expand_as(x)
    return policy


def test_a_walk_to_one_point_has_the_noise_of_each_level():
    """The diffusion's own steps keep its marginals: where all data are m, N(m, s^2), but for the start at 0 instead of m."""
    policy = says(student(sampler={**SAMPLER, "steps": 4}), torch.full((1, SIZE), 0.3))
    states, chunk = policy.walk(torch.zeros(20_000, 4), Draws(0).normal((20_000, *policy.noise_shape)))
    for x, level in list(zip(states, policy.levels_walked))[1:]:
        assert (x - 0.3).std().item() == pytest.approx(level, rel=0.02)
        assert x.mean().item() == pytest.approx(0.3 * (1 - level**2 / 4), abs=0.02 * level)
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3))


def test_a_posterior_walk_is_what_the_formula_says(batch):
    policy = student(sampler={**SAMPLER, "steps": 3}, grid=6)
    context, noise = policy.context(batch), Draws(1).normal((ROWS, *policy.noise_shape))
    with torch.no_grad():
        policy.log_sigma.add_(0.2)
        states, chunk = policy.walk(context, noise)
        x = policy.levels_walked[0] * noise.flatten(2)[:, 0]
        for t, (now, then) in enumerate(zip(policy.levels_walked, policy.levels_walked[1:])):
            torch.testing.assert_close(states[t], x)
            clean = policy.denoiser(x, torch.full((ROWS,), now), context)
            x = clean + (then / now) ** 2 * (x - clean)
            if t < 2:
                x = x + np.exp(0.2) * then * np.sqrt(1 - (then / now) ** 2) * noise.flatten(2)[:, t + 1]
    torch.testing.assert_close(chunk, x)


def test_the_last_step_alone_adds_no_noise():
    assert student().noise_shape == (2, 4, 2) and student().log_sigma.shape == (1,)


@pytest.mark.parametrize("pushed, kept", [(50.0, 3.0), (-50.0, 1 / 3)])
def test_no_weights_leave_the_bounds_of_sigma(pushed, kept):
    policy = student()
    own = policy.log_sigma.exp().item()
    with torch.no_grad():
        policy.log_sigma.add_(pushed)
    assert policy.bounded(policy.log_sigma).exp().item() == pytest.approx(kept * own)


def test_a_gradient_leads_back_into_the_box_and_never_further_out():
    x = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    boxed(x, 1.0).backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    assert x.grad.tolist() == [0, -1, 1, 1, 0]
    assert boxed(x, 1.0).tolist() == [-1, -1, 0.5, 1, 1] and boxed(x, None) is x


def test_costs_are_those_of_the_formula():
    """Two numbers count; displacement (1, 2, anything); s^2 0.5 and 2."""
    made = program(None, tau_entropy=0.3, tau_velocity=0.7)
    made.velocity.squares = torch.tensor([0.5, 2.0])
    x, following, mask = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 99.0]] * 2), torch.tensor([[1.0, 1.0, 0.0]] * 2)
    cost = made.cost(x, following, torch.tensor([0, 1]), mask, torch.tensor([-1.5]))
    assert cost.tolist() == pytest.approx([0.7 * 2.5 / (2 * 0.5) + 0.3 * 1.5, 0.7 * 2.5 / (2 * 2.0)])


@pytest.mark.parametrize("free", [0, 1, 2])
def test_the_last_free_steps_cost_nothing(free):
    made = program(None, free_steps=free)
    x, mask, index = torch.zeros(2, SIZE), torch.ones(2, SIZE), torch.tensor([0, 1])
    cost = made.cost(x, x + 1, index, mask, torch.tensor([-1.5]))
    assert (cost != 0).tolist() == [free < 2, free < 1]


@pytest.mark.parametrize("free, words", [(3, "at most 'policy.sampler.steps' 2"), (-1, "expected 0")])
def test_free_steps_that_there_arent_are_refused(free, words):
    with pytest.raises(ConfigError, match=words):
        program(None, free_steps=free)


def test_the_mean_velocity_cost_is_half_its_temperature():
    """E ||dx||^2 / (2 s^2 D) = 1/2 where s^2 is the mean square itself."""
    states = torch.randn(3, 500, SIZE, generator=torch.Generator().manual_seed(0))
    walked = Walked(states, torch.zeros(500, 4), torch.ones(500, SIZE))
    made = program(None, tau_entropy=0.0, tau_velocity=0.4)
    made.velocity.follow(walked, 0.0, Draws(0))
    for t in (0, 1):
        cost = made.cost(states[t], states[t + 1], torch.full((500,), t), walked.mask, torch.zeros(1))
        assert cost.mean().item() == pytest.approx(0.2, rel=1e-5)


def test_the_velocity_is_a_running_mean_that_begins_as_the_forward_process():
    kept = Velocity([3.0, 1.0, 0.0])
    assert kept.squares.tolist() == [8.0, 1.0]
    walked = Walked(torch.tensor([[[0.0, 0.0]], [[2.0, 9.0]], [[2.0, 9.0]]]), torch.zeros(1, 1), torch.tensor([[1.0, 0.0]]))
    kept.follow(walked, 0.75, Draws(0))
    assert kept.squares.tolist() == pytest.approx([0.75 * 8 + 0.25 * 4, 0.75])


@pytest.mark.parametrize("look_ahead", [True, False])
def test_a_value_is_to_become_the_next_value_plus_the_cost(look_ahead):
    made = program(lambda x, step, context, mask: 10.0 * step + x.sum(dim=1), look_ahead=look_ahead, time_cost=2.0)
    states = torch.stack([torch.full((3, SIZE), v) for v in (5.0, 1.0, 0.0)])
    walked = Walked(states, torch.zeros(3, 4), torch.ones(3, SIZE))
    made.velocity.squares = torch.tensor([4.0, 1.0])
    log_sigma = made.policy.log_sigma.item()
    slope = 2.0 * (1 / (1 + np.exp(-1.0)) - 0.5)  # T = 2, t = 0: logistic(1) - logistic(0)
    cost = 0.1 * 16 / 8 - 0.1 * log_sigma if look_ahead else 0.0
    assert made.target(walked, 0).tolist() == pytest.approx([10.0 + SIZE + cost + slope] * 3)
    cost = 0.1 * 1 / 2 if look_ahead else 0.0
    assert made.target(walked, 1).tolist() == pytest.approx([20.0 + cost + slope] * 3, rel=1e-5)


def settle(made, rows=2048, steps=120, clean=0.0):
    """Train the noise of the first step alone by the method's own update, and return it."""
    says(made.policy, torch.full((1, SIZE), clean))
    for step in range(steps):
        draws = Draws(step)
        walked = made.walk(torch.zeros(rows, 4), torch.ones(rows, SIZE), draws)
        made.step_loss(walked, draws)
        made.step_sigma()
    return made.policy.bounded(made.policy.log_sigma).exp().item()


@pytest.mark.parametrize("stiffness", [0.5, 8.0])
def test_sigma_settles_where_a_quadratic_energy_has_its_optimum(stiffness):
    """min_sigma k sigma^2 / 2 + tau_v sigma^2 / (2 s^2) - tau_e ln sigma  at  sigma^2 = tau_e / (k + tau_v / s^2)."""
    quadratic = lambda x, step, context, mask: 0.5 * stiffness * x.square().mean(dim=1)  # noqa: E731
    rates = {"tau_entropy": 0.2, "tau_velocity": 0.2, "sigma_learning_rate": 0.03}
    made = program(quadratic, student(sigma_bound=20.0), **rates)
    made.velocity.squares = torch.tensor([0.7, 0.7])
    assert settle(made) == pytest.approx((0.2 / (stiffness + 0.2 / 0.7)) ** 0.5, rel=0.03)


@pytest.mark.parametrize("slope, kept", [(-1.0, 2.0), (1.0, 0.5)])
def test_training_stays_within_the_bounds_of_sigma(slope, kept):
    """An energy that pays for noise without end, and one that punishes any."""
    endless = lambda x, step, context, mask: 100 * slope * x.square().mean(dim=1)  # noqa: E731
    made = program(endless, student(sigma_bound=2.0), sigma_learning_rate=0.1)
    own = made.policy.log_sigma.exp().item()
    assert settle(made, rows=64, steps=30) == pytest.approx(kept * own)
    assert made.policy.log_sigma.exp().item() == pytest.approx(kept * own), "it comes back itself, so that it can turn round"


def test_the_step_has_the_gradient_of_one_step_of_the_value():
    """With an energy k/2 |x|^2 the clean estimate of the last step is pulled by k x + tau (x - x_t) / s^2, per number and row."""
    policy = student()
    made = program(lambda x, step, context, mask: 1.5 * x.square().mean(dim=1), policy, tau_velocity=0.4, tau_entropy=0.0)
    clean = torch.full((ROWS, SIZE), 0.3, requires_grad=True)
    policy.denoiser.forward = lambda x, sigma, condition: clean
    states = torch.randn(3, ROWS, SIZE, generator=torch.Generator().manual_seed(0))
    walked = Walked(states, torch.zeros(ROWS, 4), torch.ones(ROWS, SIZE))
    made.step_loss(walked, Draws(5)).backward()
    last = Draws(5).integers(2, (ROWS,)) == 1
    expected = (3.0 * 0.3 + 0.4 * (0.3 - states[1]) / made.velocity.squares[1]) / (SIZE * ROWS)
    torch.testing.assert_close(clean.grad[last], expected[last])
    assert 0 < last.sum() < ROWS


def test_energies_part_recorded_from_sampled_chunks_and_stay_near_0(batch):
    made = method(gamma=0.5)
    made.critic.energy = lambda chunk, context, mask: chunk[:, 0]
    walked = Walked(torch.full((3, 4, SIZE), 2.0), torch.zeros(4, 4), torch.ones(4, SIZE))
    loss, figures = made.energy_loss(torch.full((4, SIZE), -1.0), walked, Draws(0))
    assert loss.item() == pytest.approx(-1 - 2 + 0.5 * (1 + 4))
    assert (figures["energy_recorded"], figures["energy_sampled"]) == (-1, 2)


def test_noised_chunks_are_to_have_a_high_energy():
    """Their noise has 0.2 to 2 sigma_data, 0.5; E = |chunk|^2 / D tells how much it was."""
    made, plain = method(gamma=0.5, noised=0.3), method(gamma=0.5)
    asked = []

    def energy(chunk, context, mask):
        asked.append(chunk)
        return chunk.square().mean(dim=1)

    made.critic.energy = plain.critic.energy = energy
    walked = Walked(torch.full((3, 4000, SIZE), 2.0), torch.zeros(4000, 4), torch.ones(4000, SIZE))
    clean = torch.zeros(4000, SIZE)
    extra = made.energy_loss(clean, walked, Draws(0))[0] - plain.energy_loss(clean, walked, Draws(0))[0]
    beside = asked[2].square().mean(dim=1)
    torch.testing.assert_close(extra, 0.3 * (0.5 * beside.square() - beside).mean())
    levels = beside.sqrt()
    assert 0.01 < levels.min() and levels.max() < 2.5
    assert levels.log().mean().item() == pytest.approx(np.log((0.1 * 1.0) ** 0.5), abs=0.1), "log-uniform from 0.1 to 1"


def test_while_the_critic_learns_alone_neither_student_nor_noise_move(batch, tmp_path):
    made = method(practice=0.5)
    made.before(batch, Draws(0), 0.2)
    made.loss(batch, Draws(1), 0.2)
    began = made.policy.log_sigma.clone()
    made.after()
    assert not made.learns(0.49) and torch.equal(made.policy.log_sigma, began)
    made.loss(batch, Draws(1), 0.5)
    made.after()
    assert made.learns(0.5) and not torch.equal(made.policy.log_sigma, began)


def test_another_energy_may_stand_at_the_end():
    policy = student()
    value = ending_in(lambda x, context, mask: (x * mask).sum(dim=1), policy.critic)
    x, mask = torch.randn(4, SIZE), torch.ones(4, SIZE)
    said = value(x, torch.tensor([0, 1, 2, 2]), torch.zeros(4, 4), mask)
    assert torch.equal(said[2:], x[2:].sum(dim=1)) and torch.equal(said[:2], torch.zeros(2)), "an untrained critic says 0"


def one_step(made, given):
    figures = made.before(given, Draws(3), 0.0)
    loss, more = made.loss(given, Draws(4), 0.0)
    loss.backward()
    return {**figures, **more}, [p.grad for p in made.policy.denoiser.parameters()]


def test_what_stands_in_padded_steps_doesnt_matter(batch):
    assert batch["mask"].min() == 0
    padded = {**batch, "actions": torch.where(batch["mask"][:, :, None].bool(), batch["actions"], batch["actions"] + 0.3)}
    (one, first), (other, second) = (one_step(method(), given) for given in (batch, padded))
    assert one == other and all(torch.equal(a, b) for a, b in zip(first, second))


def test_the_critic_learns_in_its_turn_only(batch):
    made = method()
    before = [p.clone() for p in made.critic.parameters()]
    made.before(batch, Draws(0), 0.0)
    learned = [p.clone() for p in made.critic.parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(before, learned))
    loss, _ = made.loss(batch, Draws(1), 0.0)
    loss.backward()
    made.after()
    assert all(torch.equal(a, b) for a, b in zip(learned, made.critic.parameters()))
    assert not any(p.requires_grad for p in (*made.critic.parameters(), made.policy.log_sigma))


def test_the_objective_is_the_energy_and_the_costs_of_the_walk(batch):
    made = program(lambda x, step, context, mask: torch.where(step == 2, 7.0, -99.0), tau_velocity=0.0, tau_entropy=0.5)
    walked = made.walk(torch.zeros(ROWS, 4), torch.ones(ROWS, SIZE), Draws(0))
    assert made.objective(walked).tolist() == pytest.approx([7.0 - 0.5 * made.policy.log_sigma.item()] * ROWS)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"walk": "renoise"}, "'policy.walk' is 'renoise'; dxmi trains a student that walks by 'posterior'"),
        ({"critic": None}, "'policy.critic' is missing"),
        ({"robot": toy.SEEING}, "'freeze_encoder' is false; the critic of dxmi"),
        ({"sigma_bound": 1.0}, "'tau_entropy' is 0.1, and 'policy.sigma_bound' 1 keeps the steps' noise as it is"),
    ],
)
def test_a_student_that_it_cannot_train_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        method(student(**changes))


@pytest.mark.parametrize(
    "wrong", [{"gamma": 0.0}, {"tau_entropy": -0.1}, {"critic_learning_rate": 0.0}, {"velocity_keep": 1.1}, {"critic_updates": 0}]
)
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(dxmi.Options, wrong)


@pytest.mark.parametrize(
    "wrong, said",
    [({"sampler": {"steps": 1}}, "expected at least 2"), ({"sampler": SAMPLER, "sigma_bound": 0.5}, "'sigma_bound' is 0.5")],
)
def test_a_walk_without_meaning_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        build(FewStepConfig, {"walk": "posterior", **wrong})


def moved(trust: float, batch, steps: int = 60) -> float:
    """Return how far the estimates of a student went from where it began, whose energy pulls all numbers to 0.7."""
    made = method(trust=trust, tau_entropy=0.0, tau_velocity=0.0)
    made.prepare(None, Draws(0))
    made.program.value = lambda x, step, context, mask: (x - 0.7).square().mean(dim=1)
    began = made.policy.denoiser.state_dict()
    began = {name: value.clone() for name, value in began.items()}
    optimizer = torch.optim.Adam(made.policy.denoiser.parameters(), 3e-3)
    context, mask = made.policy.context(batch), torch.ones(ROWS, SIZE)
    for step in range(steps):
        optimizer.zero_grad()
        made.program.step_loss(made.program.walk(context, mask, Draws(step)), Draws(1000 + step), made.tether).backward()
        optimizer.step()
    x, level = torch.linspace(-1, 1, ROWS)[:, None].expand(ROWS, SIZE), torch.full((ROWS,), made.program.levels[1])
    with torch.no_grad():
        ends = made.policy.denoiser(x, level, context)
        made.policy.denoiser.load_state_dict(began)
        return (ends - made.policy.denoiser(x, level, context)).square().mean().sqrt().item()


def test_trust_holds_the_student_where_it_began(batch):
    free, held = moved(0.0, batch), moved(100.0, batch)
    assert free > 0.1 and held < 0.2 * free


def test_without_trust_nothing_is_kept_beside_the_student():
    assert set(method().companions) == {"velocity"} and set(method(trust=1.0).companions) == {"velocity", "anchor"}


@pytest.mark.parametrize("trust", [-0.1, float("nan"), float("inf")])
def test_a_trust_without_meaning_is_refused(trust):
    with pytest.raises(ConfigError, match="'trust' is"):
        dxmi.Options(trust=trust)
