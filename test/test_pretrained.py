# SPDX-License-Identifier: Apache-2.0
"""Published weights of a ResNet-18 come into every camera's trunk as they are, or are refused; a training begins with them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from ros_vdd.config import build, to_plain  # noqa: E402
from ros_vdd.data.episodes import EpisodeWriter  # noqa: E402
from ros_vdd.errors import ConfigError, DataError, PolicyError  # noqa: E402
from ros_vdd.networks.resnet import ResNet18  # noqa: E402
from ros_vdd.networks.vision import ImageEncoder  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.policies.pretrained import IMAGENET_MEAN, IMAGENET_STD, load_trunks  # noqa: E402
from ros_vdd.streams.spec import robot_from_mapping  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402

SIDE = 64


def published(changes=lambda state: None):
    """Return random weights by the names and with the extras of an ImageNet model."""
    torch.manual_seed(3)
    trunk = {k: v for k, v in ResNet18(SIDE, SIDE, 4).state_dict().items() if not k.startswith(("points.", "head.", "mean", "std"))}
    state = {k: torch.rand(v.shape) + 0.1 if "bn" in k or "downsample.1" in k else v.clone() for k, v in trunk.items()}
    state |= {k.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for k in trunk if k.endswith("running_mean")}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    changes(state)
    return state


@pytest.fixture
def file(tmp_path):
    save_file(published(), tmp_path / "resnet18.safetensors")
    return str(tmp_path / "resnet18.safetensors")


def test_every_trunk_has_the_weights_and_keeps_a_head_of_its_own(file):
    encoders = {name: ResNet18(SIDE, SIDE, 4) for name in ("left", "right")}
    heads = {name: encoder.head.weight.clone() for name, encoder in encoders.items()}
    load_trunks(file, encoders)
    state = published()
    for name, encoder in encoders.items():
        for key, value in encoder.state_dict().items():
            if key in state:
                assert torch.equal(value, state[key]), key
        assert torch.equal(encoder.head.weight, heads[name])
    assert not torch.equal(heads["left"], heads["right"])


def test_the_trunk_sees_pictures_as_the_weights_did(file):
    """Against ImageNet's normalisation of pictures in [0, 1], written down here."""
    encoder, seen = ResNet18(SIDE, SIDE, 4), []
    load_trunks(file, {"top": encoder})
    encoder.conv1.register_forward_hook(lambda module, given, answer: seen.append(given[0]))
    pictures = torch.randint(0, 256, (2, 3, SIDE, SIDE))
    encoder(pictures / 127.5 - 1)
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    np.testing.assert_allclose(seen[0].numpy(), (pictures.numpy() / 255.0 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    "changes, told",
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"1 differ, for example layer1.0.conv1.weight \[64, 64, 3, 3\] \(expected\)"),
        (lambda s: s.update({"layer5.weight": torch.zeros(1)}), r"layer5.weight \[1\] \(given\)"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}), "2 differ"),
        (lambda s: s["bn1.weight"].fill_(float("nan")), "holds NaN"),
    ],
    ids=["missing", "surplus", "another shape", "not finite"],
)
def test_other_weights_are_refused_and_nothing_is_loaded(changes, told, tmp_path):
    save_file(published(changes), tmp_path / "other.safetensors")
    encoder = ResNet18(SIDE, SIDE, 4)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(PolicyError, match=told):
        load_trunks(str(tmp_path / "other.safetensors"), {"top": encoder})
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(published(), tmp_path / "resnet18.pth")
    with pytest.raises(PolicyError, match="(?s)is a pickle.*throwaway"):
        load_trunks(str(tmp_path / "resnet18.pth"), {"top": ResNet18(SIDE, SIDE, 4)})


@pytest.mark.parametrize(
    "encoders, told",
    [({"top": ImageEncoder(16, 16, 4, (4,))}, "the encoder of 'top' is another"), ({}, "the robot file has no camera")],
    ids=["another encoder", "no camera"],
)
def test_weights_without_a_resnet_to_take_them_are_refused(encoders, told, file):
    with pytest.raises(ConfigError, match=told):
        load_trunks(file, encoders)


@pytest.fixture
def configured(tmp_path, file):
    """Return a training of a teacher with a ResNet-18 that begins with the file."""
    camera = {"topic": "camera", "width": SIDE, "height": SIDE, "max_age_s": 0.5}
    robot = robot_from_mapping({**to_plain(toy.BLIND), "cameras": {"top": camera}})
    rng, writer = np.random.default_rng(0), EpisodeWriter(tmp_path / "store", robot)
    for _ in range(3):
        pictures = rng.integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
        writer.add({**toy.arrays(toy.BLIND, 6, rng), "images.top": pictures}, {"source": "random"})

    def make(**changes):
        policy = {**toy.NETWORKS["diffusion"], "vision": {"features": 3, "encoder": "resnet18"}}
        loop = {"steps": 1, "batch_size": 2, "learning_rate": 1e-9, "warmup_steps": 0}
        values = {"name": "begun", "method": "score_matching", "data": str(tmp_path / "store"), "encoder": file, "policy": policy, "loop": loop}
        return TrainingRun(build(TrainConfig, {**values, **changes}), str(tmp_path / "begun"), progress=False)

    return make


def test_a_training_begins_with_the_weights_of_a_file(configured):
    weights = load_file(configured().run().file("weights.safetensors"))
    trained = {k.removeprefix("encoders.").partition(".")[2]: v for k, v in weights.items() if k.startswith("encoders.")}
    for key, value in published().items():
        if key in trained:
            torch.testing.assert_close(trained[key], value, rtol=0, atol=1e-6)
    torch.testing.assert_close(trained["mean"], 2 * torch.tensor(IMAGENET_MEAN) - 1)


def test_a_frozen_encoder_with_a_random_head_is_refused(configured):
    with pytest.raises(ConfigError, match="has no head for this policy"):
        configured(freeze_encoder=True).run()


def test_a_checkpoint_begun_with_other_weights_is_not_continued(configured, file):
    configured().run()
    other = published()
    other["conv1.weight"] += 1.0
    save_file(other, file)
    with pytest.raises(DataError, match="belongs to another configuration"):
        configured().run()
