# SPDX-License-Identifier: Apache-2.0
"""Latent consistency distillation: coarse steps of the teacher; everything else is consistency distillation."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import consistency, lcm  # noqa: E402
from test_consistency import batch, exact, label_error, made  # noqa: E402, F401


def inputs(method, batch, count=16):  # noqa: F811
    x = 3 * torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return x, method.policy.context(batch), method.teacher.context(batch)


@pytest.mark.parametrize("index, below", [(0, 3), (5, 8), (7, 9)])
def test_the_label_is_the_targets_end_of_one_ddim_step_over_skip_levels(index, below, batch):  # noqa: F811
    """Of a grid of 10 levels; the last step is shorter."""
    method = made(lcm, {"skip": 3}, grid=10)
    x, context, teacher_context = inputs(method, batch)
    sigma, label = method.label(x, torch.full((16,), index), context, teacher_context)
    now, then = (torch.full((16,), method.policy.grid[i]) for i in (index, below))
    clean = method.teacher.denoiser(x, now, teacher_context).clamp(-1, 1)
    lower = clean + (then / now)[:, None] * (x - clean)
    assert torch.equal(sigma, now)
    torch.testing.assert_close(label, method.target(lower, then, context).clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_the_label_errs_by_the_square_of_the_step():
    """Euler's rule in one step, over one level or several."""
    assert label_error(lcm, 41, 0.5, skip=1) / label_error(lcm, 81, 0.5, skip=1) == pytest.approx(4, rel=0.3)
    assert label_error(lcm, 81, 0.5, skip=4) / label_error(lcm, 81, 0.5, skip=2) == pytest.approx(4, rel=0.3)


def test_at_the_trajectories_of_a_gaussian_the_loss_vanishes_with_the_step(batch):  # noqa: F811
    losses = [exact(lcm, {"skip": skip}, grid=300).loss(batch, Draws(0))[0].item() for skip in (1, 16)]
    assert losses[0] < 1e-5 and losses[0] < 1e-2 * losses[1]


def test_where_trajectories_are_straight_it_is_consistency_distillation(batch):  # noqa: F811
    """With a teacher that always says the same, Euler's and Heun's step are one."""
    made_labels = []
    for module, options in ((consistency, {}), (lcm, {"skip": 1})):
        method = made(module, options)
        method.teacher.clean = lambda x, s, context: torch.full_like(x, 0.3)
        x, *contexts = inputs(method, batch)
        made_labels.append(method.label(x, torch.arange(16) % 4, *contexts)[1])
    torch.testing.assert_close(*made_labels)


def test_levels_of_the_solver_are_the_highest_and_every_kth_below(batch):  # noqa: F811
    """Of a grid of 10 levels, 0 to 9, of which the lowest has nothing below; the draws of all levels stay as they were."""
    sizes = {"grid": 10, "sampler": {"steps": 1}}
    method, plain = (made(lcm, {"skip": 3, **options}, **sizes) for options in ({"levels": "solver"}, {}))
    assert set(method.drawn(2_000, Draws(0)).tolist()) == {0, 3, 6}
    assert set(plain.drawn(2_000, Draws(0)).tolist()) == set(range(9))
    assert torch.equal(plain.drawn(50, Draws(0)), Draws(0).integers(9, (50,)))
    asked, label = [], method.label
    method.label = lambda x, index, *contexts: asked.append(set(index.tolist())) or label(x, index, *contexts)
    assert method.loss(batch, Draws(0))[0].isfinite() and asked[0] <= {0, 3, 6}


def test_a_walk_that_stops_at_a_level_which_the_solver_skips_is_refused():
    made(lcm, {"skip": 2, "levels": "solver"}, grid=8, sampler={"steps": 2})
    with pytest.raises(ConfigError, match="also stops at level 4, which isn't trained; expected a skip that divides all stops"):
        made(lcm, {"skip": 3, "levels": "solver"}, grid=8, sampler={"steps": 2})


def test_a_skip_that_leaves_no_level_between_is_refused():
    with pytest.raises(ConfigError, match="'options.skip' is 4, 'policy.grid' 4"):
        made(lcm, {"skip": 4})
    with pytest.raises(ConfigError, match="'skip' is 0; expected at least 1"):
        lcm.Options(skip=0)
