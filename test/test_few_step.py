# SPDX-License-Identifier: Apache-2.0
"""Few-step students: their boundary conditions, their walks, and the source of the states that they are trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="few-step policies need torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import progressive  # noqa: E402
from ros_vdd.methods._states import BUFFER, FORWARD, STUDENT, TEACHER, Shares, StateSource  # noqa: E402
from ros_vdd.policies.few_step import FewStepConfig, FewStepPolicy  # noqa: E402

WALKS = ("euler", "renoise", "jump", "posterior")


def student(walk="renoise", seed=0, **changes) -> FewStepPolicy:
    """Return an untrained student whose every parameter is random."""
    torch.manual_seed(seed)
    made = FewStepPolicy(toy.BLIND, build(FewStepConfig, {**toy.NETWORKS["few_step"], "walk": walk, **changes})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.action_normalizer.fit(np.array([[-1.0, -2.0], [1.0, 2.5]]))
    made.state_normalizer.fit(np.array([[-0.5, 0.0], [1.5, 2.0]]))
    return made


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    store = toy.store(tmp_path_factory.mktemp("few_step") / "store")
    windows = Windows(store, range(len(store)), 2, 4)
    return windows.batch(np.arange(len(windows) - 16, len(windows)))


def inputs(policy, batch, seed=1):
    torch.manual_seed(seed)
    return policy.context(batch), torch.randn(16, *policy.noise_shape)


def test_a_consistency_function_is_the_identity_at_the_lowest_level(batch):
    policy = student()
    context, _ = inputs(policy, batch)
    x = torch.randn(16, 8)
    assert torch.equal(policy.denoiser(x, torch.full((16,), policy.config.sampler.sigma_min), context), x)
    above = policy.denoiser(x, torch.full((16,), 0.5), context)
    assert not torch.allclose(above, x)


def test_a_jump_of_no_length_is_the_identity_and_one_to_the_end_the_clean_estimate(batch):
    policy = student("jump")
    context, _ = inputs(policy, batch)
    x, sigma = torch.randn(16, 8), torch.rand(16) + 0.5
    assert torch.equal(policy.denoiser.jump(x, sigma, sigma, context), x)
    end = policy.denoiser.jump(x, sigma, torch.full((16,), 1e-12), context)
    torch.testing.assert_close(end, policy.denoiser(x, sigma, context, torch.full((16,), 1e-12)))


@pytest.mark.parametrize("walk", WALKS)
def test_a_warm_start_makes_one_step_the_teachers(walk, batch):
    policy, teacher = student(walk, seed=1, boundary=walk != "renoise"), toy.network("diffusion")
    assert policy.warm_start(teacher)
    if walk == "jump":
        with torch.no_grad():
            for parameter in policy.denoiser.network.stop.parameters():
                parameter.zero_()  # as a student begins; here all weights were made random
    context, x, sigma = teacher.context(batch), torch.randn(16, 8), torch.rand(16) + 0.1
    torch.testing.assert_close(policy.denoiser(x, sigma, context), teacher.denoiser(x, sigma, context))


def test_a_teacher_of_another_size_warms_nothing():
    policy, teacher = student(width=24), toy.network("diffusion")
    before = [p.clone() for p in policy.parameters()]
    assert not policy.warm_start(teacher)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_the_walk_goes_over_equally_distant_levels_of_the_grid_to_0():
    policy = student(grid=8, sampler={"steps": 4})
    assert policy.stops == [0, 2, 4, 6]
    assert len(policy.grid) == 9 and policy.grid[0] == policy.config.sampler.sigma_max and policy.grid[8] == 0


def test_a_renoising_walk_is_what_the_formula_says(batch):
    policy = student(sampler={"steps": 2, "clip": False})
    context, noise = inputs(policy, batch)
    states, chunk = policy.walk(context, noise)
    first, second, low = policy.grid[0], policy.grid[2], policy.config.sampler.sigma_min
    flat = noise.flatten(2)
    clean = policy.denoiser(flat[:, 0] * first, torch.full((16,), first), context)
    x = clean + (second**2 - low**2) ** 0.5 * flat[:, 1]
    torch.testing.assert_close(states[1], x)
    torch.testing.assert_close(chunk, policy.denoiser(x, torch.full((16,), second), context))


def test_an_euler_walk_over_the_whole_grid_is_the_teachers_sampler(batch):
    """With as many steps as levels the student is a diffusion policy."""
    from ros_vdd.policies.diffusion import SamplerConfig

    policy, teacher = student("euler", grid=4, sampler={"steps": 4}), toy.network("diffusion")
    policy.warm_start(teacher)
    context, noise = inputs(policy, batch)
    expected = teacher.sample(context, noise.flatten(1), SamplerConfig(steps=4))
    torch.testing.assert_close(policy.sample(context, noise), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("walk", WALKS)
def test_the_noise_alone_decides_the_chunk(walk, batch):
    policy = student(walk)
    context, noise = inputs(policy, batch)
    assert torch.equal(policy.sample(context, noise), policy.sample(context, noise))
    assert not torch.equal(policy.sample(context, noise), policy.sample(context, noise + 0.1))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"grid": 1, "sampler": {"steps": 2}}, "'sampler.steps' is 2; expected at most 'grid' 1"),
        ({"process": "vp"}, "walks by 've' and 'euler'"),
        ({"sampler": {"solver": "heun"}}, "walks by 've' and 'euler'"),
        ({"sampler": {"start": 2.0}}, "'sampler.start' is 2, 'process' 've', which begins at 'sampler.sigma_max' 20"),
        ({"sampler": {"spacing": "exponential", "rho": 5.0}}, "'rho' is 5, 'spacing' 'exponential', which has no rho"),
        ({"sigma_bound": 2.0}, "'sigma_bound' is 2, 'walk' 'renoise', which has no noise of its own to bound"),
    ],
)
def test_a_configuration_without_meaning_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        build(FewStepConfig, wrong)


def sourced(batch, index, progress=1.0, policy=None, **shares):
    policy = policy or student()
    source = StateSource(build(Shares, shares), policy, toy.network("diffusion"))
    return policy, source, source.draw(batch, torch.full((16,), index), policy.from_chunk(batch["actions"]), Draws(3), progress)


@pytest.mark.parametrize("shares", [{}, {"forward": 0.0, "teacher": 1.0}, {"forward": 0.0, "student": 1.0}])
def test_at_the_highest_level_every_source_gives_pure_noise_but_for_the_recorded_chunk(shares, batch):
    policy, _, states = sourced(batch, 0, **shares)
    noise = Draws(3).normal((16, *policy.noise_shape)).flatten(2)[:, 0] * policy.grid[0]
    clean = policy.from_chunk(batch["actions"]) if not shares else 0
    torch.testing.assert_close(states.x, noise + clean)


def test_forward_states_are_recorded_chunks_with_noise_of_the_level(batch):
    policy, _, states = sourced(batch, 3)
    noise = Draws(3).normal((16, *policy.noise_shape)).flatten(2)[:, 0]
    assert torch.equal(states.x, policy.from_chunk(batch["actions"]) + torch.tensor(policy.grid[3]) * noise)
    assert (states.source == FORWARD).all()


def test_student_states_are_those_of_its_walk_at_the_nearest_stop(batch):
    policy, _, states = sourced(batch, 3, forward=0.0, student=1.0)  # stops 0 and 2
    noise = Draws(3).normal((16, *policy.noise_shape))
    assert (states.index == 2).all() and (states.source == STUDENT).all()
    torch.testing.assert_close(states.x, policy.walk(policy.context(batch), noise)[0][1])


def test_teacher_states_are_those_of_its_sampler_along_the_grid(batch):
    policy, source, states = sourced(batch, 2, forward=0.0, teacher=1.0)
    x = Draws(3).normal((16, *policy.noise_shape)).flatten(2)[:, 0] * policy.grid[0]
    for now, then in zip(policy.grid[:2], policy.grid[1:3]):
        clean = source.teacher.denoiser(x, torch.full((16,), now), source.teacher.context(batch)).clamp(-1, 1)
        x = clean + then / now * (x - clean)
    torch.testing.assert_close(states.x, x, rtol=1e-4, atol=1e-4)
    assert (states.source == TEACHER).all()


def test_in_a_chain_the_teacher_is_asked_only_at_the_levels_that_it_knows(batch):
    """A second stage on the first one's grid of 8: its teacher walks by 2 levels, the student by 4."""
    policy = student("euler", grid=8, sampler={"steps": 2})
    options = build(progressive.Options, {"states": {"forward": 0.0, "teacher": 1.0}})
    method, asked = progressive.Method(options, policy, student("euler", seed=1, grid=8, sampler={"steps": 4})), set()
    clean = method.teacher.clean
    method.teacher.clean = lambda x, sigma, context: asked.update(sigma.tolist()) or clean(x, sigma, context)
    states = method.source.draw(batch, torch.full((16,), 4), policy.from_chunk(batch["actions"]), Draws(3), 1.0)
    levels = torch.tensor(policy.grid).tolist()
    assert asked == {levels[0], levels[2]}
    noise = Draws(3).normal((16, *policy.noise_shape))
    walked = method.teacher.walk(method.teacher.context(batch), noise)[0][2]
    torch.testing.assert_close(states.x, walked, rtol=1e-4, atol=1e-4)
    method.loss(batch, Draws(2), 1.0)
    assert asked == {levels[i] for i in (0, 2, 4, 6)}


