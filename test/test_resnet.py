# SPDX-License-Identifier: Apache-2.0
"""The ResNet-18 is torchvision's up to the head, tells places, and serves every method like the small encoder."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.networks.film_resnet import FilmResNet18, clip_normalised  # noqa: E402
from ros_vdd.networks.resnet import POINTS, ResNet18, SpatialSoftmax  # noqa: E402
from ros_vdd.policies.encoder import EncoderConfig, EncoderPolicy  # noqa: E402
from ros_vdd.policies.vision import VisionConfig  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402


def randomised(module, scale=0.05):
    """Take a network away from its start, where the branches are silent."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def test_the_trunk_has_the_parameters_of_torchvisions():
    encoder = ResNet18(96, 96, 4)
    head = (512 + 1) * POINTS + (2 * POINTS + 1) * 4
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512 + head
    names = set(encoder.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.1.bn2.bias", "layer4.0.downsample.0.weight", "layer4.0.downsample.1.running_mean"} <= names


def test_the_trunk_is_the_one_of_released_policies_where_those_are_told_nothing():
    """FiLM with scale 1 and shift 0 leaves a residual network; the last stages are compared."""
    told, plain = FilmResNet18(3, 4).eval(), randomised(ResNet18(64, 64, 4))
    with torch.no_grad():
        for stage in range(1, 5):
            layer = getattr(told, f"film_module{stage}").modulation[1]
            layer.weight.zero_()
            layer.bias.copy_(torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64), torch.zeros(64)]).repeat_interleave(2 ** (stage - 1)))
    trunk = {k: v for k, v in plain.state_dict().items() if not k.startswith(("points", "head"))}
    assert set(told.load_state_dict(trunk, strict=False).missing_keys) == {k for k in told.state_dict() if k.startswith(("film", "fc"))}
    images, seen = torch.rand(2, 3, 64, 64) * 2 - 1, {}
    plain.layer4.register_forward_hook(lambda module, given, answer: seen.update(plain=answer))
    told.layer4[-1].register_forward_hook(lambda module, given, answer: seen.update(told=answer))
    with torch.no_grad():
        told(images, torch.zeros(2, 3))
        plain(clip_normalised(images))
    torch.testing.assert_close(seen["plain"], seen["told"])
    assert seen["plain"].shape == (2, 512, 2, 2) and seen["plain"].abs().max() > 0.1


def test_spatial_softmax_gives_the_place_of_a_peak_and_the_centre_of_nothing():
    maps = torch.zeros(1, 3, 5, 3)
    maps[0, 0, 4, 0] = maps[0, 1, 1, 2] = 100.0
    points = SpatialSoftmax()(maps)[0]
    torch.testing.assert_close(points, torch.tensor([-1.0, 1.0, 0.0, 1.0, -0.5, 0.0]))


def test_spatial_softmax_of_a_side_of_one_cell_is_its_middle():
    torch.testing.assert_close(SpatialSoftmax()(torch.randn(2, 4, 1, 3))[:, 4:], torch.zeros(2, 4))


def test_a_picture_doesnt_depend_on_its_batch_and_its_place_counts():
    encoder, images = randomised(ResNet18(64, 96, 5)), torch.rand(3, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        together = encoder(images)
        torch.testing.assert_close(torch.cat([encoder(image[None]) for image in images]), together, rtol=1e-4, atol=1e-5)
        assert (encoder(images.roll(32, dims=3)) - together).abs().max() > 1e-3


def test_every_parameter_learns_but_those_behind_a_silent_branch():
    encoder = ResNet18(64, 64, 2)
    encoder(torch.rand(2, 3, 64, 64)).square().sum().backward()
    silent = {k for k, p in encoder.named_parameters() if not p.grad.abs().sum()}
    expected = {k for k, _ in encoder.named_parameters() if "layer" in k and "downsample" not in k and not k.endswith("bn2.weight")}
    assert silent == {k for k in expected if not k.endswith("bn2.bias")}


@pytest.mark.parametrize("size", [(32, 96), (96, 16)], ids=["one row", "less than a column"])
def test_a_picture_without_places_is_refused(size):
    with pytest.raises(ConfigError, match="more than 32 px"):
        ResNet18(*size, 4)


def test_it_is_chosen_by_name_and_told_no_goal():
    vision = VisionConfig(features=6, encoder="resnet18")
    policy = EncoderPolicy(load_robot("pusht"), EncoderConfig(vision=vision)).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 1, 96, 96, 3), dtype=np.uint8)
    camera = next(iter(policy.image_shapes))
    assert not vision.conditioned
    with torch.no_grad():
        assert policy({camera: torch.from_numpy(pictures)}).shape == (2, 1, 6)
