# SPDX-License-Identifier: Apache-2.0
"""The transformer looks back only, agrees with plain numpy attention, and has correct gradients; so does the window network."""

from __future__ import annotations

import math

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.networks.transformer import CausalBlock, CausalTransformer, WindowTransformer  # noqa: E402

LENGTH, WIDTH, HEADS = 6, 8, 2
TICKS, FRAME, ACTION = 3, 4, 2


def scattered(network):
    """Return it in float64 with every parameter random, so that no zero hides a fault."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.double().eval()


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transformer(dropout=0.0):
    return scattered(CausalTransformer(LENGTH, WIDTH, depth=2, heads=HEADS, dropout=dropout))


def window():
    return scattered(WindowTransformer(TICKS, FRAME, ACTION, WIDTH, depth=2, heads=HEADS))


@pytest.mark.parametrize("place", range(LENGTH))
def test_an_output_depends_on_its_own_and_earlier_tokens_only(place):
    network, tokens = transformer(), random(2, LENGTH, WIDTH)
    changed = tokens.clone()
    changed[:, place] += random(2, WIDTH, seed=2)
    differs = (network(changed) != network(tokens)).any(dim=2)
    assert not differs[:, :place].any() and differs[:, place:].all()


def test_fewer_tokens_give_the_same_outputs():
    network, tokens = transformer(), random(2, LENGTH, WIDTH)
    torch.testing.assert_close(network(tokens[:, :4]), network(tokens)[:, :4], rtol=1e-12, atol=1e-12)


def test_positions_tell_equal_tokens_apart():
    outputs = transformer()(torch.ones(1, LENGTH, WIDTH, dtype=torch.float64))[0]
    assert torch.cdist(outputs, outputs).fill_diagonal_(1).min() > 1e-3


def norm(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return x * layer.weight.numpy() + layer.bias.numpy()


def linear(x, layer):
    return x @ layer.weight.numpy().T + layer.bias.numpy()


@torch.no_grad()
def test_a_block_is_the_formula_in_numpy():
    """softmax(q k^T / sqrt(d) over the past) v, head by head; gelu(x) = x Phi(x)."""
    block, x = scattered(CausalBlock(WIDTH, HEADS)), random(LENGTH, WIDTH).numpy()
    query, key, value = np.split(linear(norm(x, block.attention_norm), block.query_key_value), 3, axis=1)
    size, heads = WIDTH // HEADS, []
    for h in range(HEADS):
        q, k, v = (part[:, h * size : (h + 1) * size] for part in (query, key, value))
        weight = np.exp(q @ k.T / np.sqrt(size)) * np.tri(LENGTH)
        heads.append(weight / weight.sum(1, keepdims=True) @ v)
    expected = x + linear(np.concatenate(heads, axis=1), block.mix)
    enter, _, leave = block.feed_forward[1:4]
    hidden = linear(norm(expected, block.feed_forward[0]), enter)
    gelu = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
    expected = expected + linear(gelu, leave)
    np.testing.assert_allclose(block(torch.from_numpy(x)[None])[0].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    network = transformer()
    assert torch.autograd.gradcheck(network, random(1, 4, WIDTH).requires_grad_())


def test_gradients_of_the_window_network_are_those_of_finite_differences():
    inputs = [random(2, TICKS * ACTION), random(2), random(2, TICKS * FRAME, seed=3)]
    assert torch.autograd.gradcheck(window(), [i.requires_grad_() for i in inputs])


@pytest.mark.parametrize("tick", range(TICKS))
def test_the_answer_for_an_action_sees_its_tick_and_earlier_ones(tick):
    network, level = window(), random(2)
    x, condition = random(2, TICKS, ACTION), random(2, TICKS, FRAME, seed=3)
    before = network(x.flatten(1), level, condition.flatten(1)).reshape(2, TICKS, ACTION)
    for part in (x, condition):
        part[:, tick] += 1.0
        after = network(x.flatten(1), level, condition.flatten(1)).reshape(2, TICKS, ACTION)
        differs = (after != before).any(dim=2)
        assert not differs[:, :tick].any() and differs[:, tick:].all()
        part[:, tick] -= 1.0


def test_the_window_network_hears_the_level():
    network, x, condition = window(), random(2, TICKS * ACTION), random(2, TICKS * FRAME)
    answers = [network(x, torch.full((2,), level, dtype=x.dtype), condition) for level in (-0.5, 0.1)]
    assert (answers[0] != answers[1]).all()


def test_dropout_acts_in_training_only():
    network, tokens = transformer(dropout=0.5), random(2, LENGTH, WIDTH)
    assert torch.equal(network(tokens), network(tokens))
    network.train()
    assert not torch.equal(network(tokens), network(tokens))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width=8, heads=3.*multiple of heads"):
        CausalTransformer(LENGTH, WIDTH, depth=1, heads=3)
