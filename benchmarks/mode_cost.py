# SPDX-License-Identifier: Apache-2.0
"""What MoDE's inference costs: time, true multiply-adds and memory of five ways to run the same weights, and how they grow.

    plain     dynamic routing in PyTorch, as trained
    released  PyTorch with the released code's cache: fused weights of every level, found by the mean of the noise embedding
    fused     `ros_vdd.networks.mode_fused` in PyTorch, and its graph in ONNX Runtime
    dense     a transformer with one expert of the active size, in PyTorch and fused in ONNX Runtime

Batch 1, one thread, all ways in turn in one process. `python benchmarks/mode_cost.py --out runs/mode_cost` on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ros_vdd.backends.onnxruntime import session
from ros_vdd.diffusion.denoiser import Denoiser
from ros_vdd.diffusion.sampling import euler
from ros_vdd.diffusion.schedule import exponential_sigmas
from ros_vdd.networks.mode import ModeBlock, ModeNetwork, ModeSizes, chosen_experts
from ros_vdd.networks.mode_fused import FusedMode, fuse

SIGMAS = exponential_sigmas(10, 0.001, 80.0)
SIGMA_DATA = 0.5
COPIES_LIMIT = 256e6  # as `ros_vdd.policies.mode_deployed`
SMALL = ModeSizes(action=2, horizon=10, goal=10, cameras=1, features=32, state=2, width=128, depth=4, heads=4)
SIZES = {
    "small": SMALL,
    "medium": replace(SMALL, width=384, depth=6, heads=6),
    "released": ModeSizes(action=7, horizon=10, goal=512, cameras=2, features=512, width=1024, depth=8, heads=8),
}
AXES = {
    "experts": [{"experts": n} for n in (2, 4, 8, 16)],
    "depth": [{"depth": n} for n in (2, 4, 8)],
    "width": [{"width": n} for n in (64, 128, 256)],
    "horizon": [{"horizon": n} for n in (5, 10, 16, 32)],
}
RUNS = {"small": 200, "medium": 60, "released": 5}


def main() -> None:
    """Measure, print the tables and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/mode_cost", help="folder for mode_cost.json, mode_cost.md and mode_cost.png")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--policy", help="folder of a trained MoDE policy, measured as one more size")
    parser.add_argument("--runs", type=int, help="chunks of each way, instead of 200, 60 and 5")
    parser.add_argument("--no-scaling", action="store_true", help="leave the sweep over experts, depth, width and horizon out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the released size, eager against CUDA graph")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.device == "cuda":
        return report(out, {"cuda": cuda_rows(args.runs or 200)})
    networks = {name: random_network(SIZES[name]) for name in args.sizes}
    results = {"cost": {}, "scaling": {}}
    schedules = dict.fromkeys(networks, SIGMAS)
    if args.policy:
        name, networks[name], schedules[name] = trained(args.policy)
    for name in list(networks):
        results["cost"][name] = measure(networks.pop(name), schedules[name], args.runs or RUNS.get(name, 200))
        report(out, results)
    if not args.no_scaling:
        for axis, changes in AXES.items():
            results["scaling"][axis] = [scaled(change, args.runs or 100) for change in changes]
            report(out, results)
        draw(out / "mode_cost.png", results["scaling"])


def random_network(sizes: ModeSizes) -> ModeNetwork:
    """Return a network with routers wide enough apart to change their choice along the levels, as trained ones do."""
    torch.manual_seed(0)
    made = ModeNetwork(sizes).eval().requires_grad_(False)
    made.positions.normal_(std=0.02)
    for block in made.blocks:
        if block.router is not None:
            block.router.enter.weight.normal_(std=0.3)
            block.router.leave.weight.normal_()
    return made


def trained(folder: str) -> tuple[str, ModeNetwork, list[float]]:
    """Return name, network and levels of a policy folder."""
    from ros_vdd import policies
    from ros_vdd.bundle import Bundle

    policy = policies.load(Bundle.open(folder))
    return Path(folder).name, policy.network.requires_grad_(False), policy.config.sampler.levels()


def dense_of(sizes: ModeSizes) -> ModeSizes:
    """Return a dense transformer whose one expert is as large as those that act."""
    return replace(sizes, experts=1, top_k=1, expert_ratio=sizes.expert_ratio * sizes.top_k)


