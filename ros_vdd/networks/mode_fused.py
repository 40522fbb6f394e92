# SPDX-License-Identifier: Apache-2.0
"""A whole MoDE sampler as one straight line, which gives what the plain sampler gives: no router, no control flow, nothing twice.

    routing       resolved ahead for each level and layer; experts never chosen drop out, the others are shared by all steps
    noise         W (n1(x) + c) + b = W n1(x) + (W c + b): a bias of each level and layer; the gain of n1 lies in W
    q, k          gains and softmax scale, together one factor on q
    prefix        what comes before the actions doesn't see them: keys and values once a chunk, all levels in one sweep
    sampler       x <- A x + B F in float32

Source: Reuss et al. 2025 (MoDE, arXiv 2412.12953), section 3.3.1, for routing. The rest is algebra on `ros_vdd.networks.mode`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ros_vdd.networks.mode import Expert, ModeBlock, ModeNetwork
from ros_vdd.networks.mode_plan import Level, plan

SOLVERS = ("euler", "heun")


def fuse(
    network: ModeNetwork,
    sigmas: Sequence[float],
    sigma_data: float,
    clip: bool = False,
    solver: str = "euler",
    lean: bool = False,
) -> FusedMode:
    """Return a network's sampler over a schedule; it shares the experts' weights, so fuse again after they change.

    Args:
        sigmas: the levels, highest first, then 0.
        sigma_data: of the denoiser.
        clip: cut every clean estimate to [-1, 1].
        solver: "euler" or "heun".
        lean: weights stand on the left of every product. Of a weight on the right ONNX Runtime keeps a rearranged copy for each
            use, up to twice as fast while all copies fit into the cache; one on the left it leaves as it is.

    Raises:
        ValueError: a router reads tokens, or there is no such solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver='{solver}'; expected one of {', '.join(SOLVERS)}")
    return FusedMode(network, plan(network, sigmas, sigma_data), clip, solver, lean).eval()


Known = tuple[Tensor, Tensor]  # a normalised chunk, and 1 where it is certain