def test_shares_grow_over_the_warm_up(batch):
    shares = build(Shares, {"forward": 0.5, "student": 0.5, "warmup": 0.5})
    source = StateSource(shares, student(), toy.network("diffusion"))
    counts = [
        (source._sources(20_000, Draws(0), progress) == STUDENT).float().mean().item() for progress in (0.0, 0.25, 0.5, 1.0)
    ]
    assert counts == pytest.approx([0, 0.25, 0.5, 0.5], abs=0.02)


@pytest.mark.parametrize(
    "wrong", [{"forward": 0.5}, {"forward": 1.5, "student": -0.5}, {"forward": 0.5, "buffer": 0.5}, {"warmup": 2.0}]
)
def test_shares_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError):
        build(Shares, wrong)


def test_the_buffer_gives_back_rolled_out_states_with_their_observations(batch):
    policy = student().train()
    source = StateSource(build(Shares, {"forward": 0.0, "student": 0.5, "buffer": 0.5}), policy, toy.network("diffusion"))
    clean, index = policy.from_chunk(batch["actions"]), torch.full((16,), 2)
    first = source.draw(batch, index, clean, Draws(0), 1.0)
    rolled = first.source == STUDENT
    assert source.buffer.held == rolled.sum() > 3
    other = {**batch, "state": batch["state"] + 1.0}
    states = source.draw(other, index, clean, Draws(1), 1.0)
    back = states.source == BUFFER
    assert 3 < back.sum() < 16
    kept = [torch.cat([part[rolled] for part in (first.x, first.context, first.teacher_context)], dim=1)]
    for row in torch.cat([part[back] for part in (states.x, states.context, states.teacher_context)], dim=1):
        assert (row == kept[0]).all(dim=1).any()
    assert torch.equal(states.context[~back], policy.context(other)[~back])