class ReleasedCache(nn.Module):
    """An emulation of the released inference: for every level and layer the acting experts are stacked into one copied pair of
    matrices, kept under the mean of the noise embedding, which each layer reads back to the host.

    Source: described in Reuss et al. 2025 (MoDE, arXiv 2412.12953), section 3.3.1; rows of any batch share one key, as released.
    """

    def __init__(self, network: ModeNetwork, sigmas: list[float]):
        super().__init__()
        self.network, self.caches, self.bytes = network, [{} for _ in network.blocks], 0
        for sigma in sigmas[:-1]:
            noise = network.noise(torch.tensor([sigma]).log() / 4)
            for block, cache in zip(network.blocks, self.caches):
                cache[noise.mean().item()] = made = _stacked(block, noise)
                self.bytes += sum(part.numel() * part.element_size() for part in made)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """Map as `ModeNetwork` does."""
        network = self.network
        noise = network.noise(c_noise)
        tokens = torch.cat([noise[:, None], network.observed(condition), network.actions(x)], dim=1)
        for block, cache in zip(network.blocks, self.caches):
            tokens = tokens + block.attention(block.attention_norm(tokens) + noise[:, None])
            tokens = block.expert_norm(tokens)
            value, gate, value_bias, gate_bias, leave = cache[noise.mean().item()]
            hidden = nn.functional.linear(tokens, value, value_bias) * nn.functional.silu(nn.functional.linear(tokens, gate, gate_bias))
            tokens = tokens + nn.functional.linear(hidden, leave)
        return network.leave(network.norm(tokens[:, -network.sizes.horizon :])).flatten(1)


def _stacked(block: ModeBlock, noise: Tensor) -> tuple[Tensor, ...]:
    chosen, weights = chosen_experts(block.router(noise), block.top_k)
    acting = [(block.experts[e], p) for e, p in zip(chosen[0].tolist(), weights[0])]
    halves = [[*expert.enter.weight.chunk(2), *expert.enter.bias.chunk(2)] for expert, _ in acting]
    value, gate, value_bias, gate_bias = (torch.cat(parts) for parts in zip(*halves))
    shares = torch.cat([p.expand(expert.leave.in_features) for expert, p in acting])
    return shares[:, None] * value, gate, shares * value_bias, gate_bias, torch.cat([expert.leave.weight for expert, _ in acting], dim=1)


def sampler(network: nn.Module, sigmas: list[float], noise: Tensor, condition: Tensor) -> Callable[[], Tensor]:
    """Return a function that denoises a chunk with a network, without clipping."""
    denoiser = Denoiser(network, SIGMA_DATA)

    def run() -> Tensor:
        with torch.inference_mode():
            return euler(lambda x, sigma: denoiser(x, sigma, condition), noise, sigmas)

    return run


def graph(fused: FusedMode, noise: Tensor, condition: Tensor) -> bytes:
    """Return the ONNX graph of a fused sampler."""
    with torch.no_grad():
        program = torch.onnx.export(
            fused, (noise, condition), input_names=["noise", "condition"], opset_version=18, dynamo=True, verbose=False
        )
    return program.model_proto.SerializeToString()


def in_onnxruntime(fused: FusedMode, noise: Tensor, condition: Tensor) -> tuple[Callable[[], Tensor], int, int]:
    """Return a function that runs the graph, its size in bytes and how much memory the opened session took."""
    content, before = graph(fused, noise, condition), resident()
    opened = session(content)
    inputs = {"noise": noise.numpy(), "condition": condition.numpy()}
    opened.run(None, inputs)
    return lambda: torch.from_numpy(opened.run(None, inputs)[0]), len(content), resident() - before


