# SPDX-License-Identifier: Apache-2.0
"""Exported graphs compute what PyTorch computes, hold no randomness, and are refused when they don't."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
onnx = pytest.importorskip("onnx", reason="export needs onnx")
pytest.importorskip("onnxscript", reason="export needs onnxscript")
pytest.importorskip("onnxruntime", reason="the parity check needs onnxruntime")

import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.bundle import CRITIC, GRAPH, LIKELIHOOD, WEIGHTS, Bundle, amend  # noqa: E402
from ros_vdd.errors import ConfigError, EngineError, PolicyError  # noqa: E402
from ros_vdd.offline import export as exporting  # noqa: E402
from ros_vdd.offline.export import export  # noqa: E402
from ros_vdd.offline.export_sampler import resampled  # noqa: E402
from ros_vdd.policies import graph as graphs  # noqa: E402

WALKS = {
    **{walk: {"walk": walk} for walk in ("euler", "renoise", "jump")},
    "posterior": {"walk": "posterior", "critic": {"width": 8, "depth": 1}, "guidance": 0.5},
}
KINDS = ["mixture", "diffusion", "window", *WALKS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The exported toy policies by kind; every test reads them only."""
    root = tmp_path_factory.mktemp("exported")
    return {kind: export(written(root / kind, kind), draws=20) for kind in KINDS}


def written(path, kind):
    return toy.policy(path, "few_step" if kind in WALKS else kind, toy.SEEING, **WALKS.get(kind, {}))


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported mixture that a test may spoil."""
    return Bundle.open(shutil.copytree(exported["mixture"].path, tmp_path / "policy"))


def graph_of(bundle, name=GRAPH):
    return onnx.load_model_from_string(bundle.file(name).read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_pytorch_computes(kind, exported):
    """Independently of the exporter's own check, over states that the policy never saw as well."""
    bundle, rng = exported[kind], np.random.default_rng(7)
    engine, policy = backends.load(bundle), policies.load(bundle)
    for _ in range(10):
        inputs = {k: v * (3 if k == "state" else 1) for k, v in backends.random_inputs(bundle, rng).items()}
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
        noise = tensors.pop("noise", None)
        with torch.no_grad():
            expected = policy(tensors, noise)
        answers = engine.run(inputs)
        names = ["means", "log_gate"] if kind == "mixture" else ["actions"]
        for name, tensor in zip(names, expected if kind == "mixture" else [expected]):
            np.testing.assert_allclose(answers[name], tensor.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_measured_error_is_recorded(kind, exported):
    said = exported[kind].manifest.export
    assert 0 < said["parity_max_abs"] < exporting.TOLERANCE
    assert said["draws"] == 20 and said["opset"] == graphs.OPSET
    assert (said["state_low"], said["state_high"]) == ([-0.5, 0.0], [1.5, 2.0])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_outputs_and_shapes_are_those_of_the_manifest(kind, exported):
    model = graph_of(exported[kind])
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}
    assert shapes == {name: shape for name, (shape, _) in backends.input_shapes(exported[kind]).items()}
    outputs = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.output}
    actions = {"actions": (1, 1 if kind == "window" else 4, 2)}
    assert outputs == ({"means": (1, 2, 4, 2), "log_gate": (1, 2)} if kind == "mixture" else actions)