class FusedMode(nn.Module):
    """A sampler for inference. Buffers are constants of the schedule; parameters are those of the network."""

    def __init__(self, network: ModeNetwork, levels: list[Level], clip: bool, solver: str, lean: bool):
        super().__init__()
        self.sizes, self.levels, self.clip, self.solver = network.sizes, levels, clip, solver
        self.network = network
        with torch.no_grad():
            precise = _first_token(network, levels)
            self.layers = nn.ModuleList(
                FusedLayer(*parts, levels, i, lean) for i, parts in enumerate(zip(network.blocks, precise))
            )
            width = network.sizes.width**0.5
            self.leave = _constant(network.leave.weight * network.norm.gain * width)
        before, own = network.sizes.prefix, network.sizes.horizon
        self.register_buffer("prefix_mask", _causal(before, before, self.leave)[1:])
        self.register_buffer("mask", _causal(own, before + own, self.leave))

    def forward(self, noise: Tensor, condition: Tensor, known: Known | None = None) -> Tensor:
        """Denoise unit noise `(B, H * A)` under a condition `(B, G + T * F)` to a normalised chunk `(B, H * A)`.

        `known`: a chunk and a mask `(B, H * A)`, 1 where the chunk is certain.
        """
        caches = self.prefix(condition)
        if known is not None:
            known = tuple(part.reshape(-1, self.sizes.action) for part in known)
        x = noise.reshape(-1, self.sizes.action) * self.levels[0].sigma
        x = self._euler(x, caches, known) if self.solver == "euler" else self._heun(x, caches, known)
        return x.reshape(noise.shape)

    def prefix(self, condition: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
        """Return keys and values `(B, heads, P, head)` of what comes before the actions, by level and layer."""
        tokens = self.network.observed(condition)
        shape, x = tokens.shape[:2], tokens.flatten(0, 1)[None]  # (1 or S, B * (P - 1), width); the same at all levels at first
        by_layer = []
        for layer in self.layers:
            x, keys, values = layer.observe(x, shape, self.prefix_mask, last=layer is self.layers[-1])
            by_layer.append(list(zip(keys.split(shape[0]), values.split(shape[0]))))
        return [list(cache) for cache in zip(*by_layer)]

    def predict(self, i: int, x: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return F at level i for noised actions `(B * H, A)`."""
        sizes, network = self.sizes, self.network
        scaled = (x * self.levels[i].c_in).to(self.mask.dtype)
        tokens = nn.functional.linear(scaled.reshape(-1, sizes.horizon, sizes.action), network.action.weight)
        tokens = (tokens + network.positions[sizes.ticks :]).flatten(0, 1)
        for layer, (keys, values) in zip(self.layers, cache):
            tokens = layer(i, tokens, keys, values, self.mask)
        return nn.functional.linear(_unit(tokens), self.leave, network.leave.bias).to(x.dtype)

    def _euler(self, x: Tensor, caches: list, known: Known | None) -> Tensor:
        for i, level in enumerate(self.levels):
            if self.clip or known is not None:
                estimate = self._clean(i, x, caches, known)
                x = level.ratio * x + (1 - level.ratio) * estimate if level.following else estimate
            else:
                x = level.keep * x + level.gain * self.predict(i, x, caches[i])
        return x

    def _heun(self, x: Tensor, caches: list, known: Known | None) -> Tensor:
        for i, level in enumerate(self.levels):
            step = level.following - level.sigma
            slope = (x - self._clean(i, x, caches, known)) / level.sigma
            ahead = x + step * slope
            if not level.following:
                return ahead
            x = x + step / 2 * (slope + (ahead - self._clean(i + 1, ahead, caches, known)) / level.following)
        return x

    def _clean(self, i: int, x: Tensor, caches: list, known: Known | None) -> Tensor:
        estimate = self.levels[i].c_skip * x + self.levels[i].c_out * self.predict(i, x, caches[i])
        if known is not None:
            chunk, mask = known
            estimate = torch.where(mask > 0, chunk, estimate)
        return estimate.clamp(-1, 1) if self.clip else estimate


class FusedLayer(nn.Module):
    """One layer at all levels of a schedule."""

    def __init__(self, block: ModeBlock, first: Tensor, levels: list[Level], index: int, lean: bool):
        super().__init__()
        attention, width = block.attention, block.attention_norm.gain.shape[0]
        parts = (attention.query, attention.key, attention.value)
        self.heads, self.head = attention.heads, width // attention.heads
        self.lean = lean
        weight = torch.cat([p.weight for p in parts]).double()
        bias = torch.cat([p.bias for p in parts]).double()
        biases = torch.stack([weight @ level.noise.double() + bias for level in levels])  # (S, 3 width)
        dtype = block.attention_norm.gain.dtype
        self.enter = _constant((weight * block.attention_norm.gain.double() * width**0.5).to(dtype))
        self.biases = nn.ParameterList(_constant(b.to(dtype)) for b in biases)
        self.register_buffer("all_biases", biases[:, None].to(dtype))
        gain = attention.query_norm.gain.double() * attention.key_norm.gain.double() * self.head**0.5
        self.register_buffer("gain", gain.to(dtype))
        self.register_buffer("expert_gain", (block.expert_norm.gain.double() * width**0.5).to(dtype))
        self.leave = attention.leave.weight
        key, value = (first @ weight.T + biases)[:, width:].chunk(2, dim=1)
        key, value = (part.unflatten(1, (self.heads, 1, self.head)) for part in (key, value))  # (S, heads, 1, head)
        self.register_buffer("first_keys", _unit(key).to(dtype))
        self.register_buffer("first_values", value.to(dtype))
        self.routes = [list(zip(level.experts[index], level.weights[index])) for level in levels]
        self.experts = nn.ModuleDict({str(e): block.experts[e] for e in sorted({e for route in self.routes for e, _ in route})})
        self.shared = block.shared
        self.runs = [
            list(run) for _, run in itertools.groupby(range(len(levels)), key=lambda i: sorted(e for e, _ in self.routes[i]))
        ]
        for name in self.experts:
            shares = [dict(route)[int(name)] for route in self.routes if int(name) in dict(route)]
            self.register_buffer(f"shares_{name}", biases.new_tensor(shares)[:, None, None].to(dtype))

    def forward(self, i: int, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Map the actions' tokens `(B * H, width)` at level i, given keys and values `(B, heads, P, head)` before them."""
        query, key, value = self._heads(_affine(_unit(x), self.enter, self.biases[i], self.lean), keys.shape[0])
        x = self._attended(x, query, torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2), mask)
        x = y = _unit(x) * self.expert_gain
        if self.lean:
            y = y.t()
        for expert, weight in self._acting(i):
            y = _add_expert(y, x, expert, weight, self.lean)
        return y.t() if self.lean else y

    def observe(self, x: Tensor, shape: torch.Size, mask: Tensor, last: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """Map the tokens before the actions `(1 or S, B * (P - 1), width)` at all levels at once.

        Returns:
            The tokens after this layer `(S, B * (P - 1), width)`, None of the last; keys and values `(S * B, heads, P, head)`.
        """
        steps, rows = len(self.routes), shape[0]
        wide = nn.functional.linear(_unit(x).flatten(0, 1), self.enter).unflatten(0, (len(x), -1)) + self.all_biases
        query, key, value = self._heads(wide.flatten(0, 1), steps * rows)
        key, value = (
            torch.cat([first.repeat_interleave(rows, 0) if rows > 1 else first, part], dim=2)
            for first, part in ((self.first_keys, key), (self.first_values, value))
        )
        if last:
            return None, key, value
        x = self._attended(x.expand(steps, -1, -1).flatten(0, 1), query, key, value, mask)
        x = (_unit(x) * self.expert_gain).unflatten(0, (steps, -1))
        return self._mixed(x), key, value

    def _heads(self, wide: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split `(rows * L, 3 width)` into normalised queries and keys, and values `(rows, heads, L, head)`."""
        heads = wide.reshape(rows, -1, 3 * self.heads, self.head).transpose(1, 2)
        both, value = heads.split([2 * self.heads, self.heads], dim=1)
        query, key = _unit(both).chunk(2, dim=1)
        return query * self.gain, key, value

    def _attended(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Return `(rows * L, width)` with what attention adds."""
        mixed = (query @ key.transpose(2, 3) + mask).softmax(dim=-1) @ value
        return _add_product(x, mixed.transpose(1, 2).reshape(x.shape), self.leave, self.lean)

    def _acting(self, i: int) -> list[tuple[Expert, float]]:
        acting = [(self.experts[str(e)], weight) for e, weight in self.routes[i]]
        return acting if self.shared is None else [*acting, (self.shared, 1.0)]

    def _mixed(self, x: Tensor) -> Tensor:
        """Add the experts to `(S, N, width)`: each reads, in one sweep, the rows of all the levels at which it acts."""
        parts = list(x.split([len(run) for run in self.runs]))
        sums = list(parts)
        for name, expert in self.experts.items():
            mine = [r for r, run in enumerate(self.runs) if int(name) in dict(self.routes[run[0]])]
            answer = self._answer(torch.cat([parts[r] for r in mine]), expert) * getattr(self, f"shares_{name}")
            for r, added in zip(mine, answer.split([len(self.runs[r]) for r in mine])):
                sums[r] = sums[r] + added
        mixed = torch.cat(sums)
        return mixed if self.shared is None else mixed + self._answer(x, self.shared)

    def _answer(self, x: Tensor, expert: Expert) -> Tensor:
        """Return an expert's answer to `(S, N, width)`; products as in the loop, so that a graph holds each weight once."""
        rows = x.flatten(0, 1)
        value, gate = nn.functional.linear(rows, expert.enter.weight, expert.enter.bias).chunk(2, dim=1)
        hidden, leave = value * nn.functional.silu(gate), expert.leave.weight
        return (nn.functional.linear(hidden, leave) if self.lean else hidden @ leave.t()).unflatten(0, x.shape[:2])


def _first_token(network: ModeNetwork, levels: list[Level]) -> list[Tensor]:
    """Return what n1 makes of the noise token at each layer `(S, width)`, which sees itself alone; in float64."""
    noise = torch.stack([level.noise.double() for level in levels])
    x, entering = noise, []
    for index, block in enumerate(network.blocks):
        block = copy.deepcopy(block).double().eval()
        entering.append(block.attention_norm(x))
        x = block.expert_norm(x + block.attention.leave(block.attention.value(entering[-1] + noise)))
        mixed = torch.zeros_like(x) if block.shared is None else block.shared(x)
        for i, level in enumerate(levels):
            for expert, weight in zip(level.experts[index], level.weights[index]):
                mixed[i] += weight * block.experts[expert](x[i])
        x = x + mixed
    return entering


def _unit(x: Tensor) -> Tensor:
    """Return x / max(|x|, 1e-6 sqrt(D)): `RMSNorm` without its gain and without sqrt(D); in float32 at least."""
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    size = torch.linalg.vector_norm(full, dim=-1, keepdim=True).clamp(min=1e-6 * x.shape[-1] ** 0.5)
    return (full / size).to(x.dtype)


def _affine(x: Tensor, weight: Tensor, bias: Tensor, lean: bool) -> Tensor:
    """Return x W' + b `(N, out)` of x `(N, in)`."""
    return torch.addmm(bias[:, None], weight, x.t()).t() if lean else nn.functional.linear(x, weight, bias)


def _add_product(x: Tensor, y: Tensor, weight: Tensor, lean: bool) -> Tensor:
    """Return x + y W' `(N, out)`."""
    return torch.addmm(x.t(), weight, y.t()).t() if lean else torch.addmm(x, y, weight.t())


def _add_expert(y: Tensor, x: Tensor, expert: Expert, share: float, lean: bool) -> Tensor:
    """Return y plus the share of an expert's answer to x `(N, width)`; y `(N, width)`, or `(width, N)` where lean."""
    enter, leave = expert.enter, expert.leave.weight
    if lean:
        value, gate = torch.addmm(enter.bias[:, None], enter.weight, x.t()).chunk(2)
        return torch.addmm(y, leave, value * nn.functional.silu(gate), alpha=share)
    value, gate = nn.functional.linear(x, enter.weight, enter.bias).chunk(2, dim=1)
    return torch.addmm(y, value * nn.functional.silu(gate), leave.t(), alpha=share)


def _causal(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return 0 where the newest `rows` of `columns` tokens may look, else -inf."""
    mask = torch.full((rows, columns), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu(columns - rows + 1)


def _constant(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().clone(), requires_grad=False)
