# SPDX-License-Identifier: Apache-2.0
"""Released MoDE weights, read strictly: every key is known, has the right shape, and none is missing.

The official loader skips what doesn't fit and repeats or reshapes tensors until they do, so a wrong file loads "successfully".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ros_vdd.errors import PolicyError
from ros_vdd.networks.mode import ModeSizes
from ros_vdd.policies.mode_file import WeightsFile
from ros_vdd.policies.mode_names import (
    COUNTER,
    NETWORK,
    PLACES,
    SKIPPED,
    STATIC,
    UNUSED,
    WRIST,
    Shapes,
    encoder_shapes,
    from_released,
    placed,
    released_shapes,
)

SHOWN = 20
"""How many wrong keys a message lists; it counts all of them."""
DROPOUTS = {"dropout": 0.1, "attention_dropout": 0.3, "goal_dropout": 0.1}
"""Of the released training; a file doesn't tell."""


class Checkpoint(NamedTuple):
    """A released policy, under this package's names.

    Attributes:
        sizes: of the transformer, as its shapes tell; top-2 routing by the noise level, which they don't.
        network: tensors of `ModeNetwork`.
        encoders: tensors of the two image encoders, by "static" and "wrist".
        encoder: their kind, as `vision.encoder` has it.
        skipped: keys of the text encoder, which weren't read.
        path: the file.
    """

    sizes: ModeSizes
    network: dict[str, Tensor]
    encoders: dict[str, dict[str, Tensor]]
    encoder: str
    skipped: tuple[str, ...]
    path: Path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a released checkpoint: a safetensors file, or the folder that a hub download makes.

    Raises:
        PolicyError: not a safetensors file, damaged, of another model, or with keys missing, surplus or of another shape: all of
            them are counted, and the first 20 listed.
    """
    file = WeightsFile(path)
    skipped = tuple(key for key in file.shapes if key.startswith(SKIPPED))
    keys, strangers = _sorted(file, [key for key in file.shapes if key not in set(skipped)])
    shapes = {part: {name: file.shapes[key] for name, key in held.items()} for part, held in keys.items()}
    try:
        sizes = infer_sizes(shapes[NETWORK])
    except PolicyError as error:
        raise PolicyError(f"'{file.path}': {error}") from error
    encoder = "film_resnet50" if any(name.startswith("resnet.") for name in shapes[STATIC]) else "film_resnet18"
    if encoder == "film_resnet50" and sizes.features != 2048:
        raise PolicyError(
            f"'{file.path}': 'tok_emb.weight' takes {sizes.features} features, but the encoders are film_resnet50s, which give "
            "2048; the file mixes two trainings, take one as it was published"
        )
    seen = encoder_shapes(encoder, sizes)
    _require_equal(file, keys, {NETWORK: released_shapes(sizes), STATIC: seen, WRIST: seen}, strangers, _told(sizes, encoder))
    network = {name: key for name, key in keys[NETWORK].items() if name != UNUSED}
    encoders = {camera: {name: keys[camera][name] for name in seen} for camera in (STATIC, WRIST)}
    named = {camera: _read(file, held) for camera, held in encoders.items()}
    return Checkpoint(sizes, from_released(_read(file, network), sizes), named, encoder, skipped, file.path)


def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> ModeSizes:
    """Return the sizes of a released transformer from its shapes by released name, without prefix.

    Raises:
        PolicyError: a shape that tells a size is missing, or tells none.
    """

    def shape(pattern: str, rank: int) -> tuple[int, ...]:
        name = next((name for name in shapes if fnmatchcase(name, pattern)), None)
        if name is None:
            raise PolicyError(f"its sizes can't be told: the transformer has no '{pattern}'; take the file as it was published")
        if len(shapes[name]) != rank or min(shapes[name]) < 1:
            raise PolicyError(f"its sizes can't be told: '{name}' is {shapes[name]}; expected {rank} axes, none empty")
        return shapes[name]

    _, rows, width = shape("pos_emb", 3)
    (head,) = shape("blocks.*.attn.q_norm.g", 1)
    if rows < 2 or width % head:
        raise PolicyError(
            f"'pos_emb' has {rows} rows of {width} numbers, a head {head}; expected at least 2 rows and a width of whole heads"
        )
    return ModeSizes(
        action=shape("action_emb.weight", 2)[1],
        horizon=rows - 1,  # one row for the goal; the first action shares that of the pictures
        goal=shape("goal_emb.weight", 2)[1],
        cameras=2,
        features=shape("tok_emb.weight", 2)[1],
        width=width,
        depth=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        heads=width // head,
        experts=shape("blocks.*.router.router.mlp.3.weight", 2)[0],
        top_k=2,
        expert_ratio=shape("blocks.*.experts.expert_*.mlp.2.weight", 2)[1] / width,
        **DROPOUTS,
    )


def _sorted(file: WeightsFile, keys: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return {part: {released name: key}} of a file, and the keys that belong nowhere.

    Raises:
        PolicyError: hardly a key is known, so it is a file of another model, or two keys are the same thing.
    """
    found: dict[str, dict[str, list[str]]] = {NETWORK: defaultdict(list), STATIC: defaultdict(list), WRIST: defaultdict(list)}
    strangers = []
    for key in keys:
        if place := placed(key):
            found[place.part][place.name].append(key)
        else:
            strangers.append(key)
    if not found[NETWORK]:
        groups = Counter(key.partition(".")[0] for key in keys)
        held = ", ".join(f"{name} ({count})" for name, count in groups.most_common(5)) or "nothing but a text encoder"
        begins = ", ".join(prefix for prefix, part, _ in PLACES if part == NETWORK)
        raise PolicyError(
            f"'{file.path}' isn't a released MoDE policy: of its {len(keys)} keys none begins with {begins}. It holds {held}. "
            "Give a checkpoint of intuitive-robots/MoDE_Diffusion_Policy; policies trained here need no import"
        )
    twice = [" and ".join(sorted(same)) for part in found.values() for same in part.values() if len(same) > 1]
    if twice:
        raise PolicyError(f"'{file.path}' holds {len(twice)} tensors twice, for example {twice[0]}; keep one set of them")
    return {part: {name: same[0] for name, same in held.items()} for part, held in found.items()}, strangers


