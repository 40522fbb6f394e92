# SPDX-License-Identifier: Apache-2.0
"""The fused MoDE sampler gives what the plain one gives, from a graph without choices, without copies of weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="MoDE needs torch")

from ros_vdd.diffusion.denoiser import Denoiser  # noqa: E402
from ros_vdd.diffusion.sampling import SOLVERS  # noqa: E402
from ros_vdd.diffusion.schedule import exponential_sigmas, karras_sigmas  # noqa: E402
from ros_vdd.networks.mode import ModeNetwork, ModeSizes, chosen_experts  # noqa: E402
from ros_vdd.networks.mode_fused import fuse  # noqa: E402
from ros_vdd.networks.mode_plan import plan  # noqa: E402
from ros_vdd.networks.mode_step import DenseMode, ModeStep, gates, step_table  # noqa: E402

SIZES = {"action": 3, "horizon": 4, "goal": 2, "ticks": 2, "cameras": 2, "features": 5, "state": 3}
SIZES |= {"width": 16, "depth": 3, "heads": 2}
LONG, SHORT = exponential_sigmas(10, 0.001, 80.0), exponential_sigmas(5, 1.0, 80.0)
SHAPES = {
    "goal, cameras and state": {},
    "one tick": {"ticks": 1},
    "no goal": {"goal": 0},
    "no camera": {"cameras": 0},
    "no state": {"state": 0},
    "shared expert": {"shared_expert": True},
    "dense": {"experts": 1, "top_k": 1},
    "three of six": {"experts": 6, "top_k": 3},
    "one layer": {"depth": 1},
}


def network(dtype=torch.float32, **changes) -> ModeNetwork:
    """Return a network with random gains and positions, whose router changes its mind along the levels."""
    torch.manual_seed(0)
    made = ModeNetwork(ModeSizes(**{**SIZES, **changes})).eval().requires_grad_(False)
    made.positions.normal_()
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            parameter.add_(0.3 * torch.randn_like(parameter))
        if ".router." in name and name.endswith("weight"):
            parameter.normal_(std=1.0)
    made.to(dtype)
    for block in made.blocks:
        if block.router is not None:
            block.router.float()
    return made


def inputs(made: ModeNetwork, rows: int):
    torch.manual_seed(1)
    sizes, dtype = made.sizes, made.positions.dtype
    condition = torch.randn(rows, sizes.goal + sizes.ticks * sizes.tick_size, dtype=dtype)
    return torch.randn(rows, sizes.horizon * sizes.action, dtype=dtype), condition


def plain(made, sigmas, noise, condition, clip=False, solver="euler"):
    denoiser = Denoiser(made, 0.5)
    return SOLVERS[solver](lambda x, sigma: denoiser(x, sigma, condition), noise, sigmas, 1.0 if clip else None)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("sigmas", [LONG, SHORT], ids=["10 steps to 0.001", "5 steps to 1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_sampler_gives_what_the_plain_one_gives(shape, sigmas, rows):
    made = network(**SHAPES[shape])
    noise, condition = inputs(made, rows)
    expected = plain(made, sigmas, noise, condition)
    for lean in (False, True):
        assert (fuse(made, sigmas, 0.5, lean=lean)(noise, condition) - expected).abs().max() < 5e-6
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(
    "sigmas", [LONG, SHORT, karras_sigmas(4, 0.01, 20.0), karras_sigmas(1, 0.01, 20.0)], ids=["10", "5", "karras", "1"]
)
def test_in_float64_it_is_the_same_algebra(sigmas, solver, clip, lean):
    made = network(torch.float64)
    noise, condition = inputs(made, 1)
    expected = plain(made, sigmas, noise, condition, clip, solver)
    assert (fuse(made, sigmas, 0.5, clip, solver, lean)(noise, condition) - expected).abs().max() < 1e-12


def test_the_routers_of_these_tests_choose_different_experts_along_the_levels():
    routes = [[level.experts[layer] for level in plan(network(), LONG, 0.5)] for layer in range(3)]
    assert all(len({frozenset(chosen) for chosen in layer}) > 1 for layer in routes)


def test_the_coefficients_are_the_published_ones():
    table = [(".28527", ".35737"), (".28558", ".35729"), (".28943", ".35633"), (".33357", ".34509"), (".62210", ".25986")]
    table += [(".94022", ".10336"), (".99473", ".03068"), (".99957", ".00878"), (".99997", ".00251"), ("1.00000", ".00100")]
    for level, (keep, gain) in zip(plan(network(), LONG, 0.5), table):
        assert (level.keep, level.gain) == (pytest.approx(float(keep), abs=1e-5), pytest.approx(float(gain), abs=1e-5))


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-7])
def test_an_observation_smaller_than_the_clamp_of_the_norm_is_treated_alike(size):
    made = network(torch.float64)
    made.positions.zero_()
    noise, condition = inputs(made, 1)
    expected = plain(made, SHORT, noise, size * condition)
    assert (fuse(made, SHORT, 0.5)(noise, size * condition) - expected).abs().max() < 1e-12


def test_in_bfloat16_the_sampler_keeps_its_state_in_float32():
    made = network()
    noise, condition = inputs(made, 2)
    expected = plain(made, SHORT, noise, condition)
    found = fuse(made.to(torch.bfloat16), SHORT, 0.5)(noise, condition.bfloat16())
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.1


def test_a_router_of_tokens_and_an_unknown_solver_are_refused():
    with pytest.raises(ValueError, match="'router' is 'token'.*Evaluate all experts"):
        fuse(network(router="token"), LONG, 0.5)
    with pytest.raises(ValueError, match="'router' is 'token'"):
        ModeStep(network(router="token"))
    with pytest.raises(ValueError, match="solver='rk4'; expected one of euler, heun"):
        fuse(network(), LONG, 0.5, solver="rk4")


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_gates_are_the_weights_of_the_chosen_experts_and_0(top_k):
    p = torch.softmax(torch.randn(50, 4), dim=-1)
    chosen, weights = chosen_experts(p, top_k)
    torch.testing.assert_close(gates(p, top_k), torch.zeros(50, 4).scatter(1, chosen, weights))


def test_of_equally_likely_experts_exactly_k_act():
    assert gates(torch.full((4,), 0.25), 2).tolist() == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("router", ["noise", "token"])
def test_running_all_experts_by_their_gates_gives_what_running_the_chosen_ones_gives(router):
    made = network(router=router, shared_expert=True)
    noise, condition = inputs(made, 3)
    level = torch.tensor([-1.0, 0.2, 0.9])
    torch.testing.assert_close(DenseMode(made)(noise, level, condition), made(noise, level, condition), rtol=0, atol=2e-6)


def walk(table, step, noise, clip):
    """Drive a step along a table in NumPy: what a user of `step.onnx` writes."""
    x = noise * table["sigma"][0]
    for i, ratio in enumerate(table["ratio"]):
        following = step(x, **{name: table[name][i] for name in ("gates", "c", "A", "B", "c_in")})
        x = ratio * x + (1 - ratio) * np.clip(following, -1, 1) if clip else following
    return x


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("sigmas", [LONG, SHORT], ids=["10", "5"])
def test_the_gate_input_step_serves_any_schedule(sigmas, clip):
    made = network()
    noise, condition = inputs(made, 1)
    table = {name: column.numpy() for name, column in step_table(made, sigmas, 0.5, clip).items()}

    def step(x, gates, c, A, B, c_in):
        return ModeStep(made)(torch.from_numpy(x), condition, *map(torch.from_numpy, (gates, c, A, B, c_in))).numpy()

    np.testing.assert_allclose(
        walk(table, step, noise.numpy(), clip), plain(made, sigmas, noise, condition, clip), rtol=0, atol=5e-6
    )
