# SPDX-License-Identifier: Apache-2.0
"""Policies that are told a goal: where it stands among the features, that it matters, that it is exported, and its windows."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from test_bag_convert import TASKS, robot, told  # noqa: E402

from ros_vdd import backends, methods, policies  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.data.episodes import EpisodeStore, EpisodeWriter  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402

RECIPES = [(name, kind) for name in methods.names() for kind in getattr(methods.find(name), "KINDS", [methods.find(name).KIND])]
KINDS = [kind for kind in toy.NETWORKS if kind != "encoder"]
GOAL = np.eye(3, dtype=np.float32)


def observation(robot, steps, place=0):
    made = {**toy.observation(robot, steps), "goal": GOAL[place]}
    return {name: torch.from_numpy(array)[None] for name, array in made.items()}


def answer(policy, observation, noise):
    out = policy(observation, noise)
    return out[0] if isinstance(out, tuple) else out


def noise_of(policy):
    return torch.zeros(1, *policy.noise_shape) if hasattr(policy, "noise_shape") else None


def seen(policy, place):
    inputs = observation(policy.robot, policy.config.n_obs_steps, place)
    if policy.kind == "window":
        steps, size = policy.noise_shape
        inputs |= {"past_actions": torch.zeros(1, steps - 1, size), "past_mask": torch.ones(1, steps - 1)}
    return inputs


@pytest.mark.parametrize("kind", ["diffusion", "window", "mixture"])
def test_the_features_have_the_goal_at_their_end(kind):
    policy = toy.network(kind, toy.SEEING_TOLD)
    inputs = seen(policy, 2)
    condition, ticks = policy.condition(inputs), policy.ticks(inputs)
    steps = policy.config.n_obs_steps
    assert condition.shape == (1, policy.condition_size)
    assert ticks.shape == (1, steps, policy.tick_size + 3)
    assert condition[0, -3:].tolist() == [0, 0, 1]
    assert ticks[0, :, -3:].tolist() == [[0, 0, 1]] * steps
    assert torch.equal(ticks[..., :-3], policy.observed_ticks(inputs))


def test_a_flat_condition_is_that_without_a_goal_and_then_the_goal():
    told, blind = toy.network("diffusion", toy.SEEING_TOLD), toy.network("diffusion", toy.SEEING)
    blind.load_state_dict({k: v for k, v in told.state_dict().items() if not k.startswith("denoiser")}, strict=False)
    inputs = seen(told, 1)
    assert told.condition_size == blind.condition_size + 3 == 2 * told.tick_size + 3
    assert torch.equal(told.condition(inputs)[:, :-3], blind.condition(inputs))
    assert torch.equal(told.ticks(inputs)[..., :-3], blind.ticks(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_another_goal_gives_another_answer(kind):
    policy = toy.network(kind, toy.TOLD)
    first, second = (answer(policy, seen(policy, place), noise_of(policy)) for place in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_transformer_student_is_told_the_goal():
    network = {**toy.NETWORKS["mixture"], "backbone": "transformer", "heads": 2}
    make, configuration = policies.KINDS["mixture"]
    policy = make(toy.TOLD, build(configuration, network))
    inputs = seen(policy, 1)
    assert policy.condition(inputs).shape == (1, policy.condition_size)
    torch.nn.init.normal_(policy.mean_head.weight)
    assert not torch.allclose(policy(inputs)[0], policy(seen(policy, 0))[0], atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mode"])  # its graph is tested with its plan
def test_the_exported_graph_takes_the_goal(kind, tmp_path):
    pytest.importorskip("onnxruntime", reason="the graph needs onnxruntime")
    pytest.importorskip("onnxscript", reason="export needs onnxscript")
    from ros_vdd.offline.export import export

    bundle = export(toy.policy(tmp_path / kind, kind, toy.TOLD), draws=5)
    assert bundle.input_shapes["goal"] == (3,)
    engine, eager = backends.load(bundle), backends.load(bundle, "eager")
    inputs = backends.random_inputs(bundle, np.random.default_rng(0))
    name = "means" if kind == "mixture" else "actions"
    answers = []
    for place in (0, 1):
        inputs["goal"] = GOAL[place][None]
        answers.append(engine.run(inputs)[name])
        np.testing.assert_allclose(answers[-1], eager.run(inputs)[name], rtol=0, atol=1e-4)
    assert not np.allclose(*answers, atol=1e-3)


def test_a_window_has_the_goal_of_its_newest_tick(tmp_path):
    writer = EpisodeWriter(tmp_path / "store", toy.TOLD)
    for places in ([0, 1, 1, 2], [2, 0]):
        made = toy.arrays(toy.TOLD, len(places), np.random.default_rng(0))
        writer.add({**made, "goal": GOAL[places]}, {})
    windows = Windows(EpisodeStore(writer.root), [0, 1], 3, 2)
    batch = windows.batch(np.array([5, 0, 1, 3]))
    assert batch["goal"].argmax(dim=1).tolist() == [0, 0, 1, 2] and batch["goal"].dtype == torch.float32


def test_a_goal_comes_from_a_bag_into_the_windows(tmp_path):
    ((arrays, meta),) = told(tmp_path / "bag", (-50, "push"), (325, "lift"))  # image k comes at k * 100 + 30 ms
    writer = EpisodeWriter(tmp_path / "store", robot(goal=TASKS))
    writer.add(arrays, meta)
    batch = Windows(EpisodeStore(writer.root), [0], 2, 2).batch(np.arange(10))
    assert batch["goal"].argmax(dim=1).tolist() == [0] * 3 + [2] * 7


def test_windows_without_a_goal_have_none(tmp_path):
    assert "goal" not in Windows(toy.store(tmp_path / "store"), [0], 2, 2).batch(np.array([0]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that trains a method for two steps on a store with goals, from a teacher that saw as much."""
    root = tmp_path_factory.mktemp("trained")
    told, seeing = toy.store(root / "told", toy.TOLD).root, toy.store(root / "seeing", toy.SEEING_TOLD).root

    def train(method, kind, out, **fields):
        config = build(TrainConfig, toy.config(method, kind, seeing if kind == "encoder" else told, {"steps": 2}, **fields))
        return TrainingRun(config, str(out), progress=False).run()

    teacher = train("score_matching", "diffusion", root / "teacher")
    given = {True: {"teacher": str(teacher.path)}, False: {}}
    played = {"rollouts": {"env": toy.TOLD_ARM, "episodes": 2}}
    return lambda method, kind, out: train(
        method, kind, out, **given[methods.find(method).NEEDS_TEACHER], **(played if method in toy.PLAYED else {})
    )


