# SPDX-License-Identifier: Apache-2.0
"""VDD against an exact two-mode teacher: modes and widths found, at rest in the teacher, gradients stopped."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import vdd  # noqa: E402
from ros_vdd.policies.gaussians import Diagonal  # noqa: E402
from ros_vdd.policies.mixture import Mixture  # noqa: E402
from ros_vdd.policies.normalizer import Normalizer  # noqa: E402

MODE, STD = 1.2, 0.2


class TwoModes:
    """A teacher whose density is known: half N(-MODE, STD^2), half N(MODE, STD^2)."""

    def __init__(self):
        self.asked = []

    levels = None

    def context(self, batch, draws):
        return batch["state"].flatten(1)

    def score(self, x, sigma, context):
        assert len(x) == len(sigma) == len(context), "the teacher is asked a row at a time"
        self.asked.append(sigma)
        variance = STD**2 + sigma[:, None] ** 2
        return (MODE * torch.tanh(MODE * x / variance) - x) / variance


class Free(torch.nn.Module):
    """A student whose mixture is its parameters, the same for every observation."""

    def __init__(self, means, stds, log_gate=(0.0, 0.0)):
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor(means)[:, None])
        self.log_stds = torch.nn.Parameter(torch.tensor(stds).log()[:, None])
        self.logits = torch.nn.Parameter(torch.tensor(log_gate))

    def condition(self, batch):
        return batch["state"]

    def from_chunk(self, actions):
        return actions.flatten(1)

    def mixture(self, condition):
        count = len(condition)
        stds, log_gate = self.log_stds.exp(), self.logits.log_softmax(0)
        experts = Diagonal(self.means.expand(count, -1, -1), stds.expand(count, -1, -1))
        return Mixture(experts, log_gate.expand(count, -1))

    def steady(self, condition, mixture):
        return mixture


def recorded(count=128, share=0.5):
    """Demonstrations of which `share` lie at the upper mode."""
    side = torch.where(torch.arange(count) < share * count, 1.0, -1.0)
    return {"state": torch.zeros(count, 1), "actions": (MODE * side)[:, None, None], "mask": torch.ones(count, 1)}


def trained(student, steps=500, batch=None, **options):
    """Run VDD with Adam, and return the student averaged over the last fifth."""
    method = vdd.Method(vdd.Options(**{"samples": 8, **options}), student, TwoModes())
    batch, draws = batch or recorded(), Draws(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    total = [torch.zeros_like(p) for p in student.parameters()]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps) + 1e-3
        loss, _ = method.loss(batch, draws, step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps * 4 // 5:
            total = [t + p.detach() for t, p in zip(total, student.parameters())]
    for parameter, value in zip(student.parameters(), total):
        parameter.data = value / (steps - steps * 4 // 5)
    return student


def gradients(student, teacher=None, seed=0, batch=None, **options):
    method = vdd.Method(vdd.Options(**options), student, teacher or TwoModes())
    loss, _ = method.loss(batch or recorded(), Draws(seed), 0.0)
    loss.backward()
    return {name: p.grad for name, p in student.named_parameters()}


def test_matched_noise_finds_modes_and_width_of_the_teacher():
    student = trained(Free([-0.2, 0.3], [0.5, 0.5]))
    assert student.means[:, 0].tolist() == pytest.approx([-MODE, MODE], abs=0.03)
    assert student.log_stds.exp()[:, 0].tolist() == pytest.approx([STD, STD], rel=0.1)


def test_clean_queries_find_the_modes_and_the_smoothed_width():
    """The published queries see the teacher smoothed at sigma, whose width is sqrt(std^2 + sigma^2)."""
    sigma = 0.3
    student = trained(Free([-0.2, 0.3], [0.5, 0.5]), noise="clean", sigma_min=sigma, sigma_max=sigma)
    assert student.means[:, 0].tolist() == pytest.approx([-MODE, MODE], abs=0.03)
    assert student.log_stds.exp()[:, 0].tolist() == pytest.approx([math.hypot(STD, sigma)] * 2, rel=0.05)


def test_the_teacher_itself_is_where_matched_vdd_rests():
    """At the optimum the expected gradient vanishes; 5 standard errors of 400 independent estimates are allowed."""
    drawn = []
    for seed in range(400):
        got = gradients(Free([-MODE, MODE], [STD, STD]), seed=seed, batch=recorded(32), samples=4)
        drawn.append(torch.cat([got["means"], got["log_stds"]]).flatten())
    drawn = torch.stack(drawn)
    assert (drawn.mean(0).abs() < 5 * drawn.std(0) / math.sqrt(400)).all()
    assert (drawn.std(0) / math.sqrt(400)).max() < 0.01, "the test could see a gradient"


def test_the_gate_learns_the_shares_of_the_demonstrations():
    student = trained(Free([-MODE, MODE], [STD, STD]), steps=300, batch=recorded(share=0.75))
    assert student.logits.softmax(0).tolist() == pytest.approx([0.25, 0.75], abs=0.02)


def test_the_order_of_the_experts_doesnt_matter(monkeypatch):
    real = Draws.normal
    same = lambda draws, shape: real(draws, (shape[0], 1, *shape[2:])).expand(shape)  # noqa: E731
    monkeypatch.setattr(Draws, "normal", same)  # every expert gets the same noise, so that swapping swaps all of it
    one = gradients(Free([-0.4, 0.9], [0.3, 0.6], (0.7, -0.2)))
    other = gradients(Free([0.9, -0.4], [0.6, 0.3], (-0.2, 0.7)))
    for name, value in one.items():
        torch.testing.assert_close(other[name].flip(0), value, rtol=1e-5, atol=1e-6, msg=name)


def test_no_gradient_reaches_the_teacher():
    teacher, student = toy.network("diffusion"), toy.network("mixture")
    batch = {"state": torch.randn(3, 2, 2), "actions": torch.randn(3, 4, 2), "mask": torch.ones(3, 4)}
    loss, _ = vdd.Method(vdd.Options(), student, teacher).loss(batch, Draws(0), 0.0)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.mean_head.weight.grad.any()


def test_the_experts_loss_gives_the_gate_no_gradient():
    got = gradients(Free([-0.4, 0.9], [0.3, 0.6], (0.7, -0.2)), gate_weight=0.0)
    assert not got["logits"].any()
    assert got["means"].all() and got["log_stds"].all()


def test_the_gates_loss_gives_the_experts_no_gradient():
    without, with_it = (
        gradients(Free([-0.4, 0.9], [0.3, 0.6]), batch=recorded(share=0.8), gate_weight=w) for w in (0.0, 1.0)
    )
    assert torch.equal(without["means"], with_it["means"]) and torch.equal(without["log_stds"], with_it["log_stds"])
    assert with_it["logits"].any()


def test_an_expert_whose_gate_is_zero_still_learns():
    dead = Free([-0.4, 0.9], [0.3, 0.6], (50.0, -50.0))
    assert gradients(dead)["means"][1].abs() > 1e-4
    dead.zero_grad()
    assert not gradients(dead, gate_floor=0.0)["means"][1].any()


def test_the_teacher_is_asked_at_levels_inside_the_range_only():
    teacher = TwoModes()
    gradients(Free([-0.4, 0.9], [0.3, 0.6]), teacher, sigma_min=0.15, sigma_max=0.4)
    levels = torch.cat(teacher.asked)
    assert 0.15 - 1e-6 <= levels.min() < levels.max() <= 0.4 + 1e-6


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"sigma_min": 0.0}, {"sigma_min": 0.6}, {"gate_floor": 1.0}, {"gate_weight": -1.0}]
)
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        vdd.Options(**wrong)


class Recording(TwoModes):
    """A teacher that keeps the observations it is shown."""

    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def context(self, batch, draws):
        self._seen.append(batch)
        return batch["state"].flatten(1)


class RecordingStudent(Free):
    """A student that keeps the observations it is shown, in order."""

    def __init__(self, seen):
        super().__init__([-1.0, 1.0], [0.5, 0.5])
        self._seen = seen
        self.state_normalizer = Normalizer(2)

    def condition(self, batch):
        self._seen.append(batch)
        return batch["state"].flatten(1)


def shown(noise):
    """Return the batch and what student and teacher were shown of it: student, teacher, then the student's gate."""
    seen = []
    batch = {**recorded(8), "state": torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(1))}
    method = vdd.Method(vdd.Options(observation_noise=noise), RecordingStudent(seen), Recording(seen))
    method.loss(batch, Draws(0))
    return batch["state"], [observation["state"] for observation in seen]


