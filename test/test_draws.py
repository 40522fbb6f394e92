# SPDX-License-Identifier: Apache-2.0
"""Draws: torch's own numbers with one process, and the rows of those same numbers with several."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.diffusion.schedule import log_normal_sigmas, log_uniform_sigmas  # noqa: E402

ROWS = 12  # of the global batch
SEED = 2**61 + 5


def every_kind(draws, rows):
    """Draw one of each, in an order that a wrong count would put out of step."""
    return [
        draws.normal((rows,)),
        draws.normal((rows, 3, 5)),
        draws.uniform((rows, 2)),
        draws.integers(7, (rows, 4)),
        draws.normal((rows, 1, 6)),
        log_normal_sigmas(rows, -1.2, 1.2, 0.01, 20.0, draws),
        log_uniform_sigmas((rows,), 0.1, 0.5, draws),
    ]


def test_one_process_gets_the_numbers_of_torchs_generator():
    draws, generator = Draws(SEED), torch.Generator().manual_seed(SEED)
    for shape in ((5,), (64,), (7, 3), (16, 4, 2), (1, 1)):
        assert torch.equal(draws.normal(shape), torch.randn(shape, generator=generator))
        assert torch.equal(draws.uniform(shape), torch.rand(shape, generator=generator))
        assert torch.equal(draws.integers(9, shape), torch.randint(9, shape, generator=generator))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_rows_of_all_processes_are_those_of_one(world):
    whole = every_kind(Draws(SEED), ROWS)
    shares = [every_kind(Draws(SEED, rank, world), ROWS // world) for rank in range(world)]
    for kind, expected in enumerate(whole):
        assert torch.equal(torch.cat([share[kind] for share in shares]), expected)


def test_the_numbers_arrive_on_the_device_they_are_wanted_on():
    draws = Draws(SEED, device="meta")
    assert {x.device.type for x in every_kind(draws, ROWS)} == {"meta"}


def test_the_mean_over_one_process_is_the_number_without_its_gradient():
    count = torch.tensor(3.0, requires_grad=True)
    mean = Draws(SEED).process_mean(count)
    assert mean == 3.0 and not mean.requires_grad


@pytest.mark.parametrize("rank, world", [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank, world):
    with pytest.raises(ValueError, match=f"rank={rank}, world={world}"):
        Draws(SEED, rank, world)