def resident() -> int:
    """Return the memory that this process holds, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(network: ModeNetwork, sigmas: list[float], runs: int) -> list[dict]:
    """Return a row for each way; ms of a chunk, GMAC of a chunk, MB, and the largest difference from the plain sampler."""
    sizes, steps = network.sizes, len(sigmas) - 1
    torch.manual_seed(1)
    noise = torch.randn(1, sizes.horizon * sizes.action)
    condition = torch.randn(1, sizes.goal + sizes.ticks * sizes.tick_size)
    dense = random_network(dense_of(sizes))
    weights = {name: sum(p.numel() * p.element_size() for p in n.parameters()) for name, n in (("moe", network), ("dense", dense))}
    active = steps * 4 * sizes.depth * (4 * sizes.width**2 + (sizes.top_k + sizes.shared_expert) * 3 * sizes.width * sizes.hidden)
    ways: dict[str, tuple] = {"plain, PyTorch": (sampler(network, sigmas, noise, condition), weights["moe"], plain_macs(sizes, steps))}
    if sizes.experts > 1 and not sizes.shared_expert:
        released = ReleasedCache(network, sigmas)
        ways["released cache, PyTorch"] = (
            sampler(released, sigmas, noise, condition),
            weights["moe"] + released.bytes,
            plain_macs(replace(sizes, experts=1), steps),
        )
    fused = fuse(network, sigmas, SIGMA_DATA)
    ways["fused, PyTorch"] = (lambda: in_inference(fused, noise, condition), weights["moe"], fused_macs(sizes, steps))
    ways["dense, PyTorch"] = (sampler(dense, sigmas, noise, condition), weights["dense"], plain_macs(dense.sizes, steps))
    for name, of in (("fused, ONNX Runtime", network), ("dense fused, ONNX Runtime", dense)):
        for lean in sorted({False, active > COPIES_LIMIT}):
            if not lean and active > 8e9:  # the copies of the released size: about 9 GB
                continue
            run, _, memory = in_onnxruntime(fuse(of, sigmas, SIGMA_DATA, lean=lean), noise, condition)
            ways[name + (", lean" if lean else "")] = (run, memory, fused_macs(of.sizes, steps))
    return timed(ways, runs)


def in_inference(fused: FusedMode, noise: Tensor, condition: Tensor) -> Tensor:
    """Denoise without gradients."""
    with torch.inference_mode():
        return fused(noise, condition)


def timed(ways: dict[str, tuple], runs: int) -> list[dict]:
    """Run all ways in turn, so that what disturbs the machine disturbs all alike, and return their rows."""
    outputs = {name: run() for name, (run, _, _) in ways.items()}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, (run, _, _) in ways.items():
            began = time.perf_counter()
            run()
            took[name].append(1e3 * (time.perf_counter() - began))
    rows, first = [], next(iter(ways))
    for name, (run, memory, macs) in ways.items():
        counted = count(run) if "PyTorch" in name else None
        reference = "dense, PyTorch" if name.startswith("dense") else first
        rows.append({
            "way": name,
            "p50_ms": float(np.median(took[name])),
            "p99_ms": float(np.quantile(took[name], 0.99)),
            "gmac": macs / 1e9,
            "gmac_counted": counted and counted / 1e9,
            "memory_mb": memory / 1e6,
            "difference": float((outputs[name] - outputs[reference]).abs().max()),
        })
    return rows


def count(run: Callable[[], Tensor]) -> int:
    """Return multiply-adds by PyTorch's counter, which sees operators and so misses no expert; attention as products, which it knows."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def plain_macs(sizes: ModeSizes, steps: int) -> int:
    """Return multiply-adds of a chunk by the plain sampler; a copied cache spares the routers alone (`experts` 1)."""
    length, width = sizes.prefix + sizes.horizon, sizes.width
    acting = sizes.top_k + sizes.shared_expert
    layer = length * (4 * width**2 + acting * 3 * width * sizes.hidden) + 2 * length**2 * width
    router = 2 * width**2 + 2 * width * sizes.experts if sizes.experts > 1 else 0
    ends = width + width**2 + _observed_macs(sizes) + 2 * sizes.horizon * sizes.action * width
    return steps * (sizes.depth * (layer + router) + ends)


def fused_macs(sizes: ModeSizes, steps: int) -> int:
    """Return multiply-adds of a chunk by the fused sampler: no router, the first token is a constant, the last layer of the prefix stops
    at keys and values, and the first layer's projection of it is shared by all levels."""
    before, own, width = sizes.prefix - 1, sizes.horizon, sizes.width
    experts = (sizes.top_k + sizes.shared_expert) * 3 * width * sizes.hidden
    seen = before + 1 + own
    loop = own * (4 * width**2 + experts) + 2 * own * seen * width
    prefix = before * (width**2 + experts) + 2 * before * (before + 1) * width
    projections = before * 3 * width**2 * (1 + steps * (sizes.depth - 1))
    ends = 2 * own * sizes.action * width
    return steps * (sizes.depth * loop + (sizes.depth - 1) * prefix + ends) + projections + _observed_macs(sizes)


def _observed_macs(sizes: ModeSizes) -> int:
    return sizes.width * (sizes.goal + sizes.ticks * sizes.tick_size)


def scaled(change: dict, runs: int) -> dict:
    """Return the median times of a small network with one size changed: plain, and fused in ONNX Runtime."""
    rows = {row["way"]: row for row in measure(random_network(replace(SMALL, **change)), SIGMAS, runs)}
    fused = next(row for name, row in rows.items() if name.startswith("fused, ONNX"))
    return {**change, "plain_ms": rows["plain, PyTorch"]["p50_ms"], "fused_ms": fused["p50_ms"]}