def test_observation_noise_moves_student_and_teacher_and_all_ticks_alike():
    state, (student, teacher, gate) = shown(noise=0.5)
    assert torch.equal(student, teacher) and torch.equal(gate, state)
    offsets = student - state
    assert (offsets != 0).all()
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets))


def test_without_observation_noise_the_recorded_observation_is_used():
    state, seen = shown(noise=0.0)
    assert len(seen) == 2 and all(torch.equal(observation, state) for observation in seen)


class Sampling(TwoModes):
    """A teacher that always samples the same chunk."""

    CHUNK = 0.7

    def sample(self, context, noise):
        return torch.full_like(noise, self.CHUNK)


def gate_after(targets, state):
    """Return how likely the expert near the recorded chunks became, by the gate's gradient alone; recorded: expert 0."""
    student = Free([-MODE, Sampling.CHUNK], [STD, STD])
    student.chunk_size = 1
    options = vdd.Options(targets=targets, expert_weight=0.0, likelihood_weight=0.0)
    batch = {**recorded(share=0.0), "state": state}
    loss, _ = vdd.Method(options, student, Sampling()).loss(batch, Draws(0))
    loss.backward()
    return -student.logits.grad


def test_the_gate_learns_from_recorded_or_from_the_teachers_chunks():
    state = torch.zeros(128, 1)
    recorded_push, teacher_push = gate_after("recorded", state), gate_after("teacher", state)
    assert teacher_push[1] > 0.49 > 0 > teacher_push[0]
    assert torch.sign(recorded_push[0]) != torch.sign(teacher_push[0])


def test_without_expert_weight_the_teachers_score_is_not_asked():
    student, teacher = Free([-MODE, MODE], [STD, STD]), Sampling()
    student.chunk_size = 1
    vdd.Method(vdd.Options(targets="teacher", expert_weight=0.0), student, teacher).loss(
        recorded(), Draws(0)
    )
    assert teacher.asked == []
