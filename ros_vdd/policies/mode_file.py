# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of others as a file: only safetensors, which holds numbers and nothing that could run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ros_vdd.errors import PolicyError, suggest

PREFERRED = "model_cleaned.safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
FLOATS = ("F64", "F32", "F16", "BF16")
_ZIP, _PICKLE, _LFS = b"PK\x03\x04", b"\x80", b"version https://git-lfs"


class WeightsFile:
    """Names, shapes and types of a safetensors file, told by its header; tensors are read one at a time.

    Args:
        path: the file, or the folder that a hub download makes.

    Raises:
        PolicyError: there is no such file, it is a pickle, or it is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = _chosen(Path(path))
        _refuse_others(self.path)
        with self._open() as stream:
            slices = {key: stream.get_slice(key) for key in stream.keys()}
            self.shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            self.types = {key: part.get_dtype() for key, part in slices.items()}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors by key, as float32 on the CPU.

        Raises:
            PolicyError: a tensor holds no real numbers, or NaN or infinity.
        """
        tensors = {}
        with self._open() as stream:
            for key in keys:
                if self.types[key] not in FLOATS:
                    raise PolicyError(f"'{self.path}': '{key}' has type {self.types[key]}; expected {', '.join(FLOATS)}")
                tensors[key] = stream.get_tensor(key).to(torch.float32)
                if not tensors[key].isfinite().all():
                    raise PolicyError(f"'{self.path}': '{key}' holds NaN or infinity; take another copy or another checkpoint")
        return tensors

    def _open(self):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(self.path), framework="pt")
        except (SafetensorError, OSError) as error:
            size = self.path.stat().st_size
            raise PolicyError(
                f"'{self.path}' ({size} bytes) can't be read as safetensors ({error}): it is damaged or only half there; "
                "download it again and compare its size and sha256 with those at its source"
            ) from error


def _chosen(path: Path) -> Path:
    """Return the file, or the one of a folder that holds the weights."""
    if path.is_dir():
        held = sorted(p for p in path.iterdir() if p.suffix == ".safetensors")
        chosen = [p for p in held if p.name == PREFERRED] or held
        pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
        if not chosen and pickles:
            return pickles[0]
        if len(chosen) != 1:
            names = ", ".join(p.name for p in path.iterdir()) or "nothing"
            raise PolicyError(f"'{path}' holds {len(held)} safetensors files ({names}); name the one that holds the weights")
        return chosen[0]
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise PolicyError(f"no checkpoint '{path}'; {suggest(path.name, beside)}")
    return path


def _refuse_others(path: Path) -> None:
    """Refuse pickles, whatever they are called, and what git left in place of a large file."""
    with path.open("rb") as stream:
        begin = stream.read(64)
    if begin.startswith(_LFS):
        raise PolicyError(f"'{path}' is a pointer of git-lfs, not the weights; fetch them: git lfs install, then git lfs pull")
    if path.suffix in PICKLES or begin.startswith((_ZIP, _PICKLE)):
        raise PolicyError(_conversion(path))


def _conversion(path: Path) -> str:
    target = path.with_suffix(".safetensors")
    return f"""'{path}' is a pickle: reading one can run whatever its maker put inside, so it isn't read here.
Where it was published there may be a '{PREFERRED}': take that. Else convert it once, in an environment to throw away:

    python3 -m venv throwaway && throwaway/bin/pip install torch numpy safetensors
    throwaway/bin/python - <<'END'
    import torch
    from safetensors.torch import save_file
    state = torch.load({str(path)!r}, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    kept = {{k: v.clone() for k, v in state.items() if torch.is_tensor(v) and not k.startswith("language_goal.")}}
    save_file(kept, {str(target)!r})
    END

then give {target}. Where torch.load refuses, the file holds more than tensors: leave it at that"""