def _require_equal(
    file: WeightsFile, keys: dict[str, dict[str, str]], expected: dict[str, Shapes], strangers: list[str], told: str
) -> None:
    """Refuse a file unless its keys and shapes are exactly the expected ones.

    Raises:
        PolicyError: with all that differs counted.
    """
    missing, surplus, wrong = [], list(strangers), []
    for part, shapes in expected.items():
        held = keys[part]
        begin = _prefix(part, held)
        missing += [f"{begin}{name} {shapes[name]}" for name in shapes if name not in held and name != UNUSED]
        for name, key in held.items():
            if name not in shapes:
                surplus += [] if part != NETWORK and name.endswith(COUNTER) else [key]
            elif file.shapes[key] != shapes[name]:
                wrong.append(f"{key} is {file.shapes[key]}, expected {shapes[name]}")
    lines = [f"missing  {t}" for t in missing] + [f"surplus  {t}" for t in surplus] + [f"shape    {t}" for t in wrong]
    if not lines:
        return
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    listed = "\n  ".join([*lines[:SHOWN], *more])
    raise PolicyError(
        f"'{file.path}' isn't a released MoDE policy of {told}, which its shapes tell of: "
        f"{len(missing)} keys missing, {len(surplus)} surplus, {len(wrong)} of another shape.\n  {listed}\n"
        "Nothing was loaded. Take the file whole from where it was published; a network with other parts has to be trained here"
    )


def _prefix(part: str, held: Mapping[str, str]) -> str:
    """Return how the keys of a part begin in this file, else how they mostly do."""
    usual = next(prefix for prefix, of, begin in PLACES if of == part)
    return next((key.removesuffix(name) for name, key in held.items() if key.endswith(name)), usual)


def _told(sizes: ModeSizes, encoder: str) -> str:
    return (
        f"{sizes.depth} layers, width {sizes.width}, {sizes.heads} heads, {sizes.experts} experts, horizon {sizes.horizon}, "
        f"action {sizes.action}, goal {sizes.goal}, two {encoder}s of {sizes.features} features"
    )


def _read(file: WeightsFile, held: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = file.read(held.values())
    return {name: tensors[key] for name, key in held.items()}
