# SPDX-License-Identifier: Apache-2.0
"""Consistency trajectory models: the label and its stop, the gradient's way through the average, the balance of the losses."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import ctm  # noqa: E402
from test_consistency import batch, dropped, exact, made  # noqa: E402, F401

GRID = 8


def student(options=(), **policy):
    return made(ctm, {"balance": "fixed", **dict(options)}, walk="jump", **{"grid": GRID, **policy})


def labelled(method, batch, index=2, steps=2, place=0.0):  # noqa: F811
    x = 3 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    context, teacher_context = method.policy.context(batch), method.teacher.context(batch)
    rows = torch.full((16,), index), torch.full((16,), steps), torch.full((16,), place)
    return x, context, method.label(x, *rows, context, teacher_context)


def test_at_the_trajectories_of_a_gaussian_the_loss_and_its_gradient_vanish(batch):  # noqa: F811
    method = exact(ctm, {"balance": "fixed", "dsm_weight": 0.0}, walk="jump", grid=200)
    method._restoring = lambda *_: torch.zeros(())  # the recorded chunks aren't of that Gaussian

    def loss_and_gradient():
        loss, _ = method.loss(batch, Draws(0))
        return loss.item(), torch.autograd.grad(loss, method.policy.denoiser.mean)[0].abs().item()

    loss, gradient = loss_and_gradient()
    method.policy.denoiser.mean.data += 0.1
    off, slope = loss_and_gradient()
    assert loss < 1e-4 * off and gradient < 1e-3 * slope


def test_the_label_is_the_end_of_the_teachers_steps_where_the_jump_stops_at_once(batch):  # noqa: F811
    """At s = u the inner jump is the identity: the averaged network carries the teacher's state to the end."""
    method = student()
    x, context, (now, stop, label) = labelled(method, batch, index=2, steps=2, place=0.0)
    grid, lower, teacher_context = method.policy.grid, x, method.teacher.context(batch)
    slope = lambda y, s: (y - method.teacher.clean(y, torch.full((16,), s), teacher_context)) / s  # noqa: E731
    for s, t in zip(grid[2:4], grid[3:5]):
        first = slope(lower, s)
        lower = lower + (t - s) * (first + slope(lower + (t - s) * first, t)) / 2
    assert now.tolist() == pytest.approx([grid[2]] * 16) and stop.tolist() == pytest.approx([grid[4]] * 16)
    expected = method.target.jump(lower, stop, torch.full((16,), method.policy.config.sampler.sigma_min), context)
    torch.testing.assert_close(label, expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_at_the_lowest_stop_the_averaged_jump_is_the_identity(batch):  # noqa: F811
    """Then the label is the student's own jump from u, and the average has no say."""
    method = student()
    for parameter in method.target.parameters():
        parameter.fill_(9.0)
    _, _, (_, stop, label) = labelled(method, batch, place=1.0)
    assert stop.tolist() == pytest.approx([method.policy.config.sampler.sigma_min] * 16)
    other = labelled(student(), batch, place=1.0)[2][2]
    torch.testing.assert_close(label, other, rtol=1e-3, atol=1e-3)


def test_the_teacher_stops_where_the_grid_does(batch):  # noqa: F811
    method = student({"teacher_steps": 50})
    x, context, (_, stop, label) = labelled(method, batch, index=GRID - 2, steps=50, place=0.5)
    assert stop.tolist() == pytest.approx([method.policy.config.sampler.sigma_min] * 16)
    assert torch.equal(label, labelled(student({"teacher_steps": 1}), batch, index=GRID - 2, steps=1)[2][2])


def test_levels_between_two_of_the_grid_lie_between_them_on_its_logarithm():
    grid = torch.tensor([20.0, 4.0, 1.0, 0.25])
    got = ctm.between(grid, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]))
    torch.testing.assert_close(got, torch.tensor([20.0, 80.0**0.5, 4.0, 2.0, 1.0, 0.25]))