def cuda_rows(runs: int) -> list[dict]:
    """Return rows of the released size on a GPU: plain, fused eager and as a CUDA graph; none measured without one."""
    ways = ["plain, float32", *(f"fused, {kind}, {how}" for kind in ("float32", "bfloat16", "float16") for how in ("eager", "CUDA graph"))]
    if not torch.cuda.is_available():
        return [{"way": way, "p50_ms": None} for way in ways]
    sizes, rows = SIZES["released"], []
    noise, condition = torch.randn(1, sizes.horizon * sizes.action, device="cuda"), torch.randn(1, sizes.goal + sizes.tick_size, device="cuda")
    plain = sampler(random_network(sizes).cuda(), SIGMAS, noise, condition)
    reference = plain()
    rows.append(_on_device("plain, float32", plain, reference, runs))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        fused = fuse(random_network(sizes).cuda(), SIGMAS, SIGMA_DATA).to(dtype)
        told = condition.to(dtype)
        rows.append(_on_device(f"fused, {kind}, eager", lambda: in_inference(fused, noise, told), reference, runs))
        rows.append(_on_device(f"fused, {kind}, CUDA graph", captured(fused, noise, told), reference, runs))
        rows[-1]["bandwidth_gb_s"] = rows[-1]["active_gb"] / (rows[-1]["p50_ms"] / 1e3)
    return rows


def captured(fused: FusedMode, noise: Tensor, condition: Tensor) -> Callable[[], Tensor]:
    """Return a function that replays the sampler as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            in_inference(fused, noise, condition)
    torch.cuda.current_stream().wait_stream(side)
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made):
        answer = in_inference(fused, noise, condition)

    def run() -> Tensor:
        made.replay()
        return answer

    return run


def _on_device(way: str, run: Callable[[], Tensor], reference: Tensor, runs: int) -> dict:
    sizes, took = SIZES["released"], []
    size = 4 if "32" in way else 2
    difference = float((run().float() - reference).abs().max())
    for _ in range(runs):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        took.append(1e3 * (time.perf_counter() - began))
    active = (len(SIGMAS) - 1) * size * sizes.depth * (4 * sizes.width**2 + sizes.top_k * 3 * sizes.width * sizes.hidden) / 1e9
    return {"way": way, "p50_ms": float(np.median(took)), "p99_ms": float(np.quantile(took, 0.99)), "difference": difference, "active_gb": active}


def report(out: Path, results: dict) -> None:
    """Write the numbers as JSON and as Markdown tables, and print the tables."""
    name = "mode_cost_cuda" if "cuda" in results else "mode_cost"
    (out / f"{name}.json").write_text(json.dumps(results, indent=1))
    text = "\n".join(_tables(results))
    (out / f"{name}.md").write_text(text)
    print(text, flush=True)


def _tables(results: dict) -> list[str]:
    lines = []
    for name, rows in results.get("cost", {}).items():
        took = {row["way"]: row["p50_ms"] for row in rows}
        lines += ["", f"**{name}**, a chunk of 10 steps, batch 1, one thread", ""]
        lines += ["| way | ms p50 | ms p99 | plain / this | released cache / this | GMAC | counted | memory [MB] | difference |", "|---|" + "---|" * 8]
        for row in rows:
            against = [f"{took[w] / row['p50_ms']:.1f}" if w in took else "" for w in ("plain, PyTorch", "released cache, PyTorch")]
            counted = "" if row["gmac_counted"] is None else f"{row['gmac_counted']:.4f}"
            numbers = [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", *against, f"{row['gmac']:.4f}", counted, f"{row['memory_mb']:.0f}", f"{row['difference']:.1e}"]
            lines.append(f"| {row['way']} | " + " | ".join(numbers) + " |")
    for axis, rows in results.get("scaling", {}).items():
        lines += ["", f"| {axis} | plain [ms] | fused, ONNX Runtime [ms] |", "|---|---|---|"]
        lines += [f"| {row[axis]} | {row['plain_ms']:.1f} | {row['fused_ms']:.2f} |" for row in rows]
    if "cuda" in results:
        lines += ["", "**released size, CUDA**, a chunk of 10 steps, batch 1, cameras' features given", "", "| way | ms p50 | ms p99 | difference |", "|---|---|---|---|"]
        for row in results["cuda"]:
            numbers = ["not measured"] * 3 if row["p50_ms"] is None else [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['difference']:.1e}"]
            lines.append(f"| {row['way']} | " + " | ".join(numbers) + " |")
    return lines


def draw(path: Path, scaling: dict) -> None:
    """Draw time against experts, depth, width and horizon."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(scaling), figsize=(3 * len(scaling), 2.8), sharey=True, layout="constrained")
    for place, (axis, rows) in zip(axes, scaling.items()):
        for key, label in (("plain_ms", "plain, PyTorch"), ("fused_ms", "fused, ONNX Runtime")):
            place.plot([row[axis] for row in rows], [row[key] for row in rows], "o-", label=label)
        place.set(xlabel=axis, xscale="log", yscale="log", xticks=[row[axis] for row in rows], xticklabels=[row[axis] for row in rows])
        place.minorticks_off()
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    low, high = axes[0].get_ylim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axes[0].set(ylabel="a chunk [ms]", yticks=shown, yticklabels=shown)
    axes[0].minorticks_off()
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
