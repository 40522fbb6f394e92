# SPDX-License-Identifier: Apache-2.0
"""What one policy hands on: a start is refused whose weights would mean something else, a teacher isn't asked beyond its levels."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.policies import transfer  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402

OTHERS = [
    ({"walk": "renoise"}, {"walk": "renoise", "boundary": False}, "'policy.boundary' True (here none)"),
    ({"walk": "renoise", "sampler": {"steps": 2, "sigma_min": 0.02}}, {"walk": "renoise"}, "'policy.sampler.sigma_min' 0.02 (here 0.01)"),
    ({"walk": "euler", "sigma_data": 0.3}, {"walk": "euler"}, "'policy.sigma_data' 0.3 (here 0.5)"),
    ({"walk": "posterior", "sampler": {"steps": 2, "sigma_max": 2.5}}, {"walk": "posterior"}, "'policy.sampler' 2.5 "),
    ({"walk": "posterior", "sigma_bound": 1.0}, {"walk": "posterior"}, "'policy.sigma_bound' 1.0 (here 3.0)"),
    ({"walk": "renoise"}, {"walk": "euler"}, "'policy.boundary' True (here none)"),
]


@pytest.mark.parametrize("there, here, told", OTHERS)
def test_a_start_whose_weights_would_be_read_otherwise_is_refused(there, here, told, tmp_path):
    start = toy.policy(tmp_path / "start", "few_step", **there)
    mine = toy.network("few_step", **{"sampler": {"steps": 2}, **here})
    with pytest.raises(ConfigError, match=re.escape(told)):
        transfer.require_equal_reading(mine, toy.network("few_step", **there), start)
    transfer.require_equal_reading(mine, mine, start)


def test_a_start_that_walks_by_other_levels_is_refused_by_a_training(tmp_path):
    """The shapes agree, so nothing else would notice."""
    store = toy.store(tmp_path / "store")
    toy.policy(tmp_path / "teacher", "diffusion")
    toy.policy(tmp_path / "start", "few_step", walk="posterior", sampler={"steps": 2, "sigma_max": 2.5})
    values = toy.config("dxdp", "few_step", store.root, teacher=str(tmp_path / "teacher"), start=str(tmp_path / "start"))
    values["options"] = {"warm_start": False}
    with pytest.raises(ConfigError, match="'start' .* was trained with 'policy.sampler' 2.5 0.*; give both the same"):
        TrainingRun(build(TrainConfig, values), str(tmp_path / "policy"), progress=False).run()


@pytest.mark.parametrize("sampler", [{"sigma_min": 0.005}, {"sigma_max": 40.0}])
def test_a_student_that_asks_its_teacher_beyond_the_trained_levels_is_refused(sampler):
    student = toy.network("few_step", sampler={"steps": 2, **sampler})
    with pytest.raises(ConfigError, match="the teacher was trained from 0.01 to 20, and must not be asked beyond"):
        transfer.require_known_levels(student, toy.network("diffusion"))


def test_levels_within_the_teachers_and_those_of_a_vp_teacher_are_taken():
    transfer.require_known_levels(toy.network("few_step", sampler={"steps": 2, "sigma_max": 2.5}), toy.network("diffusion"))
    vp = toy.network("diffusion", process="vp", sampler={"steps": 3})
    transfer.require_known_levels(toy.network("few_step", sampler={"steps": 2, "sigma_max": 600.0}), vp)