def test_several_processes_share_no_buffer(batch):
    source = StateSource(build(Shares, {"forward": 0.5, "student": 0.3, "buffer": 0.2}), student(), toy.network("diffusion"))
    with pytest.raises(ConfigError, match="'states.buffer' is 0.2, for 2 processes"):
        source.draw(batch, torch.full((16,), 2), torch.zeros(16, 8), Draws(0, 1, 2), 1.0)


def test_an_empty_buffer_leaves_forward_states(batch):
    _, _, states = sourced(batch, 3, forward=0.4, student=0.1, buffer=0.5, progress=1.0)
    assert not (states.source == BUFFER).any() and (states.source == FORWARD).any()


def stage(substeps=2, steps=2, **shares):
    policy = student("euler", grid=steps * substeps, sampler={"steps": steps})
    options = build(progressive.Options, {"substeps": substeps, "states": shares})
    return progressive.Method(options, policy, toy.network("diffusion"))


def test_a_teacher_that_always_says_the_same_is_the_target_of_progressive_distillation(batch):
    method, said = stage(substeps=4), 0.3 * torch.ones(16, 8)
    method.teacher.clean = lambda x, sigma, context: said
    for index in (0, 4):
        _, target = method.label(torch.randn(16, 8), torch.full((16,), index), None)
        torch.testing.assert_close(target, said, rtol=1e-4, atol=1e-5)


def test_one_euler_step_to_the_target_lands_where_the_teachers_steps_do(batch):
    method = stage()
    x, index = 2 * torch.randn(16, 8), torch.zeros(16, dtype=torch.long)
    context, grid = method.teacher.context(batch), method.policy.grid
    sigma, target = method.label(x, index, context)
    landed = x
    for now, then in zip(grid[:2], grid[1:3]):
        clean = method.teacher.clean(landed, torch.full((16,), now), context)
        landed = clean + then / now * (landed - clean)
    torch.testing.assert_close(target + grid[2] / grid[0] * (x - target), landed, rtol=1e-4, atol=1e-4)
    assert sigma.tolist() == [grid[0]] * 16