def test_the_number_of_the_teachers_steps_is_drawn_in_proportion_to_it():
    steps = student({"teacher_steps": 4})._steps(Draws(0).uniform((40_000,)))
    np.testing.assert_allclose(np.bincount(steps, minlength=5)[1:] / 40_000, np.arange(1, 5) / 10, atol=0.01)


def test_the_gradient_passes_through_the_input_of_the_average(batch):  # noqa: F811
    """An outer jump that doubles makes both the error and its slope twice as large."""
    gradients = []
    for factor in (1.0, 2.0):
        method = student({"dsm_weight": 0.0}, sampler={"steps": 2, "clip": False})
        method.teacher.config = made(ctm, clip=False, walk="jump").teacher.config
        method.target.jump = lambda x, sigma, stop, context, factor=factor: factor * x
        loss, _ = method.loss(batch, Draws(0))
        gradients.append(torch.autograd.grad(loss, method.policy.denoiser.network.leave[-1].weight)[0])
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], 4 * gradients[0])


def test_gradients_reach_the_student_alone(batch):  # noqa: F811
    method = student()
    method.loss(batch, Draws(0))[0].backward()
    assert all(p.grad is not None for p in method.policy.denoiser.parameters())
    assert all(p.grad is None for module in (method.target, method.teacher) for p in module.parameters())


def test_both_jumps_of_the_student_drop_the_same_units_and_the_average_none(batch):  # noqa: F811
    method = student(dropout=0.5)
    (label, jump, restoring), target = dropped(method, batch, (method.policy, method.target))
    assert torch.equal(label, jump) and not torch.equal(jump, restoring) and 0.3 < jump.float().mean() < 0.7
    assert not any(places.any() for places in target)


def test_balanced_losses_pull_alike_at_the_last_layer(batch):  # noqa: F811
    method, norms = student({"balance": "gradients", "dsm_weight": 0.5}), []
    last, restore = method.policy.denoiser.network.leave[-1].weight, method._restoring
    method._restoring = lambda *given: norms.append(restore(*given)) or norms[-1]
    loss, figures = method.loss(batch, Draws(0))
    dsm = norms[0]
    of_dsm, of_all = (torch.autograd.grad(x, last, retain_graph=True)[0] for x in (figures["weight"] * dsm, loss))
    assert of_dsm.norm().item() == pytest.approx(0.5 * (of_all - of_dsm).norm().item(), rel=1e-3)


def test_fixed_losses_are_added_by_their_weight(batch):  # noqa: F811
    _, figures = student({"dsm_weight": 0.3}).loss(batch, Draws(0))
    assert figures["loss"] == pytest.approx(figures["ctm"] + 0.3 * figures["dsm"], rel=1e-5)


def test_the_restoring_loss_is_of_forward_states_whatever_the_shares(batch):  # noqa: F811
    """A denoiser that restores the recorded chunks at once has none."""
    method = student({"states": {"forward": 0.0, "student": 1.0, "warmup": 0.0}})
    clean, mask = method.policy.targets(batch)
    method.policy.denoiser.forward = lambda x, sigma, context: clean
    assert method._restoring(clean, mask, batch, Draws(0)) == 0
    method.policy.denoiser.forward = lambda x, sigma, context: x
    spread = method._restoring(clean, torch.ones_like(mask), batch, Draws(0)).item()
    assert 1 < spread  # w s^2 = 1 + s^2 / sd^2 where x is a + s n


def test_the_target_follows_the_student():
    method = student({"target_decay": 0.75})
    method.prepare(None, Draws(0))
    before = [p.clone() for p in method.target.parameters()]
    with torch.no_grad():
        for parameter in method.policy.denoiser.parameters():
            parameter += 1.0
    method.after()
    for was, now in zip(before, method.target.parameters()):
        torch.testing.assert_close(now, was + 0.25)


def test_settings_without_meaning_are_refused():
    with pytest.raises(ConfigError, match="'policy.walk' is 'renoise'; a consistency trajectory model walks by 'jump'"):
        made(ctm)
    for wrong in ({"teacher_steps": 0}, {"dsm_weight": -1.0}, {"target_decay": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ctm.Options(**wrong)