@pytest.mark.parametrize("method, kind", [recipe for recipe in RECIPES if recipe[1] in toy.NETWORKS])
def test_every_method_trains_with_a_goal(method, kind, trained, tmp_path):
    bundle = trained(method, kind, tmp_path / "policy")
    assert bundle.robot.goal.tasks == ("push", "pull", "lift") and bundle.input_shapes["goal"] == (3,)
    policies.load(bundle)


def test_a_policy_learns_to_do_what_it_is_told(tmp_path):
    """The state is the same for both goals, so nothing but the goal can tell the two actions apart."""
    writer, rng = EpisodeWriter(tmp_path / "store", toy.TOLD), np.random.default_rng(0)
    for number in range(8):
        made = toy.arrays(toy.TOLD, 12, rng)
        side = np.float32([-1, 1][number % 2])
        made["state"] = rng.normal(size=(12, 2)).astype(np.float32)
        made["action"] = np.full((12, 2), side, np.float32)
        made["goal"] = np.tile(GOAL[number % 2], (12, 1))
        writer.add(made, {})
    loop = {"steps": 150, "learning_rate": 1e-2, "batch_size": 32, "validate_every": 1000, "checkpoint_every": 1000}
    values = toy.config("score_matching", "diffusion", writer.root, loop)
    bundle = TrainingRun(build(TrainConfig, values), str(tmp_path / "policy"), progress=False).run()
    policy = policies.load(bundle)
    for place, side in ((0, -1.0), (1, 1.0)):
        chunk = policy(seen(policy, place), torch.zeros(1, *policy.noise_shape))
        np.testing.assert_allclose(chunk.detach().numpy(), side, atol=0.3)