def test_without_other_shares_the_states_change_nothing(batch):
    """DDIL with a share of 0 is the base method, bit by bit."""
    losses = [stage(**shares).loss(batch, Draws(2), 1.0)[0] for shares in ({}, {"forward": 1.0, "student": 0.0})]
    assert torch.equal(*losses)


def test_the_grid_of_a_stage_must_be_the_teachers_steps():
    policy = student("euler", grid=5, sampler={"steps": 2})
    with pytest.raises(ConfigError, match="'policy.grid' is 5; expected 'sampler.steps' 2 times 'options.substeps' 2"):
        progressive.Method(progressive.Options(), policy, toy.network("diffusion"))
    with pytest.raises(ConfigError, match="a student that walks by 'euler'"):
        progressive.Method(progressive.Options(), student(), toy.network("diffusion"))


def test_clean_estimates_are_cut_only_where_the_sampler_says(batch):
    teacher = toy.network("diffusion")
    context, x, sigma = teacher.context(batch), 9 * torch.ones(16, 8), torch.full((16,), 0.1)
    assert teacher.clean(x, sigma, context).max() == 1
    teacher.config = replace(teacher.config, sampler=replace(teacher.config.sampler, clip=False))
    assert teacher.clean(x, sigma, context).max() > 1


def test_a_vp_teacher_warms_nothing(batch):
    """Its network tells the noise, not the chunk."""
    from ros_vdd.policies import KINDS

    kind, config = KINDS["diffusion"]
    sizes = {k: v for k, v in toy.NETWORKS["diffusion"].items() if k != "sampler"}
    teacher = kind(toy.BLIND, build(config, {**sizes, "process": "vp", "vp_steps": 8, "sampler": {"steps": 4}}))
    assert not student().warm_start(teacher)
    assert not student(sigma_data=0.4).warm_start(toy.network("diffusion"))


def test_encoders_that_would_learn_are_refused_where_no_gradient_reaches_them():
    robot = toy.SEEING
    policy = FewStepPolicy(robot, build(FewStepConfig, {**toy.NETWORKS["few_step"], "walk": "euler"}))
    with pytest.raises(ConfigError, match="'freeze_encoder' is false"):
        progressive.Method(progressive.Options(), policy, toy.network("diffusion", robot))
    policy.encoders.requires_grad_(False)
    progressive.Method(progressive.Options(), policy, toy.network("diffusion", robot))


def test_validation_leaves_nothing_in_the_buffer(batch):
    method = stage(forward=0.0, student=0.5, buffer=0.5, warmup=0.0)
    method.policy.eval()
    method.validate(batch, Draws(0))
    assert int(method.source.buffer.count) == 0
    method.policy.train()
    method.loss(batch, Draws(0), 1.0)
    assert int(method.source.buffer.count) > 0


@pytest.mark.parametrize(
    "changes, asked",
    [
        ({"grid": 4, "sampler": {"steps": 2}}, "3.49"),
        ({"grid": 8, "sampler": {"steps": 2, "sigma_max": 2.0}}, "2"),
        ({"grid": 8, "sampler": {"steps": 4}}, "9.97"),
    ],
    ids=["grid", "range", "steps"],
)
def test_a_stage_that_would_ask_its_teacher_where_it_was_never_trained_is_refused(changes, asked):
    """Such a teacher answers anything: its levels are those of its walk of 4 over a grid of 8."""
    teacher = student("euler", seed=1, grid=8, sampler={"steps": 4})
    progressive.Method(progressive.Options(), student("euler", grid=8, sampler={"steps": 2}), teacher)
    with pytest.raises(ConfigError, match=rf"would be asked at {asked}[0-9.]*; expected its own 'policy.grid' 8"):
        progressive.Method(progressive.Options(), student("euler", **changes), teacher)


@pytest.mark.parametrize("name", ["consistency", "lcm", "ctm", "dmd2", "vdd"])
def test_a_few_step_student_is_no_teacher_of_a_method_that_asks_between_its_levels(name):
    from ros_vdd import methods

    module = methods.find(name)
    policy = toy.network(module.KIND, **toy.FEW_STEPS.get(name, {}))
    with pytest.raises(ConfigError, match=f"the teacher is a few-step student.*{name} asks at others; give its own teacher"):
        module.Method(build(module.Options, toy.OPTIONS.get(name, {})), policy, student("euler", seed=1))


