# SPDX-License-Identifier: Apache-2.0
"""Distribution matching: its gradient is the closed form's, its companions learn beside the student, padding counts nowhere."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="methods need torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import dmd2  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402

SIGMA = torch.tensor([0.1, 0.5, 2.0] * 5 + [1.0])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("dmd2") / "store")


@pytest.fixture(scope="module")
def batch(store):
    windows = Windows(store, range(len(store)), 2, 4)
    made = windows.batch(np.arange(len(windows) - 16, len(windows)))
    assert made["mask"].min() == 0
    return made


def method(teacher=None, **options):
    return dmd2.Method(build(dmd2.Options, options), toy.network("few_step", seed=1), teacher or toy.network("diffusion"))


def made(x, mask=None):
    nothing = torch.zeros(len(x), 1)
    return dmd2.Made(x, torch.ones_like(x) if mask is None else mask, torch.zeros_like(x), nothing, nothing)


def gaussian(mean, std):
    """Return the denoiser of N(mean, std^2 I), E[a | z]."""
    return lambda z, sigma, context: mean + std**2 / (std**2 + sigma[:, None] ** 2) * (z - mean)


def matching(real, fake, weighting="dmd"):
    """Return a method between two Gaussians, each (mean, std)."""
    matched = method(weighting=weighting)
    matched.teacher.clean, matched.fake = gaussian(*real), gaussian(*fake)
    return matched


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


def copied(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(before, *modules):
    return all(torch.equal(a, b) for a, b in zip(before, copied(*modules), strict=True))


def test_a_fake_denoiser_that_is_the_real_one_gives_no_gradient(batch):
    matched = method()
    matched.fake = matched.teacher.clean
    loss, figures = matched.loss(batch, Draws(0))
    loss.backward()
    assert loss == 0 and figures["non_finite"] == 0
    assert all((g == 0).all() for g in gradients(matched.policy))


@pytest.mark.parametrize("weighting", ["dmd", "sigma2"])
def test_the_gradient_is_the_difference_of_scores_times_the_weight(weighting):
    """Against the derivatives of torch's own densities, in float64."""
    (m, s), (mu, v) = (0.3, 0.2), (-0.4, 0.5)
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(16, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    sigma = SIGMA.double()
    got, broken = matching((m, s), (mu, v), weighting).label(made(x), sigma, noise)
    z = (x + sigma[:, None] * noise).requires_grad_()
    law = lambda mean, std: torch.distributions.Normal(mean, (std**2 + sigma[:, None] ** 2).sqrt())  # noqa: E731
    (difference,) = torch.autograd.grad((law(mu, v).log_prob(z) - law(m, s).log_prob(z)).sum(), z)
    weight = sigma[:, None] ** 2
    if weighting == "dmd":
        clean = m + s**2 / (s**2 + sigma[:, None] ** 2) * (z.detach() - m)
        weight = weight / (x - clean).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(got, weight * difference)
    assert broken == 0


def test_its_mean_is_the_gradient_of_the_reverse_divergence():
    """E_x g dx/dparameter = s^2 d KL(fake || real) / dparameter at a level s; by 400,000 draws."""
    (m, s), mean, std, sigma = (0.3, 0.2), torch.tensor(-0.4, requires_grad=True), torch.tensor(0.5, requires_grad=True), 0.7
    rng = torch.Generator().manual_seed(1)
    unit, noise = (torch.randn(400_000, 1, generator=rng) for _ in range(2))
    x = mean + std * unit
    g, _ = matching((m, s), (-0.4, 0.5), "sigma2").label(made(x.detach()), torch.full((len(x),), sigma), noise)
    got = torch.autograd.grad((0.5 * (x - (x - g).detach()).square()).mean(), (mean, std))
    law = lambda mean, std: torch.distributions.Normal(mean, (torch.as_tensor(std) ** 2 + sigma**2).sqrt())  # noqa: E731
    expected = torch.autograd.grad(sigma**2 * torch.distributions.kl_divergence(law(mean, std), law(m, s)), (mean, std))
    torch.testing.assert_close(got, expected, rtol=0.02, atol=2e-3)


def test_the_loss_hands_the_gradient_to_the_chunk_and_to_nothing_padded(batch):
    matched, seen = method(), []
    label = matched.label
    matched.label = lambda *arguments: seen.append((arguments[0], label(*arguments)[0])) or (seen[0][1], 0)
    loss, _ = matched.loss(batch, Draws(0))
    chunk, gradient = seen[0][0], seen[0][1]
    (got,) = torch.autograd.grad(loss, chunk.x)
    torch.testing.assert_close(got, gradient * chunk.mask / chunk.mask.sum())
    assert (got[chunk.mask == 0] == 0).all() and got.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"adversarial": 0.5}])
