# SPDX-License-Identifier: Apache-2.0
"""The released image encoders: held against a straight-line version of their description, and against their published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import released  # noqa: E402
import toy  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.networks.film_resnet import CLIP_MEAN, CLIP_STD, ENCODERS, FilmResNet18, FilmResNet50, clip_normalised  # noqa: E402
from ros_vdd.policies import ModeConfig, ModePolicy  # noqa: E402
from ros_vdd.policies.vision import VisionConfig  # noqa: E402
from ros_vdd.streams.goal import GoalSpec  # noqa: E402
from ros_vdd.streams.stream_spec import CameraSpec  # noqa: E402

GOAL = 6


def shaken(encoder):
    """Return an encoder in float64 none of whose numbers is one that hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in encoder.double().state_dict().items():
            if value.ndim == 4:
                continue  # convolutions are random from the start
            value.copy_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
            if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
                value.copy_(0.5 + value.abs())
    return encoder.eval()


@pytest.mark.parametrize(
    "make, plain", [(lambda: FilmResNet18(GOAL, 5), released.resnet18), (lambda: FilmResNet50(GOAL), released.resnet50)]
)
def test_features_are_those_of_the_description_written_down_line_by_line(make, plain):
    torch.manual_seed(0)
    encoder = shaken(make())
    pictures, goal = torch.randint(0, 256, (2, 3, 40, 56)).double(), torch.randn(2, GOAL).double()
    with torch.no_grad():
        expected = plain(encoder.state_dict(), pictures, goal)
        found = encoder(pictures / 127.5 - 1, goal)
        other = encoder(pictures / 127.5 - 1, goal + 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    assert not torch.allclose(found, other, rtol=1e-3)


@pytest.mark.parametrize(
    "name, features, backbone, film",
    [
        ("film_resnet18", 512, 11_176_512 + 512 * 512 + 512, (512 + 1) * 4 * (64 + 128 + 256 + 512)),  # torchvision's, fc, FiLM
        ("film_resnet50", 2048, 23_508_032, 2 * (512 + 1) * (256 + 512 + 1024 + 2048)),  # timm's without classifier, FiLM
    ],
)
def test_parameters_are_those_of_the_known_backbones_and_the_film_layers(name, features, backbone, film):
    with torch.device("meta"):
        encoder = ENCODERS[name](512, features)
    assert sum(p.numel() for p in encoder.parameters()) == backbone + film


def test_the_largest_release_has_740_million_parameters_with_both_encoders():
    with torch.device("meta"):
        encoder = ENCODERS["film_resnet50"](512, 2048)
    assert 685_853_751 + 2 * sum(p.numel() for p in encoder.parameters()) == pytest.approx(740e6, rel=0.002)


def test_black_and_white_are_normalised_as_clip_does():
    black, white = clip_normalised(-torch.ones(1, 3, 1, 1)).flatten(), clip_normalised(torch.ones(1, 3, 1, 1)).flatten()
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    torch.testing.assert_close(black, -mean / std)
    torch.testing.assert_close(white, (1 - mean) / std)


@pytest.mark.parametrize("make", [lambda: FilmResNet18(GOAL, 5), lambda: FilmResNet50(GOAL)])
def test_a_picture_means_the_same_alone_and_among_others_in_training_too(make):
    torch.manual_seed(0)
    encoder = make().train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    pictures, goal = torch.rand(3, 3, 32, 32) * 2 - 1, torch.randn(3, GOAL)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pictures, goal)[1:2], encoder(pictures[1:2], goal[1:2]), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_resnet50_begins_without_a_word_from_the_goal():
    torch.manual_seed(0)
    encoder, picture = FilmResNet50(GOAL), torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder(picture, torch.randn(1, GOAL)), encoder(picture, torch.randn(1, GOAL)))


def robot(goal=True):
    camera = {n: CameraSpec(topic=n, width=32, height=32, max_age_s=0.5) for n in ("static", "wrist")}
    told = GoalSpec(topic="goal", type="std_msgs/msg/Float32MultiArray", size=GOAL) if goal else None
    return replace(toy.BLIND, cameras=camera, goal=told)


def test_each_tick_is_looked_at_for_the_goal_of_its_own_row():
    torch.manual_seed(0)
    vision = VisionConfig(features=8, encoder="film_resnet18")
    sizes = {"n_obs_steps": 2, "horizon": 4, "n_action_steps": 4, "width": 16, "depth": 1, "heads": 2}
    policy = ModePolicy(robot(), ModeConfig(**sizes, vision=vision)).eval()
    pictures = {f"images.{n}": torch.randint(0, 256, (3, 2, 32, 32, 3), dtype=torch.uint8) for n in ("static", "wrist")}
    observation = {**pictures, "state": torch.zeros(3, 2, policy.robot.state_size), "goal": torch.randn(3, GOAL)}
    with torch.no_grad():
        seen = policy.observed_ticks(observation)
        for row in range(3):
            for tick in range(2):
                for place, name in enumerate(("static", "wrist")):
                    picture = pictures[f"images.{name}"][row, tick].permute(2, 0, 1)[None].float() / 127.5 - 1
                    alone = policy.encoders[f"images_{name}"](picture, observation["goal"][row : row + 1])
                    torch.testing.assert_close(seen[row, tick, 8 * place : 8 * place + 8], alone[0], rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_told_the_goal_needs_one():
    config = ModeConfig(vision=VisionConfig(features=8, encoder="film_resnet18"))
    with pytest.raises(ConfigError, match="add a section 'goal'"):
        ModePolicy(robot(goal=False), config)
    policy = ModePolicy(robot(), config)
    with pytest.raises(ConfigError, match="needs the goal"):
        policy.encode_frames({f"images.{n}": torch.zeros(1, 32, 32, 3, dtype=torch.uint8) for n in ("static", "wrist")})


def test_resnet50_gives_2048_features_and_no_other_number():
    with pytest.raises(ConfigError, match="features: 2048"):
        VisionConfig(features=512, encoder="film_resnet50")
    with pytest.raises(ValueError, match="2048"):
        FilmResNet50(GOAL, 512)