@pytest.mark.parametrize("walk", ["euler", "jump", "posterior"])
def test_a_boundary_that_the_walk_hasnt_is_refused(walk):
    with pytest.raises(ConfigError, match=f"'boundary' is false, 'walk' '{walk}'"):
        student(walk, boundary=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name, key",
    [
        ("progressive", "states.forward"),
        ("consistency", "target_decay"),
        ("ctm", "dsm_weight"),
        ("dmd2", "fake_learning_rate"),
        ("dmd2", "adversarial"),
        ("dxmi", "gamma"),
        ("dxmi", "tau_entropy"),
        ("dxmi", "critic_learning_rate"),
        ("dxdp", "trust"),
        ("dxdp", "hold"),
    ],
)
def test_numbers_that_are_none_are_refused(name, key, value):
    """YAML has .nan and .inf, and of NaN no comparison is true."""
    from ros_vdd import methods

    outer, _, inner = key.partition(".")
    with pytest.raises(ConfigError, match=f"'{inner or outer}' "):
        build(methods.find(name).Options, {outer: {inner: value} if inner else value})


@pytest.mark.parametrize("name", ["progressive", "consistency", "lcm", "ctm", "dmd2"])
def test_a_critic_that_no_one_would_train_is_refused(name):
    """It would be exported, say 0 of every chunk, and a node would watch by it."""
    from ros_vdd import methods

    module = methods.find(name)
    policy = toy.network("few_step", critic={"width": 8, "depth": 1}, **toy.FEW_STEPS.get(name, {}))
    with pytest.raises(ConfigError, match=f"'policy.critic' is given, and {name} doesn't train one"):
        module.Method(build(module.Options, toy.OPTIONS.get(name, {})), policy, toy.network("diffusion"))


def test_the_figures_of_the_sources_pass_over_padded_steps(batch):
    figures, padded = [], 1 - batch["mask"].repeat_interleave(2, dim=1)
    assert padded.any()
    for wrong in (0.0, 9.0):
        method = stage()
        label = method.label
        method.label = lambda *given, label=label, wrong=wrong: (label(*given)[0], label(*given)[1] + wrong * padded)
        figures.append(method.loss(batch, Draws(2))[1])
    assert figures[0] == figures[1]


@pytest.mark.parametrize("name", ["progressive", "consistency", "lcm", "ctm", "dmd2"])
def test_a_mode_teacher_serves_as_any_other(name, batch):
    from ros_vdd import methods

    module = methods.find(name)
    policy = toy.network("few_step", **toy.FEW_STEPS.get(name, {}))
    method = module.Method(build(module.Options, toy.OPTIONS.get(name, {})), policy, toy.network("mode").requires_grad_(False))
    method.prepare(None, Draws(0))
    if hasattr(method, "before"):
        method.before(batch, Draws(1), 0.5)
    loss, _ = method.loss(batch, Draws(1), 0.5)
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


@pytest.mark.parametrize(
    "walk, training, steps, able",
    [
        ("euler", {"method": "progressive"}, 4, "1, 2"),
        ("renoise", {"method": "dmd2"}, 4, "1, 2"),
        ("renoise", {"method": "lcm", "options": {"levels": "solver", "skip": 4}}, 4, "1, 2"),
        ("renoise", {"method": "lcm", "options": {"levels": "grid", "skip": 4}}, 4, None),
        ("renoise", {"method": "consistency"}, 4, None),
        ("jump", {"method": "ctm"}, 3, None),
        ("euler", {"method": "progressive"}, 1, None),
    ],
)
def test_a_student_is_exported_only_with_steps_that_stop_where_it_was_trained(walk, training, steps, able, tmp_path):
    """Of 2 steps over 8 levels, that is at 0 and 4."""
    from ros_vdd.bundle import amend
    from ros_vdd.errors import PolicyError
    from ros_vdd.offline.export_sampler import resampled

    bundle = toy.policy(tmp_path / "student", "few_step", walk=walk, grid=8, sampler={"steps": 2})
    bundle = amend(bundle, training=training)
    if able is None:
        assert resampled(bundle, tmp_path / "out", steps, None).manifest.nfe == steps
        return
    said = f"of {steps} steps over the 8 levels.* at level 2, .*exported with --steps {able}, another"
    with pytest.raises(PolicyError, match=said):
        resampled(bundle, tmp_path / "out", steps, None)
    assert not (tmp_path / "out").exists()