def test_the_critics_graph_takes_a_chunk_and_noise_and_tells_energies(exported):
    bundle, rng = exported["posterior"], np.random.default_rng(8)
    shapes = backends.energy_shapes(bundle)
    asked = {name: rng.uniform(0, 1, shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
    eager, fast = (backends.load_energy(bundle, name).run(asked) for name in ("eager", "onnxruntime"))
    assert (fast["energy"].shape, fast["samples"].shape) == ((1,), (1, backends.ENERGY_SAMPLES))
    for name in eager:
        np.testing.assert_allclose(fast[name], eager[name], rtol=1e-4, atol=1e-5)
    assert {v.name for v in graph_of(bundle, CRITIC).graph.input} == set(shapes)
    assert 0 < bundle.manifest.export["parity_energy"] < exporting.ENERGY_TOLERANCE


@pytest.mark.parametrize("kind, name", [*((kind, GRAPH) for kind in KINDS), ("mixture", LIKELIHOOD), ("posterior", CRITIC)])
def test_the_graph_holds_no_random_operator_and_all_its_weights(kind, name, exported):
    model = graph_of(exported[kind], name)
    operators = {node.op_type for part in (model.graph, *model.functions) for node in part.node}
    assert not [o for o in operators if o.startswith("Random") or o in ("Multinomial", "Bernoulli", "Dropout")]
    assert not any(t.external_data for t in model.graph.initializer)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_their_checksum_survive_the_export(kind, exported, tmp_path):
    before = written(tmp_path / kind, kind).file(WEIGHTS).read_bytes()
    assert Bundle.open(exported[kind].path).file(WEIGHTS).read_bytes() == before


def test_the_check_draws_states_from_the_range_that_was_trained_on(tmp_path, monkeypatch):
    drawn = []
    real = backends.random_inputs
    monkeypatch.setattr(backends, "random_inputs", lambda *a: drawn.append(real(*a)) or drawn[-1])
    export(toy.policy(tmp_path / "policy", "mixture"), draws=60)
    states = np.stack([inputs["state"] for inputs in drawn[1:]])
    assert states[..., 0].min() > -0.5 and states[..., 0].max() > 1.4
    assert states[..., 1].min() > 0.0 and states[..., 1].max() > 1.9


def sabotage(monkeypatch, change):
    """Let the exporter write a graph that a function has changed."""
    real = graphs.to_onnx

    def changed(policy, example):
        model = onnx.load_model_from_string(real(policy, example))
        change(model)
        return model.SerializeToString()

    monkeypatch.setattr(graphs, "to_onnx", changed)


def after(model, output, operator, constant):
    """Insert `output = operator(output, constant)` before the graph's output."""
    for node in model.graph.node:
        node.output[:] = [f"{o}_before" if o == output else o for o in node.output]
        node.input[:] = [f"{i}_before" if i == output else i for i in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(constant), f"{output}_constant"))
    model.graph.node.append(onnx.helper.make_node(operator, [f"{output}_before", f"{output}_constant"], [output]))


@pytest.mark.parametrize(
    "output, operator, constant",
    [("means", "Add", 2e-3), ("means", "Mul", np.nan), ("log_gate", "Add", 0.01), ("log_gate", "Mul", np.nan)],
)
def test_a_sabotaged_graph_is_refused_and_the_folder_unchanged(output, operator, constant, folder, monkeypatch):
    sabotage(monkeypatch, lambda model: after(model, output, operator, constant))
    before = {p.name: p.read_bytes() for p in folder.path.iterdir()}
    with pytest.raises(EngineError, match="differs from PyTorch.*No graph was written"):
        export(folder, draws=5)
    assert {p.name: p.read_bytes() for p in folder.path.iterdir()} == before


def random_node():
    return onnx.helper.make_node("RandomNormal", [], ["noise"], shape=[1])


def in_a_branch():
    branch = onnx.helper.make_graph([random_node()], "b", [], [onnx.helper.make_tensor_value_info("noise", 1, [1])])
    return onnx.helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("node", [random_node(), in_a_branch()], ids=["plain", "in a branch"])
def test_a_graph_with_a_random_operator_is_refused(node):
    inputs = [onnx.helper.make_tensor_value_info("yes", onnx.TensorProto.BOOL, [])]
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], 1, [1])]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with pytest.raises(EngineError, match=r"random operators \(RandomNormal\)"):
        graphs._require_plain(model.SerializeToString())


def test_a_policy_that_draws_inside_is_refused(monkeypatch):
    policy = toy.network("mixture")
    real = policy.to_chunk
    monkeypatch.setattr(policy, "to_chunk", lambda flat: real(flat + torch.randn_like(flat)))
    with pytest.raises(EngineError, match="random operators"):
        graphs.to_onnx(policy, {"state": np.zeros((1, 2, 2), np.float32)})


