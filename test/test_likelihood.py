# SPDX-License-Identifier: Apache-2.0
"""How likely a mixture holds a chunk to be: the density of the maths, in the graph that is shipped, and what is made of it."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="the graph is run by onnxruntime")

import ros_vdd  # noqa: E402
import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.bundle import LIKELIHOOD, Bundle, write  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.errors import EngineError, PolicyError  # noqa: E402
from ros_vdd.offline import export as exporting  # noqa: E402
from ros_vdd.policies import triangular  # noqa: E402
from ros_vdd.policies.graph import likelihood_to_onnx  # noqa: E402
from ros_vdd.runtime.likelihood import LikelihoodRunner  # noqa: E402

HORIZON, ACTIONS, EXPERTS = 4, 2, 2
RNG = np.random.default_rng(0)
CHUNK = RNG.uniform([-0.5, -1.0], [0.5, 1.0], (HORIZON, ACTIONS)).astype(np.float32)
OBSERVATION = toy.observation(toy.BLIND)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a mixture with both graphs; every test reads it only."""
    return exporting.export(toy.policy(tmp_path_factory.mktemp("exported") / "mixture", "mixture"), draws=5)


@pytest.fixture
def bare(tmp_path):
    """The folder of a mixture that was not exported."""
    return toy.policy(tmp_path / "bare", "mixture")


