# SPDX-License-Identifier: Apache-2.0
"""Networks start where they should, treat each element of a batch alone, and refuse sizes they can't have."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.networks.blocks import ConditionedBlock, FourierEmbedding, ResidualBlock  # noqa: E402
from ros_vdd.networks.mlp import DenoiserMLP, Trunk  # noqa: E402
from ros_vdd.networks.transformer import WindowTrunk  # noqa: E402
from ros_vdd.networks.vision import ImageEncoder  # noqa: E402


def randomised(module):
    """Take a network away from its start, where residual branches are silent."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return module.eval()


def alone_and_together(network, *inputs):
    together = network(*inputs)
    alone = torch.cat([network(*(x[i : i + 1] for x in inputs)) for i in range(len(together))])
    return alone, together


def test_residual_blocks_start_as_the_identity():
    x, condition = torch.randn(3, 8), torch.randn(3, 5)
    assert torch.equal(ResidualBlock(8, 16)(x), x)
    assert torch.equal(ConditionedBlock(8, 16, condition=5)(x, condition), x)


def test_embedding_holds_the_sine_and_cosine_of_each_frequency():
    x = torch.tensor([0.0, 0.3, -1.7])
    sines, cosines = FourierEmbedding(8, low=0.25, high=16.0)(x).chunk(2, dim=1)
    frequencies = torch.tensor([0.25 * (16 / 0.25) ** (i / 3) for i in range(4)])
    torch.testing.assert_close(sines, (2 * math.pi * x[:, None] * frequencies).sin(), rtol=0, atol=1e-4)
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones(3, 4))


@pytest.mark.parametrize(
    "network, inputs",
    [
        (Trunk(5, 16, 2), (torch.randn(4, 5),)),
        (WindowTrunk(3, 5, 16, 2, heads=2), (torch.randn(4, 15),)),
        (DenoiserMLP(6, 5, 16, 2), (torch.randn(4, 6), torch.randn(4), torch.randn(4, 5))),
        (ImageEncoder(16, 24, 3, (4, 8), 8), (torch.randn(4, 3, 16, 24),)),
    ],
    ids=["trunk", "window trunk", "denoiser", "encoder"],
)
def test_an_element_doesnt_depend_on_its_batch(network, inputs):
    torch.testing.assert_close(*alone_and_together(randomised(network), *inputs), rtol=1e-4, atol=1e-5)


def test_the_denoiser_network_uses_each_of_its_inputs():
    network = randomised(DenoiserMLP(6, 5, 16, 2))
    inputs = [torch.randn(4, 6), torch.randn(4), torch.randn(4, 5)]
    before = network(*inputs)
    for index, value in enumerate(inputs):
        changed = [v + 0.5 if i == index else v for i, v in enumerate(inputs)]
        assert not torch.allclose(before, network(*changed), atol=1e-3), f"input {index} is ignored"


def test_the_encoder_sees_where_things_are():
    encoder = randomised(ImageEncoder(16, 16, 3, (4, 8), 8))
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, :, 2:6, 2:6] = 1.0
    assert not torch.allclose(encoder(picture), encoder(picture.roll(8, dims=3)), atol=1e-3)


def test_the_encoder_refuses_a_picture_that_doesnt_divide():
    with pytest.raises(ConfigError, match="20x16.*multiples of 8"):
        ImageEncoder(16, 20, 3, (4, 8), 8)
