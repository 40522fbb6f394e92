# SPDX-License-Identifier: Apache-2.0
"""The MoDE network: causal, routed by the noise level, of the published sizes."""

import math

import pytest
import torch

from ros_vdd.networks.mode import Expert, ModeBlock, ModeNetwork, ModeSizes, RMSNorm, chosen_experts

SIZES = ModeSizes(action=3, horizon=4, goal=2, ticks=2, cameras=2, features=5, state=3, width=16, depth=2, heads=2)


def network(**changes) -> ModeNetwork:
    torch.manual_seed(0)
    made = ModeNetwork(ModeSizes(**{**vars(SIZES), **changes})).eval()
    with torch.no_grad():
        made.positions.normal_()
        for block in made.blocks:
            if block.router is not None:
                block.router.leave.weight.normal_()
    return made


def inputs(rows: int = 3):
    torch.manual_seed(1)
    return torch.randn(rows, 12), torch.randn(rows), torch.randn(rows, 2 + 2 * 13)


@pytest.mark.parametrize("layers, features, published", [(8, 512, 456_022_055), (8, 2048, 459_167_783), (12, 2048, 685_853_751)])
def test_parameters_are_those_of_the_released_sizes(layers, features, published):
    with torch.device("meta"):
        made = ModeNetwork(
            ModeSizes(action=7, horizon=10, goal=512, cameras=2, features=features, width=1024, depth=layers, heads=8)
        )
    unused = 1024 * features  # the release holds an embedding of the wrist camera that it never uses
    assert sum(p.numel() for p in made.parameters()) == published - unused


def test_an_expert_of_the_released_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in Expert(1024, 4096).parameters()) == 12_591_104


@pytest.mark.parametrize("router", ["noise", "token"])
def test_an_action_of_the_answer_depends_on_no_later_action(router):
    made, (x, level, condition) = network(router=router), inputs()
    changed = x.clone()
    changed[:, 6:] += 1  # actions 2 and 3
    before, after = made(x, level, condition), made(changed, level, condition)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().min() > 0


def test_the_observed_tokens_are_what_the_order_of_the_condition_says():
    made, (_, _, condition) = network(), inputs(1)
    tokens = made.observed(condition)
    goal, first, second = condition.split([2, 13, 13], dim=1)
    expected = [goal @ made.goal.weight.T + made.positions[0]]
    for position, tick in ((1, first), (2, second)):
        expected += [part @ made.camera.weight.T + made.positions[position] for part in tick[:, :10].split(5, dim=1)]
        expected += [tick[:, 10:] @ made.state.weight.T + made.positions[position]]
    torch.testing.assert_close(tokens, torch.stack(expected, dim=1))


def test_the_first_action_shares_the_position_of_the_newest_tick():
    made = network()
    tokens = made.actions(torch.zeros(1, 12))
    torch.testing.assert_close(tokens[0], made.positions[2:6])


@pytest.mark.parametrize("router", ["noise", "token"])
def test_the_chosen_experts_add_what_a_brute_force_over_all_experts_says(router):
    made = network(router=router, shared_expert=True).double()
    block, (_, level, _) = made.blocks[0], inputs()
    x, noise = torch.randn(3, 5, 16, dtype=torch.float64), made.noise(level.double())
    block.router.float()
    found = block(x, noise)
    y = block.expert_norm(x + block.attention(block.attention_norm(x) + noise[:, None]))
    for row in range(3):
        for token in range(5):
            said = block.router(noise[row] if router == "noise" else y[row, token])
            best = said.topk(2)
            expected = y[row, token] + block.shared(y[row, token])
            for weight, index in zip(best.values / best.values.sum(), best.indices):
                expected = expected + weight * block.experts[index](y[row, token])
            torch.testing.assert_close(found[row, token], expected, rtol=1e-6, atol=1e-6)


def test_routing_by_noise_is_the_same_whatever_the_tokens_are():
    made, (x, level, condition) = network(), inputs()
    chosen = []
    for block in made.blocks:
        block.register_forward_pre_hook(lambda module, given: chosen.append(chosen_experts(module.router(given[1]), 2)[0]))
    made(x, level, condition)
    made(x + 1, level, condition + 1)
    assert torch.equal(chosen[0], chosen[2]) and torch.equal(chosen[1], chosen[3])


def test_sampled_routing_draws_without_replacement_by_the_probabilities():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    torch.manual_seed(0)
    chosen, weights = chosen_experts(p.expand(40_000, 4), 2, sampled=True)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    for e in range(4):
        among = p[e] + sum(p[f] * p[e] / (1 - p[f]) for f in range(4) if f != e)  # first, or second after another
        assert (chosen == e).any(dim=1).float().mean().item() == pytest.approx(among.item(), abs=0.01)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(40_000))


def test_the_balance_is_1_where_all_experts_are_used_alike_and_E_over_k_where_k_are_used_alone():
    block = ModeBlock(SIZES)
    even = torch.full((1, 2, 4), 0.25)
    block._weigh(even, torch.tensor([[[0, 1], [2, 3]]]))
    assert block.balance.item() == pytest.approx(1.0)
    block._weigh(torch.tensor([[[0.5, 0.5, 0.0, 0.0]]]), torch.tensor([[[0, 1]]]))
    assert block.balance.item() == pytest.approx(2.0)


def test_following_the_balance_spreads_the_choices_of_a_router_that_liked_two_experts():
    made = network(sampled_routing=False, goal_dropout=0.0).train()
    with torch.no_grad():
        for block in made.blocks:
            block.router.leave.bias += torch.tensor([3.0, 3.0, 0.0, 0.0])
    x, level, condition = inputs(64)
    steps = torch.optim.SGD([p for b in made.blocks for p in b.router.parameters()], lr=0.1)
    balances = []
    for _ in range(60):
        made(x, level, condition)
        balances.append(made.balance())
        steps.zero_grad()
        balances[-1].backward()
        steps.step()
    assert balances[0].item() > 1.4 and balances[-1].item() < 1.2


def test_a_dense_network_has_no_router_and_no_balance():
    made, (x, level, condition) = network(experts=1, top_k=1, expert_ratio=8.0).train(), inputs()
    made(x, level, condition)
    assert made.balance() is None and made.usage() is None
    assert not [name for name, _ in made.named_parameters() if "router" in name]


def test_a_dense_network_of_double_ratio_has_the_active_parameters_of_two_experts_but_for_the_router():
    def active(made):
        routers = sum(p.numel() for n, p in made.named_parameters() if "router" in n)
        idle = (
            sum(p.numel() for n, p in made.named_parameters() if ".experts." in n) // 2 if len(made.blocks[0].experts) == 4 else 0
        )
        return sum(p.numel() for p in made.parameters()) - routers - idle

    assert active(network()) == active(network(experts=1, top_k=1, expert_ratio=8.0))


def test_rms_norm_divides_by_the_root_mean_square_and_leaves_zeros():
    norm = RMSNorm(4)
    x = torch.tensor([[1.0, -2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(norm(x), x / torch.tensor([[math.sqrt(7.5)], [1.0]]))


def test_training_reaches_every_parameter():
    made, (x, level, condition) = network(shared_expert=True).train(), inputs(64)
    (made(x, level, condition).square().mean() + made.balance()).backward()
    assert not [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