def test_what_stands_in_padded_steps_doesnt_matter(options, batch):
    elsewhere = {**batch, "actions": torch.where(batch["mask"][:, :, None].bool(), batch["actions"], batch["actions"] + 0.3)}
    results = []
    for given in (batch, elsewhere):
        matched = method(**options)
        matched.before(given, Draws(1))
        loss, _ = matched.loss(given, Draws(2))
        loss.backward()
        results.append((loss, copied(*matched.companions.values()), gradients(matched.policy)))
    (one, companions, slopes), (other, others, other_slopes) = results
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(companions + slopes, others + other_slopes, strict=True))


def test_padded_numbers_count_neither_in_the_normaliser_nor_for_the_discriminator():
    matched, mask = matching((0.3, 0.2), (-0.4, 0.5)), torch.ones(16, 8)
    mask[:, 5:] = 0
    x, noise = torch.randn(16, 8), torch.randn(16, 8)
    moved = torch.where(mask.bool(), x, x + 7)
    one, other = (matched.label(made(chunk, mask), SIGMA, noise)[0] * mask for chunk in (x, moved))
    assert torch.equal(one, other)
    judge = dmd2.Discriminator(toy.network("few_step"))
    features = torch.randn(16, judge.network.enter.in_features - 8)
    assert torch.equal(*(judge(chunk, SIGMA, features, mask) for chunk in (x, moved)))


def test_a_gradient_that_isnt_finite_is_0_and_counted():
    matched, x = matching((0.3, 0.2), (-0.4, 0.5)), torch.randn(16, 8)
    real, mask = matched.teacher.clean, torch.ones(16, 8)
    mask[3, 6:] = 0

    def spoilt(z, sigma, context):
        return torch.where(torch.arange(16)[:, None] == 3, torch.nan, real(z, sigma, context))

    expected, none = matched.label(made(x, mask), SIGMA, torch.zeros(16, 8))
    matched.teacher.clean = spoilt
    got, broken = matched.label(made(x, mask), SIGMA, torch.zeros(16, 8))
    assert (none, broken) == (0, 6)
    assert (got[3] == 0).all() and torch.equal(got[:3], expected[:3]) and torch.equal(got[4:], expected[4:])


def test_before_trains_the_companions_and_the_loss_the_student(batch):
    matched = method(adversarial=0.1, fake_steps=2)
    policy, fake, judge = matched.policy, matched.fake, matched.discriminator
    students, teachers, fakes, judges = copied(policy), copied(matched.teacher), copied(fake), copied(judge)
    figures = matched.before(batch, Draws(0))
    assert same(students, policy) and same(teachers, matched.teacher)
    assert not same(fakes, fake) and not same(judges, judge)
    assert not gradients(policy) and set(figures) == {"fake", "discriminator"}
    moved = copied(fake, judge)
    loss, _ = matched.loss(batch, Draws(1))
    loss.backward()
    assert gradients(policy) and same(moved, fake, judge)


@pytest.mark.parametrize("count", [1, 5])
def test_the_fake_denoiser_makes_as_many_steps_as_asked_for(count, batch):
    matched = method(fake_steps=count)
    matched.before(batch, Draws(0))
    assert all(state["step"] == count for state in matched.optimizers["fake"].state.values())


def test_the_fake_denoiser_begins_as_the_teacher_of_any_size_that_sees_what_the_student_does(batch):
    teacher = toy.network("diffusion")
    matched = method(teacher)
    context, x = teacher.context(batch), torch.randn(16, 8)
    assert torch.equal(matched.fake(x, SIGMA, context), teacher.denoiser(x, SIGMA, context))
    assert all(p.requires_grad for p in matched.fake.parameters())
    assert not {id(p) for p in matched.fake.parameters()} & {id(p) for p in teacher.parameters()}


