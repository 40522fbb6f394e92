# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd compile`: an engine built ahead, held against fp32 ONNX Runtime, and kept where the nodes find it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ros_vdd import backends
from ros_vdd.backends._cache import EngineCache
from ros_vdd.bundle import Bundle
from ros_vdd.errors import EngineError
from ros_vdd.offline import engine_parity
from ros_vdd.resources import find, require_file_place

HELP = "build an engine ahead and hold it by its parity gate"
CALIBRATION_SEED, GATE_SEED = 0, 1
"""An engine isn't judged by the frames that its ranges were taken from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policy", metavar="POLICY", help="policy folder or shipped name")
    parser.add_argument("--backend", required=True, metavar="NAME:PRECISION", help="engine, for example tensorrt:fp16")
    targets = "compute capabilities to build for, for example sm86 sm89; this machine's GPU when not given"
    parser.add_argument("--target", nargs="+", metavar="smXX", help=targets)
    parser.add_argument("--observations", metavar="STORE", help="episode store that the engine is calibrated with and held by")
    parser.add_argument("--draws", type=int, default=engine_parity.DRAWS, help="observations of each sort (default %(default)s)")
    parser.add_argument("--tolerance", type=float, help="largest accepted difference of an action, share of its joint's range")
    parser.add_argument("--out", metavar="FOLDER", help="cache to write to (default $ROS_VDD_CACHE or ~/.cache/ros_vdd/engines)")
    parser.add_argument("--verify", action="store_true", help="build nothing: hold the engine that is there by the gate, here")
    parser.add_argument("--json", metavar="FILE", help="write what was built and its figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Build or verify an engine for each target, and print how far its actions are from the reference."""
    if args.json:
        require_file_place(args.json)
    bundle = Bundle.open(find("models", args.policy))
    backends.require_commands(bundle)
    module = backends.module(args.backend)
    name, precision = backends.split(args.backend)
    precision = precision or backends.FP32
    if not hasattr(module, "build"):
        raise EngineError(f"engine '{args.backend}' isn't built ahead: it loads a policy as it is. One that is: tensorrt:fp16")
    engine, cache, rows = f"{name}:{precision}", EngineCache(args.out), []
    gate = Gate(bundle, engine, args.observations, args.draws, args.tolerance)
    for target in args.target or [None]:
        identity = module.identity(precision, target)
        if args.verify:
            built = cache.find(bundle, engine, identity, unverified=True)
        else:
            built = module.build(bundle, precision, target, gate.recorded(CALIBRATION_SEED), print)
        parity = gate.hold(module, built, target, args.verify)
        entry = cache.store(bundle, engine, identity, built, parity)
        print(f"kept in {entry}")
        rows.append({"policy": bundle.manifest.name, "engine": engine, "identity": identity, "size": len(built)})
        rows[-1] |= {"entry": str(entry), "parity": parity}
    if args.json:
        Path(args.json).write_text(json.dumps(rows if len(rows) > 1 else rows[0], indent=2) + "\n", encoding="utf-8")
    return 0


class Gate:
    """The parity gate of one policy and engine, with the observations that it asks."""

    def __init__(self, bundle: Bundle, engine: str, store: str | None, draws: int, tolerance: float | None):
        self._bundle, self._engine, self._precision = bundle, engine, engine.rpartition(":")[2]
        self._store, self._draws, self._tolerance = store, draws, tolerance
        self._emulated = None

    def recorded(self, seed: int) -> Sequence[engine_parity.Observation]:
        """Return recorded observations, none where no store was given.

        Raises:
            DataError: the store doesn't serve.
        """
        return engine_parity.recorded_observations(self._bundle, self._store, self._draws, seed) if self._store else ()

    def hold(self, module: ModuleType, built: bytes, target: str | None, must_run: bool) -> dict:
        """Hold a built engine by the gate and return what its manifest says of it.

        Where it can't run, its arithmetic is held instead, as far as its module emulates it, and the manifest says so: such an
        engine isn't loaded before `--verify` has shown its parity where it runs.

        Raises:
            EngineError: the gate refuses it, or it `must_run` and can't.
        """
        why = module.cannot_run(target) if hasattr(module, "cannot_run") else None
        if why and must_run:
            raise EngineError(f"the engine can't be verified on this machine: {why}. Run --verify on the robot")
        if not why:
            figures = self._require(module.open_built(self._bundle, built, self._precision), self._engine)
            return figures | {"host": module.host() if hasattr(module, "host") else {}}
        if self._emulated is None:
            self._emulated = self._emulate(module)
        print(
            f"PARITY NOT RUN: {why}. The engine was never evaluated; it isn't loaded before its parity is shown where it runs:\n"
            f"  ros-vdd compile {self._bundle.path} --backend {self._engine} --verify"
        )
        return {"not_run": why, **self._emulated}

    def _emulate(self, module: ModuleType) -> dict:
        if not hasattr(module, "emulate") or self._precision == backends.FP32:
            return {}
        engine = module.emulate(self._bundle, self._precision)
        return {"emulated": self._require(engine, f"{self._precision} arithmetic, emulated on the CPU,")}

    def _require(self, engine: backends.Engine, what: str) -> dict:
        """Print how far an engine is from the reference, and return the figures, or refuse it."""
        parity = engine_parity.compare(self._bundle, engine, self.recorded(GATE_SEED), self._draws)
        print(f"{what} against fp32 ONNX Runtime:\n{engine_parity.table(parity)}")
        engine_parity.require(parity, self._precision, self._tolerance)
        return engine_parity.describe(parity)