def density(means, stds, log_gate, chunk):
    """ln q of the first actions by the textbook, in float64: a sum of products of one-dimensional Gaussians."""
    means, stds = (np.float64(a)[:, : len(chunk)] for a in (means, stds))
    terms = -0.5 * ((chunk - means) / stds) ** 2 - np.log(stds) - 0.5 * np.log(2 * np.pi)
    joint = log_gate + terms.sum(axis=(1, 2))
    return np.logaddexp.reduce(joint), joint - np.logaddexp.reduce(joint)


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
@pytest.mark.parametrize("length", [1, 3, HORIZON])
def test_the_density_is_that_of_the_mixture_in_the_robots_units(backend, length, exported):
    policy = ros_vdd.load(exported.path, backend)
    policy.act(OBSERVATION)
    said = policy.likelihood(None, CHUNK[:length])
    log_gate = policy.prediction.log_gate
    log_prob, log_responsibilities = density(said.means, said.stds, log_gate, CHUNK[:length])
    np.testing.assert_allclose(said.log_prob, log_prob, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(said.log_responsibilities, log_responsibilities, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(said.gate_entropy, -(np.exp(log_gate) * log_gate).sum(), atol=1e-5)
    np.testing.assert_allclose(said.means, policy.prediction.means, atol=1e-5)
    assert said.stds.shape == (EXPERTS, HORIZON, ACTIONS) and (said.stds > 0).all()
    assert policy.log_prob(None, CHUNK[:length]) == said.log_prob


def test_the_density_integrates_to_one_over_the_first_actions(exported):
    """On a grid over the two numbers of the first action; what follows is integrated out by the mask."""
    policy = ros_vdd.load(exported.path)
    policy.observe(OBSERVATION)
    said = policy.likelihood(None, CHUNK[:1])
    low, high = (said.means + s * said.stds for s in (-6, 6))
    axes = [np.linspace(low[:, 0, a].min(), high[:, 0, a].max(), 41) for a in range(2)]
    values = [[np.exp(policy.log_prob(None, [[x, y]])) for y in axes[1]] for x in axes[0]]
    assert np.sum(values) * np.prod([a[1] - a[0] for a in axes]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("covariance", ["low_rank", "full"])
def test_the_graph_of_coupled_experts_computes_what_pytorch_computes(covariance):
    torch.manual_seed(0)
    make, configuration = policies.KINDS["mixture"]
    policy = make(toy.BLIND, build(configuration, {**toy.NETWORKS["mixture"], "covariance": covariance, "rank": 2}))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    mask = np.float32([[1, 1, 1, 0]])
    inputs = {"state": OBSERVATION["state"][None], "chunk": CHUNK[None], "mask": mask}
    session = onnxruntime.InferenceSession(likelihood_to_onnx(policy, inputs), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        state, chunk, mask = (torch.from_numpy(v) for v in inputs.values())
        expected = policy.likelihood({"state": state}, chunk, mask)
    for answer, value in zip(session.run(None, inputs), expected):
        np.testing.assert_allclose(answer, value.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_written_out_factors_and_solves_are_those_of_numpy(size, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    root = torch.from_numpy(RNG.normal(size=(3, 2, size, size)))
    matrix, right = root @ root.transpose(-1, -2) + 0.1 * torch.eye(size), torch.from_numpy(RNG.normal(size=(3, 2, size, 4)))
    factor = triangular.cholesky(matrix)
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix), rtol=0, atol=1e-10)
    assert not factor.triu(1).any()
    np.testing.assert_allclose(triangular.solve_lower(factor, right), np.linalg.solve(factor, right), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(triangular.solve(factor, right), np.linalg.solve(matrix, right), rtol=1e-7, atol=1e-7)


def test_the_export_writes_both_graphs_and_both_errors(exported):
    assert (exported.path / LIKELIHOOD).is_file()
    assert 0 < exported.manifest.export["parity_likelihood"] < exporting.LIKELIHOOD_TOLERANCE


def test_the_parity_check_sees_a_likelihood_that_is_off(bare, monkeypatch):
    real = backends.load_likelihood

    def load(bundle, name):
        engine = real(bundle, "eager")
        run = engine.run
        off = {"eager": 0.0, "onnxruntime": 0.02}[name]
        engine.run = lambda inputs: {k: v + (off if k == "stds" else 0) for k, v in run(inputs).items()}
        return engine

    monkeypatch.setattr(backends, "load_likelihood", load)
    assert exporting.likelihood_parity(bare, draws=2) == pytest.approx(0.02 / 6, rel=1e-3)  # of joints from -3 to 3 rad


@pytest.mark.parametrize("error", [2e-2, np.nan])
def test_a_likelihood_that_is_off_is_refused_and_the_folder_unchanged(error, bare, monkeypatch):
    monkeypatch.setattr(exporting, "likelihood_parity", lambda *_: error)
    monkeypatch.setattr(exporting, "parity", lambda *_: (0.0, 0.0))
    monkeypatch.setattr("ros_vdd.policies.graph._export", lambda *_: b"a graph")
    before = {p.name: p.read_bytes() for p in bare.path.iterdir()}
    with pytest.raises(EngineError, match="likelihood graph .* differs from PyTorch .*No graph was written"):
        exporting.export(bare, draws=1)
    assert {p.name: p.read_bytes() for p in bare.path.iterdir()} == before


def test_a_folder_without_the_graph_runs_and_says_how_it_is_made(exported, tmp_path):
    files = {p.name: p for p in exported.path.iterdir() if p.name not in (LIKELIHOOD, "policy.yaml", "SHA256SUMS")}
    policy = ros_vdd.load(write(tmp_path / "older", exported.manifest, files).path)
    assert policy.act(OBSERVATION).shape == (HORIZON, ACTIONS)
    with pytest.raises(PolicyError, match="no 'likelihood.onnx'.*ros-vdd export"):
        policy.log_prob(None, CHUNK)


def test_pytorch_needs_no_graph(bare):
    policy = ros_vdd.load(bare.path, "eager")
    policy.observe(OBSERVATION)
    assert np.isfinite(policy.log_prob(None, CHUNK))


def test_a_policy_without_experts_has_no_likelihood(tmp_path):
    with pytest.raises(EngineError, match="is a diffusion policy; only a mixture"):
        backends.load_likelihood(toy.policy(tmp_path / "policy", "diffusion"))


def test_an_engine_without_likelihood_leaves_it_to_onnxruntime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "lab", ModuleType("lab"))
    monkeypatch.setitem(sys.modules, "lab.engine", ModuleType("lab.engine"))
    assert backends.load_likelihood(exported, "lab.engine").name == "onnxruntime"


def test_a_given_history_is_asked_about_and_not_remembered(exported):
    policy = ros_vdd.load(exported.path)
    first, second = ({"state": state} for state in OBSERVATION["state"])
    policy.observe(first)
    policy.observe(second)
    kept, given = policy.log_prob(None, CHUNK), policy.log_prob(OBSERVATION, CHUNK)
    other = policy.log_prob({"state": OBSERVATION["state"] + 0.3}, CHUNK)
    assert kept == given != other and policy.log_prob(None, CHUNK) == kept


def test_one_tick_is_not_taken_for_a_history(exported):
    with pytest.raises(EngineError, match="is one tick; this policy sees 2.*or None for what the policy has observed"):
        ros_vdd.load(exported.path).log_prob({"state": [0, 0]}, CHUNK)


class Engine:
    """Answers what it is told to, and keeps what it was asked."""

    name = "stand-in"

    def __init__(self, log_prob=-3.0):
        self.asked, self.log_prob = [], log_prob

    def run(self, inputs):
        self.asked.append(inputs)
        shape = (1, EXPERTS, HORIZON, ACTIONS)
        stds = np.broadcast_to(np.float32([0.1, 0.3])[:, None, None], shape[1:])[None]
        numbers = {"log_prob": [self.log_prob], "log_responsibilities": [[-0.1, -2.0]], "gate_entropy": [0.5]}
        return {k: np.float32(v) for k, v in numbers.items()} | {"means": np.zeros(shape, np.float32), "stds": stds}


def test_actions_that_are_not_given_do_not_count(bare):
    engine = Engine()
    said = LikelihoodRunner(bare, engine).evaluate(OBSERVATION, CHUNK[:3])
    assert (said.log_prob, said.gate_entropy) == (-3.0, 0.5)
    assert engine.asked[0]["mask"].tolist() == [[1, 1, 1, 0]]
    np.testing.assert_array_equal(engine.asked[0]["chunk"][0, :3], CHUNK[:3])


@pytest.mark.parametrize(
    "chunk, told",
    [
        (CHUNK[:0], r"chunk has shape \(0, 2\); expected 1 to 4 actions of 2 numbers"),
        (np.zeros((5, 2)), r"chunk has shape \(5, 2\)"),
        (np.zeros((4, 3)), r"chunk has shape \(4, 3\)"),
        (np.zeros(2), r"chunk has shape \(2,\)"),
        (CHUNK * np.nan, "'chunk' holds NaN"),
    ],
)
def test_a_chunk_that_doesnt_fit_is_told(chunk, told, bare):
    engine = Engine()
    with pytest.raises(EngineError, match=told):
        LikelihoodRunner(bare, engine).evaluate(OBSERVATION, chunk)
    assert not engine.asked


def test_a_likelihood_that_isnt_finite_is_refused(bare):
    with pytest.raises(EngineError, match="stand-in.*isn't finite"):
        LikelihoodRunner(bare, Engine(log_prob=-np.inf)).evaluate(OBSERVATION, CHUNK)


def test_a_plan_that_no_longer_fits_is_less_likely(exported):
    """The policy's own plan, seen on, against one that goes elsewhere."""
    policy = ros_vdd.load(exported.path)
    policy.act(OBSERVATION)
    own = policy.prediction.actions
    assert policy.log_prob(None, own) > policy.log_prob(None, own + 0.5) > policy.log_prob(None, own + 1.0)
    assert Bundle.open(exported.path) == exported
