# SPDX-License-Identifier: Apache-2.0
"""From observation to chunk: the choice of an expert, seeds, refusals, and a thread where the newest request wins."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import toy
from ros_vdd import bundle
from ros_vdd.config import to_plain
from ros_vdd.errors import ConfigError, EngineError
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime import inference
from ros_vdd.runtime.inference import InferenceThread, PolicyRunner

GATE = np.array([0.15, 0.6, 0.25], dtype=np.float32)
PATIENCE_S = 30  # upper bound of waiting for an event; nothing waits that long unless it hangs


class Mixture:
    """An engine that answers expert number + step number, and remembers what it was given."""

    name = "stand-in"

    def __init__(self, gate=GATE):
        self.log_gate = np.log(gate)
        self.means = (np.arange(3)[:, None, None] * 10 + np.arange(4)[:, None] + np.zeros((3, 4, 2))).astype(np.float32)
        self.inputs = []

    def run(self, inputs):
        self.inputs.append(inputs)
        return {"means": self.means[None], "log_gate": self.log_gate[None]}


class Echo(Mixture):
    """A diffusion engine that answers the noise it was given."""

    def run(self, inputs):
        self.inputs.append(inputs)
        return {"actions": inputs["noise"]}


def opened(path, kind="mixture"):
    manifest = bundle.Manifest(
        name="p",
        kind=kind,
        robot=to_plain(toy.SEEING),
        network={},
        n_obs_steps=2,
        horizon=4,
        n_action_steps=2,
        experts=3,
    )
    return bundle.write(path / kind, manifest, {})


@pytest.fixture
def mixture(tmp_path):
    return opened(tmp_path)


@pytest.fixture
def diffusion(tmp_path):
    return opened(tmp_path, "diffusion")


@pytest.fixture
def observation():
    return toy.observation(toy.SEEING)


def test_argmax_takes_the_likeliest_expert(mixture, observation):
    prediction = PolicyRunner(mixture, Mixture()).act(observation)
    assert prediction.expert == 1
    assert prediction.actions.tolist() == [[10, 10], [11, 11], [12, 12], [13, 13]]
    assert prediction.means.shape == (3, 4, 2) and prediction.log_gate.shape == (3,)
    assert prediction.latency_ns >= 0


def test_sampling_follows_the_gate(mixture, observation):
    runner, count = PolicyRunner(mixture, Mixture(), "sample", seed=0), 4000
    drawn = np.bincount([runner.act(observation).expert for _ in range(count)], minlength=3) / count
    np.testing.assert_allclose(drawn, GATE, rtol=0, atol=4 * np.sqrt(0.25 / count))  # 4 standard errors at most


def test_the_seed_reproduces_the_draws(mixture, observation):
    def drawn(runner):
        return [runner.act(observation).expert for _ in range(40)]

    runner = PolicyRunner(mixture, Mixture(), "sample", seed=5)
    first = drawn(runner)
    assert drawn(PolicyRunner(mixture, Mixture(), "sample", seed=5)) == first
    assert drawn(PolicyRunner(mixture, Mixture(), "sample", seed=6)) != first
    runner.reset(5)
    assert drawn(runner) == first


def test_an_expert_that_is_all_but_certain_is_always_drawn(mixture, observation):
    gate = np.array([1e-30, 1.0, 1e-30], np.float32)
    runner = PolicyRunner(mixture, Mixture(gate), "sample")
    assert {runner.act(observation).expert for _ in range(200)} == {1}


def test_noise_is_seeded_and_standard_normal(diffusion, observation):
    runner = PolicyRunner(diffusion, Echo(), seed=1)
    drawn = np.stack([runner.act(observation).actions for _ in range(2000)])
    assert drawn.dtype == np.float32 and drawn.shape == (2000, 4, 2)
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size) and abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)
    runner.reset(1)
    np.testing.assert_array_equal(runner.act(observation).actions, drawn[0])


def test_warming_up_touches_no_randomness(diffusion, observation):
    cold, warm = (PolicyRunner(diffusion, Echo(), seed=1) for _ in range(2))
    warm.warm_up(observation, count=3)
    np.testing.assert_array_equal(warm.act(observation).actions, cold.act(observation).actions)


@pytest.mark.parametrize("rule", ["sample", "sticky", "gumbel"])
def test_warming_up_chooses_no_expert(rule, mixture, observation):
    def drawn(runner):
        return [runner.act(observation).expert for _ in range(10)]

    for seed in range(10):
        cold, warm = (PolicyRunner(mixture, Mixture(), rule, seed) for _ in range(2))
        warm.warm_up(observation, count=3)
        assert drawn(warm) == drawn(cold)


def test_a_rule_with_settings_commits_until_the_reset(mixture, observation):
    runner = PolicyRunner(mixture, Mixture(), ChoiceConfig("gumbel", temperature=2.0))
    episodes = []
    for seed in range(30):
        runner.reset(seed)
        episodes.append({runner.act(observation).expert for _ in range(5)})
    assert all(len(experts) == 1 for experts in episodes) and set.union(*episodes) == {0, 1, 2}


def test_the_engine_gets_a_batch_of_one(mixture, observation):
    engine = Mixture()
    PolicyRunner(mixture, engine).act(observation)
    assert {k: v.shape for k, v in engine.inputs[0].items()} == {"images.top": (1, 2, 16, 16, 3), "state": (1, 2, 2)}
    np.testing.assert_array_equal(engine.inputs[0]["state"][0], observation["state"])


@pytest.mark.parametrize(
    "change, told",
    [
        ({"state": None}, "lacks 'state'; it holds images.top"),
        ({"state": np.zeros((1, 2), np.float32)}, r"'state' is float32\(1, 2\); the policy takes float32\(2, 2\)"),
        ({"state": np.zeros((2, 2))}, r"'state' is float64\(2, 2\); the policy takes float32"),
        ({"images.top": np.zeros((2, 3, 16, 16), np.uint8)}, "the policy takes uint8"),
        ({"state": np.float32([[0, 0], [np.nan, 0]])}, "'state' holds NaN"),
    ],
)
def test_a_wrong_observation_never_reaches_the_engine(change, told, mixture, observation):
    engine = Mixture()
    given = {k: v for k, v in {**observation, **change}.items() if v is not None}
    with pytest.raises(EngineError, match=told):
        PolicyRunner(mixture, engine).act(given)
    assert not engine.inputs


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["means", "log_gate"])
def test_an_answer_that_isnt_finite_is_refused(value, place, mixture, observation):
    engine = Mixture()
    getattr(engine, place)[..., -1] = value
    with pytest.raises(EngineError, match="stand-in.*(NaN|finite)"):
        PolicyRunner(mixture, engine).act(observation)


def test_an_expert_that_isnt_finite_is_refused_before_one_is_chosen(mixture, observation):
    """`coherent` compares all plans: a NaN among them would make every weight one, and the first expert act."""
    engine = Mixture()
    runner = PolicyRunner(mixture, engine, ChoiceConfig("coherent"), seed=1)
    first, good = runner.act(observation, 1).expert, engine.means
    engine.means = np.where(np.arange(3)[:, None, None] == (first + 1) % 3, np.nan, good)
    with pytest.raises(EngineError, match="NaN"):
        runner.act(observation, 1)
    engine.means = good
    assert runner.act(observation, 1).expert == first, "the plan before is still known"


def test_coherent_draws_chunks_of_a_denoising_policy_and_goes_on_with_the_plan_before(diffusion, observation):
    engine = Echo()
    runner = PolicyRunner(diffusion, engine, ChoiceConfig("coherent", draws=5, tolerance=1e-3), seed=2)
    first = runner.act(observation, 1)
    assert len(engine.inputs) == 1, "nothing is left of a plan before"
    second = runner.act(observation, 1)
    drawn = np.concatenate([inputs["noise"] for inputs in engine.inputs[1:]])
    assert len(drawn) == 5 and len(np.unique(drawn)) == drawn.size and second.expert is None
    half = np.subtract(toy.SEEING.action.upper, toy.SEEING.action.lower) / 2
    distance = np.square((drawn[:, :-1] - first.actions[1:]) / half).sum(axis=(1, 2))
    np.testing.assert_array_equal(second.actions, drawn[distance.argmin()])
    np.testing.assert_array_equal(second.means, drawn)
    runner.reset(2)
    np.testing.assert_array_equal(runner.act(observation, 1).actions, first.actions)


def test_draws_without_meaning_are_refused():
    with pytest.raises(ConfigError, match="'draws' is 0; expected at least 1"):
        ChoiceConfig("coherent", draws=0)


def test_a_wrong_choice_is_told(mixture):
    with pytest.raises(ConfigError, match="'choice' is 'argmaxx'.*did you mean 'argmax'"):
        PolicyRunner(mixture, Mixture(), "argmaxx")


class Worker:
    """Work that begins and ends when the test says so."""

    def __init__(self):
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.results, self.errors = [], []
        self.thread = InferenceThread(self.work, self.on_result, self.on_error)

    def work(self, request):
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE_S)
        if request == "bad":
            raise EngineError("broken")
        return request * 10

    def on_result(self, request, result):
        if request == 13:
            raise RuntimeError("the publisher is gone")
        self.results.append((request, result))
        self.done.release()

    def on_error(self, request, error):
        self.errors.append((request, str(error)))
        self.done.release()


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.go.release(100)
    assert made.thread.stop(PATIENCE_S)


def finish(worker, count=1):
    for _ in range(count):
        worker.go.release()
        assert worker.done.acquire(timeout=PATIENCE_S)


def test_the_newest_request_wins_and_the_others_are_counted(worker):
    worker.thread.submit(1)
    assert worker.begun.acquire(timeout=PATIENCE_S)  # 1 is in work; what follows waits in the one slot
    for request in (2, 3, 4):
        worker.thread.submit(request)
    finish(worker, 2)
    assert worker.results == [(1, 10), (4, 40)]
    assert worker.thread.replaced == 2


def test_an_idle_thread_has_taken_a_request_up_when_submit_returns(worker, monkeypatch):
    monkeypatch.setattr(inference, "GIVE_WAY_S", PATIENCE_S)
    for request in range(20, 60, 2):
        while not worker.thread.idle:
            time.sleep(0.001)
        worker.thread.submit(request)
        worker.thread.submit(request + 1)
        finish(worker, 2)
    assert worker.thread.replaced == 0
    assert [request for request, _ in worker.results] == list(range(20, 60))


def test_a_busy_thread_is_not_waited_for(worker, monkeypatch):
    worker.thread.submit(1)
    assert worker.begun.acquire(timeout=PATIENCE_S)
    monkeypatch.setattr(inference, "GIVE_WAY_S", -1)  # for ever
    for request in (2, 3):
        worker.thread.submit(request)
    finish(worker, 2)
    assert worker.results == [(1, 10), (3, 30)]


@pytest.mark.parametrize("request_, told", [("bad", "broken"), (13, "the publisher is gone")])
def test_an_error_is_told_and_the_thread_lives_on(request_, told, worker):
    worker.thread.submit(request_)
    finish(worker)
    worker.thread.submit(5)
    finish(worker)
    assert worker.errors == [(request_, told)]
    assert worker.results == [(5, 50)]


def test_stopping_finishes_the_work_in_hand_and_drops_what_waits(worker):
    worker.thread.submit(1)
    assert worker.begun.acquire(timeout=PATIENCE_S)
    worker.thread.submit(2)
    assert not worker.thread.stop(timeout_s=0), "1 is still in work"
    worker.go.release(2)
    assert worker.thread.stop(PATIENCE_S)
    assert worker.results == [(1, 10)]
    worker.thread.submit(3)
    assert worker.results == [(1, 10)], "a stopped thread works no more"


def test_an_idle_thread_stops_at_once(worker):
    assert worker.thread.stop(PATIENCE_S)
    assert worker.thread.stop(0), "stopping twice is harmless"
