# SPDX-License-Identifier: Apache-2.0
"""A released MoDE policy written down line by line in float64 from its description, its key list, and a random one as a file.

Nothing of the package is used here, so that agreement with it means something.
"""

from __future__ import annotations

import math

import numpy as np
import torch

F = torch.nn.functional
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FULL = {"width": 1024, "heads": 8, "experts": 4, "hidden": 4096, "goal": 512, "action": 7, "horizon": 10}
TINY = {"width": 16, "heads": 2, "experts": 4, "hidden": 24, "goal": 6, "action": 3, "horizon": 4, "layers": 3, "features": 8}


def transformer_keys(layers, features, width, heads, experts, hidden, goal, action, horizon):
    """{name: shape} of the transformer, as the reference lists them."""
    head, d = width // heads, width
    keys = {
        "pos_emb": (1, 1 + horizon, d),
        "sigma_emb.weight": (d, 1),
        "sigma_emb.bias": (d,),
        "sigma_linear.weight": (d, d),
        "tok_emb.weight": (d, features),
        "gripper_embed.weight": (d, features),
        "goal_emb.weight": (d, goal),
        "action_emb.weight": (d, action),
        "ln.g": (d,),
        "out.weight": (action, d),
        "out.bias": (action,),
    }
    for i in range(layers):
        b = f"blocks.{i}"
        keys |= {f"{b}.ln_1.g": (d,), f"{b}.ln_2.g": (d,), f"{b}.attn.c_proj.weight": (d, d)}
        keys |= {f"{b}.attn.q_norm.g": (head,), f"{b}.attn.k_norm.g": (head,)}
        for part in ("key", "query", "value"):
            keys |= {f"{b}.attn.{part}.weight": (d, d), f"{b}.attn.{part}.bias": (d,)}
        keys |= {f"{b}.router.router.mlp.0.weight": (2 * d, d), f"{b}.router.router.mlp.0.bias": (2 * d,)}
        keys |= {f"{b}.router.router.mlp.3.weight": (experts, 2 * d), f"{b}.router.router.mlp.3.bias": (experts,)}
        for e in range(experts):
            mlp = f"{b}.experts.expert_{e}.mlp"
            keys |= {f"{mlp}.0.project.weight": (2 * hidden, d), f"{mlp}.0.project.bias": (2 * hidden,)}
            keys |= {f"{mlp}.2.weight": (d, hidden)}
    return keys


def resnet18_keys(goal, features):
    """{name: shape} of a FiLM-ResNet-18 with the names of torchvision."""
    keys, before = {"conv1.weight": (64, 3, 7, 7), **_norm_keys("bn1", 64)}, 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name, inputs = f"layer{stage}.{block}", before if block == 0 else width
            keys |= {f"{name}.conv1.weight": (width, inputs, 3, 3), **_norm_keys(f"{name}.bn1", width)}
            keys |= {f"{name}.conv2.weight": (width, width, 3, 3), **_norm_keys(f"{name}.bn2", width)}
            if inputs != width:
                keys |= {f"{name}.downsample.0.weight": (width, inputs, 1, 1), **_norm_keys(f"{name}.downsample.1", width)}
        film = f"film_module{stage}.modulation.1"
        keys |= {f"{film}.weight": (4 * width, goal), f"{film}.bias": (4 * width,)}
        before = width
    return keys | {"fc.weight": (features, 512), "fc.bias": (features,)}