def test_of_another_kind_of_teacher_it_begins_as_the_students_network():
    matched = method(toy.network("mode"))
    mine, theirs = matched.fake.network.state_dict(), matched.policy.denoiser.network.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_the_fake_denoiser_learns_what_the_student_makes(batch):
    """A student that makes N(0.5, 0.3^2) whatever it is given has a denoiser in closed form."""
    matched = method(fake_steps=20, fake_learning_rate=1e-2)
    rng = torch.Generator().manual_seed(0)
    many = {k: v.repeat(8, *[1] * (v.ndim - 1)) for k, v in batch.items()}
    matched.policy.denoiser.forward = lambda x, sigma, context: 0.5 + 0.3 * torch.randn(x.shape, generator=rng)
    many["mask"] = torch.ones_like(many["mask"])
    x, noise = (torch.randn(len(many["mask"]), 8, generator=rng) for _ in range(2))
    sigma = torch.full((len(x),), matched.middle[-2].item())
    noised = 0.5 + 0.3 * x + sigma[:, None] * noise
    exact, context = gaussian(0.5, 0.3)(noised, sigma, None), matched.policy.context(many).detach()
    away = lambda: (matched.fake(noised, sigma, context) - exact).square().mean()  # noqa: E731
    began = away()
    for step in range(6):
        matched.before(many, Draws(step))
    assert away() < 0.1 * began


def two_points(z, sigma, context):
    """Return the denoiser of chunks that are 0.5 or -0.5 throughout, with equal chance and a standard deviation of 0.1."""
    kept = 0.1**2 / (0.1**2 + sigma[:, None] ** 2)
    side = torch.tanh(0.5 * z.sum(dim=1, keepdim=True) / (0.1**2 + sigma[:, None] ** 2))
    return kept * z + (1 - kept) * 0.5 * side


