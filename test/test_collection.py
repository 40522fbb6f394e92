# SPDX-License-Identifier: Apache-2.0
"""Control-time DDIL: the student's own observations, the teacher's chunks, in every batch, and the same after a kill."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import methods  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods._ring import Ring  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.collection import Collection  # noqa: E402
from ros_vdd.training.config import Collect, TrainConfig  # noqa: E402
from ros_vdd.training.distributed import Group  # noqa: E402
from ros_vdd.training.rollouts import Player, episode_seeds  # noqa: E402

COLLECT = {"env": toy.ARM, "every": 2, "episodes": 3, "share": 0.5, "keep": 30}
STUDENTS = [n for n in methods.names() if methods.find(n).NEEDS_TEACHER and not getattr(methods.find(n), "NEEDS_ENV", False)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("collection") / "store")


@pytest.fixture(scope="module")
def teacher(store, tmp_path_factory):
    values = toy.config("score_matching", "diffusion", store.root, {"steps": 5})
    return TrainingRun(build(TrainConfig, values), str(tmp_path_factory.mktemp("teacher") / "policy"), progress=False).run()


@pytest.fixture
def configured(store, teacher):
    def make(name="consistency", **fields):
        given = {"teacher": str(teacher.path), "collect": COLLECT, **fields}
        return build(TrainConfig, toy.config(name, methods.find(name).KIND, store.root, **given))

    return make


def train(config, out):
    TrainingRun(config, str(out), progress=False).run()
    return checkpoint(out)


def checkpoint(out):
    from safetensors.torch import load_file

    return load_file(str(out.with_name(f"{out.name}.training") / "checkpoint.safetensors"))


def batch_of(store, **sizes):
    windows = Windows(store, range(len(store)), 2, 4)
    return windows.batch(np.arange(8))


def collection(teacher=None, policy=None, **changes):
    config = build(Collect, {**COLLECT, **changes})
    return Collection(config, policy or toy.network("few_step"), teacher or toy.network("diffusion", seed=1), seed=5)


def test_the_student_is_labelled_where_it_went_by_the_teacher(store):
    made = collection()
    made.play(4, batch_of(store), Draws(3))
    seeds = episode_seeds(5, 2, 3)
    episodes, draws = Player(toy.ARM).play(made.policy, seeds), Draws(3)
    states = torch.from_numpy(np.concatenate([e.observations["state"] for e in episodes]))
    count = len(states)
    assert made.ring.held == count == 12
    assert torch.equal(made.ring.state[:count], states)
    with torch.no_grad():
        chunks = [made.teacher(_tensors(e), draws.normal((len(e.chunks), 4, 2))) for e in episodes]
    torch.testing.assert_close(made.ring.actions[:count], torch.cat(chunks))
    assert made.ring.mask[:count].all()


def _tensors(episode):
    return {name: torch.from_numpy(value) for name, value in episode.observations.items()}


@pytest.mark.parametrize("share, replaced", [(0.25, 2), (0.5, 4), (0.05, 0)])
def test_a_batch_takes_its_share_of_rows_from_there(share, replaced, store):
    made, batch = collection(share=share), batch_of(store)
    assert made.joined(batch, Draws(0)) is batch, "before the first round there is nothing to take"
    made.play(2, batch, Draws(0))
    joined = made.joined(batch, Draws(1))
    kept = made.ring.state[: made.ring.held]
    assert joined.keys() == batch.keys()
    assert all(joined[k].dtype == batch[k].dtype and joined[k].shape == batch[k].shape for k in batch)
    for row in range(8):
        found = bool((joined["state"][row] == kept).all(dim=(1, 2)).any())
        assert found == (row < replaced)
        assert row < replaced or all(torch.equal(joined[k][row], batch[k][row]) for k in batch)


def test_pictures_are_kept_as_the_features_that_batches_have(tmp_path):
    seeing, student = toy.store(tmp_path / "store", toy.SEEING), toy.network("few_step", toy.SEEING)

    class Seeing(toy.Arm):
        def _observe(self):
            return {**super()._observe(), "images.top": np.full((toy.SIDE, toy.SIDE, 3), 30 * self._steps, np.uint8)}

    made = collection(toy.network("diffusion", toy.SEEING), student)
    made._player._envs = [Seeing() for _ in range(3)]
    windows = Windows(seeing, range(len(seeing)), 2, 4)
    plain = windows.batch(np.arange(8))
    episode = made._player.play(student, [0])[0]
    rows = made.labelled(episode, plain.keys(), Draws(0))
    assert rows["images.top"].dtype == torch.uint8 and rows["images.top"].shape[1:] == plain["images.top"].shape[1:]
    cached = {**{k: v for k, v in plain.items() if k != "images.top"}, "features": torch.zeros(8, 2, 2)}
    features = made.labelled(episode, cached.keys(), Draws(0))
    assert features.keys() == cached.keys()
    with torch.no_grad():
        torch.testing.assert_close(student.condition(features), student.condition(rows))
        torch.testing.assert_close(features["actions"], rows["actions"])
    made.ring.add(rows)
    assert made.joined(plain, Draws(0))["images.top"].dtype == torch.uint8


def test_a_window_teacher_is_told_what_was_executed(store):
    sizes = {"n_obs_steps": 3, "horizon": 1, "n_action_steps": 1}
    student, teacher = toy.network("mixture", **sizes), toy.network("window")
    made = collection(teacher, student)
    windows = Windows(store, range(len(store)), 3, 1)
    made.play(2, windows.batch(np.arange(8)), Draws(0))
    assert made.ring.past_mask[0].tolist() == [0, 0] and made.ring.past_mask[2].tolist() == [1, 1]
    assert made.ring.actions.shape[1:] == (1, 2)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_that_collects_and_is_killed_ends_as_the_unbroken_one(name, configured, tmp_path):
    expected = train(configured(name), tmp_path / "unbroken")
    assert int(expected["companion.collected.count"]) > 12
    for step in (2, 3, 5):
        out = tmp_path / f"killed{step}"
        with toy.killed_before(step):
            train(configured(name), out)
        got = train(configured(name), out)
        assert got.keys() == expected.keys()
        assert [k for k in got if not torch.equal(got[k], expected[k])] == [], f"killed before step {step}"


def test_the_seed_decides_what_is_collected_and_learned(configured, tmp_path):
    one, same, other = (train(configured(seed=seed), tmp_path / name) for name, seed in (("one", 3), ("same", 3), ("other", 4)))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["companion.collected.state"], other["companion.collected.state"])


def test_the_averaged_weights_play(configured, tmp_path, monkeypatch):
    name, played, real = "denoiser.network.leave.1.weight", [], Player.play

    def watched(self, policy, seeds):
        played.append(policy.state_dict()[name].clone())
        return real(self, policy, seeds)

    monkeypatch.setattr(Player, "play", watched)
    for step in (3, 2):
        with toy.killed_before(step):
            train(configured(loop={"checkpoint_every": 1}), tmp_path / str(step))
    assert len(played) == 1
    saved = checkpoint(tmp_path / "2")
    assert torch.equal(played[0], saved[f"average.{name}"]) and not torch.equal(played[0], saved[f"module.{name}"])


def test_a_ring_keeps_the_newest_rows():
    ring = Ring(4)
    assert ring.empty
    ring.add({"a.b": torch.arange(3), "c": torch.zeros(3, 2)})
    assert ring.held == 3 and set(ring.draw(50, Draws(0))["a.b"].tolist()) == {0, 1, 2}
    ring.add({"a.b": torch.arange(10, 13), "c": torch.ones(3, 2)})
    rows = ring.draw(100, Draws(0))
    assert set(rows["a.b"].tolist()) == {2, 10, 11, 12} and ring.held == 4
    assert torch.equal(rows["c"][:, 0], (rows["a.b"] >= 10).float()), "the parts of a row stay together"
    ring.add({"a.b": torch.arange(20, 29), "c": torch.ones(9, 2)})
    assert set(ring.draw(100, Draws(0))["a.b"].tolist()) == {25, 26, 27, 28}


def test_a_ring_comes_back_from_a_checkpoint_whatever_it_held():
    ring, again = Ring(4), Ring(4)
    ring.add({"images.top": torch.ones(2, 3, dtype=torch.uint8)})
    again.load_state_dict(ring.state_dict())
    assert not again.empty and torch.equal(again.draw(5, Draws(0))["images.top"], ring.draw(5, Draws(0))["images.top"])


def test_a_ring_comes_back_on_the_device_that_it_is_on():
    """A buffer on the CPU beside a policy on a GPU ends a resumed run at its first step; the meta device stands for the GPU."""
    ring, again = Ring(4), Ring(4).to("meta")
    ring.add({"x": torch.ones(2, 3)})
    with pytest.warns(UserWarning, match="no-op"):
        again.load_state_dict(ring.state_dict())
    assert {value.device.type for value in again.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("wrong", [{"share": 0.6}, {"share": 0.0}, {"every": 0}, {"episodes": 0}, {"keep": 0}, {"at_once": 0}])
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"'{next(iter(wrong))}'"):
        Collect(**{"env": toy.ARM, **wrong})


@pytest.mark.parametrize(
    "collect, said",
    [
        ({"every": 6}, "'collect.every' is 6, 'loop.steps' 6"),
        ({"share": 0.05}, "'collect.share' is 0.05, 'loop.batch_size' 8"),
    ],
)
def test_a_collection_that_no_batch_would_ever_see_is_refused(collect, said, configured):
    with pytest.raises(ConfigError, match=said):
        configured(collect={**COLLECT, **collect})


def test_an_unknown_key_is_an_error(configured):
    with pytest.raises(ConfigError, match="unknown key 'collect.shares'; .*'share'"):
        configured(collect={**COLLECT, "shares": 0.1})


def test_what_cannot_collect_says_so(configured, store, tmp_path, monkeypatch):
    em = build(TrainConfig, toy.config("em", "mixture", store.root, collect=COLLECT))
    with pytest.raises(ConfigError, match="'collect' is given, and method 'em' has no teacher"):
        TrainingRun(em, str(tmp_path / "em"), progress=False)
    with pytest.raises(ConfigError, match="'rollouts' is given, and method 'consistency' doesn't learn from what.*'collect'"):
        TrainingRun(configured(rollouts={"env": toy.ARM}), str(tmp_path / "cd"), progress=False)
    with pytest.raises(ConfigError, match="'collect.env' is 'avoiding', an environment of robot 'avoiding'"):
        TrainingRun(configured(collect={**COLLECT, "env": "avoiding"}), str(tmp_path / "cd"), progress=False)
    run = TrainingRun(configured(), str(tmp_path / "cd"), progress=False)
    monkeypatch.setattr("ros_vdd.offline.training_run.join", lambda loop: _Two())
    with pytest.raises(ConfigError, match="play in one process, and there are 2; start it without torchrun"):
        run.run()


class _Two:
    def __enter__(self):
        return Group(world=2)

    def __exit__(self, *error):
        return False