def resnet50_keys(goal, features=2048):
    """{name: shape} of a FiLM-ResNet-50 with the names of timm."""
    keys, before = {"resnet.conv1.weight": (64, 3, 7, 7), **_norm_keys("resnet.bn1", 64)}, 64
    for stage, (depth, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(depth):
            name, inputs = f"resnet.layer{stage}.{block}", before if block == 0 else 4 * width
            shapes = ((1, width, inputs, 1), (2, width, width, 3), (3, 4 * width, width, 1))
            for number, outputs, of, side in shapes:
                keys |= {f"{name}.conv{number}.weight": (outputs, of, side, side), **_norm_keys(f"{name}.bn{number}", outputs)}
            if block == 0:
                keys |= {f"{name}.downsample.0.weight": (4 * width, inputs, 1, 1)}
                keys |= _norm_keys(f"{name}.downsample.1", 4 * width)
        for part in ("gamma", "beta"):
            keys |= {f"film{stage}.{part}.weight": (4 * width, goal), f"film{stage}.{part}.bias": (4 * width,)}
        before = 4 * width
    return keys


def _norm_keys(name, width):
    kept = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return kept | {f"{name}.num_batches_tracked": ()}


def random_tensors(keys, seed):
    """Float32 tensors of a key list in which no number hides a mistake and no activation explodes."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in keys.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
            continue
        value = rng.standard_normal(shape)
        if len(shape) > 1 and name != "pos_emb":
            value *= math.sqrt(1.5 / math.prod(shape[1:]))
        elif name.endswith(("running_var", ".g", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            value = 0.5 + 0.5 * np.abs(value)
        else:
            value *= 0.3
        tensors[name] = torch.from_numpy(value.astype(np.float32))
    return tensors


def random_checkpoint(sizes=TINY, prefix="model.inner_model.", cameras=("static_resnet.", "gripper_resnet."), seed=0):
    """A random policy with FiLM-ResNet-18s under the names of a released file."""
    state = {f"{prefix}{k}": v for k, v in random_tensors(transformer_keys(**sizes), seed).items()}
    for number, camera in enumerate(cameras, start=1):
        encoder = random_tensors(resnet18_keys(sizes["goal"], sizes["features"]), seed + number)
        state |= {f"{camera}{k}": v for k, v in encoder.items()}
    return state | {"language_goal.clip_rn50.logit_scale": torch.tensor(4.6)}


def part(state, prefix):
    """The tensors of a part of a checkpoint, in float64."""
    return {k.removeprefix(prefix): v.double() for k, v in state.items() if k.startswith(prefix)}


def stem(w, prefix, pictures):
    """Pictures in [0, 255] to the first stage's input."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    x = F.conv2d((pictures / 255 - mean) / std, w[f"{prefix}conv1.weight"], stride=2, padding=3)
    return F.max_pool2d(norm(w, f"{prefix}bn1", x).relu(), 3, 2, 1)


def norm(w, name, x):
    mean, var, scale, shift = (w[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def skip(w, block, x, stride):
    if f"{block}.downsample.0.weight" not in w:
        return x
    return norm(w, f"{block}.downsample.1", F.conv2d(x, w[f"{block}.downsample.0.weight"], stride=stride))


def resnet18(w, pictures, goal):
    """Features (N, output) of pictures (N, 3, H, W) in [0, 255] under goals (N, G)."""
    x = stem(w, "", pictures)
    for stage in (1, 2, 3, 4):
        told = F.silu(goal) @ w[f"film_module{stage}.modulation.1.weight"].T + w[f"film_module{stage}.modulation.1.bias"]
        for index in (0, 1):
            block, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y = norm(w, f"{block}.bn1", F.conv2d(x, w[f"{block}.conv1.weight"], stride=stride, padding=1)).relu()
            y = norm(w, f"{block}.bn2", F.conv2d(y, w[f"{block}.conv2.weight"], padding=1))
            width = y.shape[1]
            own = told[:, 2 * width * index : 2 * width * (index + 1), None, None]
            x = (own[:, :width] * y + own[:, width:] + skip(w, block, x, stride)).relu()
    return x.mean(dim=(2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def resnet50(w, pictures, goal):
    """Features (N, 2048) of pictures (N, 3, H, W) in [0, 255] under goals (N, G)."""
    x = stem(w, "resnet.", pictures)
    for stage, depth in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for index in range(depth):
            block, stride = f"resnet.layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y = norm(w, f"{block}.bn1", F.conv2d(x, w[f"{block}.conv1.weight"])).relu()
            y = norm(w, f"{block}.bn2", F.conv2d(y, w[f"{block}.conv2.weight"], stride=stride, padding=1)).relu()
            y = norm(w, f"{block}.bn3", F.conv2d(y, w[f"{block}.conv3.weight"]))
            x = (y + skip(w, block, x, stride)).relu()
        gamma, beta = (goal @ w[f"film{stage}.{k}.weight"].T + w[f"film{stage}.{k}.bias"] for k in ("gamma", "beta"))
        x = (1 + gamma[..., None, None]) * x + beta[..., None, None]
    return x.mean(dim=(2, 3))


def rms(g, x):
    return g * x / np.maximum(np.sqrt((x**2).mean(axis=-1, keepdims=True)), 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(w, b, x, heads):
    """Causal attention over tokens x (L, D) of one sample."""
    length, width = x.shape
    q, k, v = ((x @ w[f"{b}.{n}.weight"].T + w[f"{b}.{n}.bias"]).reshape(length, heads, -1) for n in ("query", "key", "value"))
    q, k = rms(w[f"{b}.q_norm.g"], q), rms(w[f"{b}.k_norm.g"], k)
    out = np.zeros((length, width))
    for head in range(heads):
        for i in range(length):
            scores = k[: i + 1, head] @ q[i, head] / math.sqrt(width // heads)
            out[i, head * (width // heads) : (head + 1) * (width // heads)] = softmax(scores) @ v[: i + 1, head]
    return out @ w[f"{b}.c_proj.weight"].T


def expert(w, b, x):
    value, gate = np.split(x @ w[f"{b}.0.project.weight"].T + w[f"{b}.0.project.bias"], 2, axis=-1)
    return (value * silu(gate)) @ w[f"{b}.2.weight"].T


def transformer(w, sizes, actions, sigma, goal, features):
    """F of one sample: actions (H, A) already times c_in, goal (G,), features (2, obs), static camera first."""
    place = w["pos_emb"][0]
    c = w["sigma_linear.weight"] @ (w["sigma_emb.weight"][:, 0] * (math.log(sigma) / 4) + w["sigma_emb.bias"])
    tokens = [c, w["goal_emb.weight"] @ goal + place[0]]
    tokens += [w["tok_emb.weight"] @ seen + place[1] for seen in features]
    tokens += [w["action_emb.weight"] @ a + place[1 + k] for k, a in enumerate(actions)]
    x = np.stack(tokens)
    for i in range(sizes["layers"]):
        b = f"blocks.{i}"
        x = x + attention(w, f"{b}.attn", rms(w[f"{b}.ln_1.g"], x) + c, sizes["heads"])
        x = rms(w[f"{b}.ln_2.g"], x)
        r = f"{b}.router.router.mlp"
        p = softmax(w[f"{r}.3.weight"] @ gelu(w[f"{r}.0.weight"] @ c + w[f"{r}.0.bias"]) + w[f"{r}.3.bias"])
        best = np.argsort(-p)[:2]
        x = x + sum(p[e] / p[best].sum() * expert(w, f"{b}.experts.expert_{e}.mlp", x) for e in best)
    return rms(w["ln.g"], x[-sizes["horizon"] :]) @ w["out.weight"].T + w["out.bias"]


def levels(steps, sigma_min, sigma_max=80.0):
    return [*np.geomspace(sigma_max, sigma_min, steps), 0.0]


def coefficients(now, then, sd=0.5):
    """A, B and c_in of one Euler step x <- A x + B F(c_in x)."""
    r, total = then / now, now**2 + sd**2
    return r + (1 - r) * sd**2 / total, (1 - r) * now * sd / math.sqrt(total), 1 / math.sqrt(total)


def sample(w, sizes, noise, goal, features, steps, sigma_min):
    """A chunk (H, A) of one sample from unit noise (H, A)."""
    grid = levels(steps, sigma_min)
    x = grid[0] * noise
    for now, then in zip(grid[:-1], grid[1:]):
        a, b, c_in = coefficients(now, then)
        x = a * x + b * transformer(w, sizes, c_in * x, now, goal, features)
    return x


def answer(state, sizes, pictures, goal, noise, steps, sigma_min, prefix="model.inner_model."):
    """Chunks (B, H, A) from pictures (static, wrist), each (B, H, W, 3) uint8, goals (B, G) and unit noise (B, H, A)."""
    told = torch.from_numpy(goal).double()
    seen = [
        resnet18(part(state, camera), torch.from_numpy(picture).permute(0, 3, 1, 2).double(), told).numpy()
        for camera, picture in zip(("static_resnet.", "gripper_resnet."), pictures)
    ]
    w = {k: v.numpy() for k, v in part(state, prefix).items()}
    rows = zip(noise.astype(np.float64), goal.astype(np.float64), np.stack(seen, axis=1))
    return np.stack([sample(w, sizes, n, g, f, steps, sigma_min) for n, g, f in rows])