def test_a_student_of_one_step_comes_to_make_both_ways_of_the_teacher_and_their_width(batch):
    sampler = {"steps": 1, "sigma_min": 0.05, "sigma_max": 2.5}
    policy = toy.network("few_step", seed=1)
    policy.config = build(type(policy.config), {**toy.NETWORKS["few_step"], "grid": 20, "sampler": sampler})
    matched = dmd2.Method(dmd2.Options(fake_steps=3, fake_learning_rate=1e-2), policy, toy.network("diffusion"))
    matched.teacher.clean = two_points
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    many = {k: v.repeat(4, *[1] * (v.ndim - 1)) for k, v in batch.items()}
    many["mask"] = torch.ones_like(many["mask"])
    for step in range(100):
        draws = Draws(step)
        matched.before(many, draws)
        loss, _ = matched.loss(many, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chunks = policy.sample(policy.context(many), Draws(1000).normal((64, *policy.noise_shape)))
    assert (chunks.abs() - 0.5).square().mean().sqrt() == pytest.approx(0.1, abs=0.05)
    assert 0.25 < (chunks.mean(dim=1) > 0).float().mean() < 0.75


def test_the_discriminator_draws_the_student_to_the_recorded_chunks(batch):
    """Both are points, wide apart; each step of the student along L_adv's gradient comes nearer."""
    matched = method(adversarial=1.0, discriminator_learning_rate=1e-2)
    here, there = torch.full((16, 8), -0.4), torch.full((16, 8), 0.4)
    features = matched.policy.context(batch).detach()
    sides = dmd2.Made(here, torch.ones(16, 8), there, features, features)
    for step in range(40):
        draws = Draws(step)
        sigma = matched._level(matched.levels, draws, 16)
        loss = matched.discriminator_loss(sides, sigma, draws.normal((16, 8)), draws.normal((16, 8)))
        matched._improve("discriminator", loss, draws)
    matched.fake = matched.teacher.clean  # the matching itself is silent
    chunk = here.clone().requires_grad_()
    matched._made = lambda *arguments: sides._replace(x=chunk)
    loss, figures = matched.loss(batch, Draws(99))
    loss.backward()
    assert figures["matching"] == 0
    towards = (-chunk.grad * (there - here)).sum(dim=1)
    assert (towards > 0).float().mean() > 0.9


def test_the_weight_of_the_adversarial_part_is_a_factor(batch):
    parts = []
    for weight in (1.0, 3.0):
        _, figures = method(adversarial=weight).loss(batch, Draws(0))
        parts.append((figures["matching"], figures["adversarial"], figures["loss"]))
    (matched, judged, one), (_, _, three) = parts
    assert (one, three) == pytest.approx((matched + judged, matched + 3 * judged))


def test_the_student_is_trained_at_every_stop_of_its_own_walk(batch):
    """The walk is that of `sample`; its last step makes the chunk."""
    matched = method()
    policy = matched.policy.eval()
    asked, real = [], policy.denoiser.forward
    policy.denoiser.forward = lambda x, sigma, context: asked.append(sigma) or real(x, sigma, context)
    matched._made(batch, Draws(0), 0.0)
    assert policy.stops == [0, 2]
    assert set(asked[-1].tolist()) == {torch.tensor(policy.grid[i]).item() for i in policy.stops}


def test_the_gradient_is_asked_for_in_the_middle_of_the_grid_and_the_fake_denoiser_knows_all_of_it():
    policy = toy.network("few_step")
    policy.config = type(policy.config)(**{**vars(policy.config), "grid": 50})
    matched = dmd2.Method(dmd2.Options(), policy, toy.network("diffusion"))
    torch.testing.assert_close(matched.levels, torch.tensor(policy.grid[:-1]).flip(0))
    torch.testing.assert_close(matched.middle, torch.tensor(policy.grid[1:-2]).flip(0))


def test_a_vp_teacher_is_asked_at_its_own_levels_only(batch):
    from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy

    sizes = {**toy.NETWORKS["diffusion"], "process": "vp", "vp_steps": 8, "sampler": {"steps": 4}}
    teacher = DiffusionPolicy(toy.BLIND, build(DiffusionConfig, sizes)).eval()
    matched = method(teacher)
    assert set(matched.levels.tolist()) <= set(teacher.levels.tolist())
    noised, sigma = torch.zeros(len(matched.levels), 8), matched.levels
    context = teacher.context(batch)[: len(sigma)]
    real = teacher.denoiser(noised, sigma, context)
    torch.testing.assert_close(matched.fake(noised, sigma, context), real)


def test_validation_tells_a_student_that_lost_the_spread(batch):
    matched = method()
    matched.policy.denoiser.forward = lambda x, sigma, context: torch.zeros_like(x)
    lost = matched.validate(batch, Draws(0))
    assert lost["spread"] == 0 and lost["teacher_spread"] > 0.1
    matched.policy.sample = lambda context, noise: matched.teacher.sample(context, noise[:, 0].flatten(1))
    kept = matched.validate({k: v.repeat(60, *[1] * (v.ndim - 1)) for k, v in batch.items()}, Draws(0))
    assert kept["spread"] == pytest.approx(kept["teacher_spread"], rel=0.1)
    assert abs(kept["energy_distance"]) < 0.1 * lost["energy_distance"]


def test_the_discriminator_and_its_moments_survive_a_checkpoint(store, tmp_path):
    values = toy.config("score_matching", "diffusion", store.root, {"steps": 1})
    TrainingRun(build(TrainConfig, values), str(tmp_path / "teacher"), progress=False).run()
    options = {"adversarial": 0.1, "states": {"forward": 0.5, "student": 0.5}}
    config = build(TrainConfig, toy.config("dmd2", "few_step", store.root, teacher=str(tmp_path / "teacher"), options=options))
    states = []
    for name in ("unbroken", "killed"):
        if name == "killed":
            with toy.killed_before(3):
                TrainingRun(config, str(tmp_path / name), progress=False).run()
        TrainingRun(config, str(tmp_path / name), progress=False).run()
        states.append(load(tmp_path / f"{name}.training"))
    assert any(k.startswith("companion.discriminator.") for k in states[0])
    assert any(k.startswith("optimizers.discriminator.") for k in states[0])
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def load(folder):
    from safetensors.torch import load_file

    return load_file(str(folder / "checkpoint.safetensors"))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"fake_steps": 0}, "'fake_steps' is 0; expected at least 1"),
        ({"fake_learning_rate": 0.0}, "'fake_learning_rate' is 0.0; expected above 0"),
        ({"discriminator_learning_rate": -1.0}, "'discriminator_learning_rate' is -1.0; expected above 0"),
        ({"discriminator_learning_rate": 1e-4}, "and 'adversarial' 0 trains no discriminator"),
        ({"adversarial": -0.1}, "'adversarial' is -0.1; expected at least 0"),
        ({"weighting": "snr"}, "weighting"),
        ({"states": {"forward": 0.0, "student": 0.5, "buffer": 0.5}}, "'states.buffer' is 0.5; expected 0"),
    ],
)
def test_options_without_meaning_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        build(dmd2.Options, wrong)


def test_a_student_that_doesnt_renoise_is_refused():
    policy = toy.network("few_step")
    policy.config = type(policy.config)(**{**vars(policy.config), "walk": "euler"})
    with pytest.raises(ConfigError, match="'policy.walk' is 'euler'; DMD2 trains a student that walks by 'renoise'"):
        dmd2.Method(dmd2.Options(), policy, toy.network("diffusion"))


def test_the_discriminator_begins_by_the_seed():
    policy = toy.network("few_step")

    def first(seed):
        torch.manual_seed(seed)
        return dmd2.Discriminator(policy).network.enter.weight

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