@pytest.mark.parametrize("kind", ["mixture", "diffusion"])
def test_what_pytorch_rounds_away_is_some_parts_of_float32(kind, exported):
    """The toy's joints reach from -3 to 3 rad."""
    assert 1e-9 < exporting.rounding(exported[kind], draws=5) < 1e-4


@pytest.mark.parametrize("rounded, accepted", [(4e-4, True), (3e-4, False), (0.0, False)])
def test_a_graph_may_be_three_times_as_far_off_as_pytorch_rounds(rounded, accepted, folder, monkeypatch):
    monkeypatch.setattr(exporting, "parity", lambda bundle, draws: (1e-3, 1e-6))
    monkeypatch.setattr(exporting, "rounding", lambda bundle, draws: rounded)
    if accepted:
        assert exporting.export(folder, draws=1).manifest.export["parity_max_abs"] == 1e-3
    else:
        with pytest.raises(EngineError, match="differs from PyTorch by 1.00e-03"):
            exporting.export(folder, draws=1)


def test_a_graph_that_is_close_is_not_held_against_float64(folder, monkeypatch):
    monkeypatch.setattr(exporting, "rounding", lambda bundle, draws: pytest.fail("asked without need"))
    exporting.export(folder, draws=1)


def test_an_engine_on_the_cpu_has_the_threads_that_are_asked_for(exported):
    opened = backends.load(exported["mixture"]), backends.load(exported["mixture"], threads=3)
    opened += (backends.load_likelihood(exported["mixture"], threads=3),)
    assert [engine._session.get_session_options().intra_op_num_threads for engine in opened] == [1, 3, 3]
    before = torch.get_num_threads()
    try:
        backends.load(exported["mixture"], "eager", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_engine_that_takes_no_threads_takes_no_notice_of_them(exported, monkeypatch):
    monkeypatch.setattr("ros_vdd.backends.onnxruntime.load", lambda bundle: bundle.path)
    assert backends.load(exported["mixture"], threads=4) == exported["mixture"].path


def test_no_threads_are_refused(exported):
    with pytest.raises(EngineError, match="'threads' is 0; expected at least 1"):
        backends.load(exported["mixture"], threads=0)


def test_a_graph_of_another_policy_is_refused_by_the_engine(exported, folder):
    swapped = amend(folder, {GRAPH: exported["diffusion"].file(GRAPH)})
    with pytest.raises(EngineError, match=r"takes inputs .*noise.*, its manifest says .*export the policy again"):
        backends.load(swapped)


def test_a_graph_that_is_none_is_refused_by_the_engine(folder):
    with pytest.raises(EngineError, match="can't load.*export the policy again"):
        backends.load(amend(folder, {GRAPH: b"not a graph"}))


def test_a_policy_that_was_not_exported_says_how(tmp_path):
    with pytest.raises(PolicyError, match="no 'policy.onnx'.*ros-vdd export"):
        backends.load(toy.policy(tmp_path / "policy", "mixture"))


def test_weights_that_are_none_are_told(folder):
    with pytest.raises(PolicyError, match="isn't a safetensors file"):
        policies.load(amend(folder, {WEIGHTS: b"not weights"}))


def test_weights_of_another_network_are_told(folder):
    network = {**folder.manifest.network, "width": 24}
    with pytest.raises(PolicyError, match="don't fit its manifest"):
        policies.load(amend(folder, network=network))


def test_an_encoder_commands_nothing(tmp_path):
    with pytest.raises(EngineError, match="image encoder; it commands nothing"):
        backends.load(toy.policy(tmp_path / "policy", "encoder", toy.SEEING), "eager")


def test_a_wrong_engine_is_told_with_the_nearest(folder):
    with pytest.raises(EngineError, match="no engine 'onnx'.*did you mean 'onnxruntime'"):
        backends.load(folder, "onnx")


def test_a_check_of_no_draws_is_refused(folder):
    with pytest.raises(ConfigError, match="'draws' is 0"):
        export(folder, draws=0)


def test_another_sampler_makes_another_policy_and_leaves_the_first(exported, tmp_path):
    before = exported["diffusion"]
    made = export(resampled(before, tmp_path / "euler", 4, "euler"), draws=5)
    assert (made.manifest.nfe, before.manifest.nfe) == (4, 5)
    assert policies.load(made).config.sampler.solver == "euler"
    assert Bundle.open(before.path) == before
    inputs = backends.random_inputs(before, np.random.default_rng(0))
    assert (
        np.abs(backends.load(made).run(inputs)["actions"] - backends.load(before).run(inputs)["actions"]).max() > 1e-3
    )


def test_a_teacher_may_begin_and_end_at_other_levels(tmp_path):
    teacher = toy.policy(tmp_path / "teacher", "diffusion")
    made = resampled(teacher, tmp_path / "out", 2, "euler", sigma_max=2.5, sigma_min=0.3)
    assert policies.load(made).config.sampler.levels() == pytest.approx([2.5, 0.3, 0.0]) and made.manifest.nfe == 2
    noise, context = torch.ones(1, 1, 4, 2), torch.zeros(1, policies.load(made).condition_size)
    asked, policy = [], policies.load(made)
    forward = policy.denoiser.forward
    policy.denoiser.forward = lambda x, sigma, context: asked.append((x.abs().max().item(), sigma.item())) or forward(x, sigma, context)
    policy.sample(context, noise.flatten(1))
    assert asked[0] == (2.5, 2.5) and len(asked) == 2


@pytest.mark.parametrize(
    "kind, fields, given, told",
    [
        ("diffusion", {}, {"sigma_max": 40.0}, "--sigma-max is 40; .* was trained from 0.01 to 20, expected a level between"),
        ("diffusion", {}, {"sigma_min": 0.001}, "--sigma-min is 0.001; .* was trained from 0.01 to 20"),
        ("diffusion", {"process": "vp", "sampler": {"steps": 3}}, {"sigma_max": 2.5}, "is a VP policy, .*; leave --sigma-max out"),
        ("few_step", {}, {"sigma_min": 0.3}, "is a student, which was trained for its levels; leave --sigma-min out"),
        ("mixture", {}, {"sigma_max": 2.5}, "is a mixture policy, which has no sampler; leave --sigma-max out"),
    ],
)
def test_a_level_that_the_policy_has_not_is_refused(kind, fields, given, told, tmp_path):
    bundle = toy.policy(tmp_path / "policy", kind, **fields)
    with pytest.raises(PolicyError, match=told):
        resampled(bundle, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_levels_in_the_wrong_order_are_refused(tmp_path):
    teacher = toy.policy(tmp_path / "teacher", "diffusion")
    with pytest.raises(ConfigError, match="0 < 'sigma_min' < 'sigma_max'"):
        resampled(teacher, tmp_path / "out", sigma_max=0.3, sigma_min=2.5)
    assert not (tmp_path / "out").exists()


def test_a_mixture_has_no_sampler_to_change(exported, tmp_path):
    with pytest.raises(PolicyError, match="mixture policy, which has no sampler"):
        resampled(exported["mixture"], tmp_path / "out", 4, None)


def test_engines_agree_on_every_input(exported):
    inputs = backends.random_inputs(exported["mixture"], np.random.default_rng(3))
    eager, fast = (backends.load(exported["mixture"], name).run(inputs) for name in ("eager", "onnxruntime"))
    assert eager.keys() == fast.keys()
    for name in eager:
        np.testing.assert_allclose(fast[name], eager[name], rtol=0, atol=1e-4)
        assert fast[name].dtype == eager[name].dtype == np.float32


def test_a_graph_names_no_folder_of_the_machine_that_exported_it(tmp_path):
    from pathlib import Path

    bundle = export(toy.policy(tmp_path / "policy", "mixture"), draws=1)
    for file in ("policy.onnx", "likelihood.onnx"):
        graph = bundle.file(file).read_bytes()
        assert b"stack_trace" not in graph and str(Path(__file__).parents[1]).encode() not in graph
