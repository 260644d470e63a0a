"""Weights to start from, for `train.init_from`: `starting(path, sha256, card)` gives those that a network takes.

A file in `.safetensors`, also one of resflow's own models, or a state dict that torch has saved as `.pth`, which is
read without running anything that it may hold. Files of whole models with their cards are `file`.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from resflow.errors import DataError
from resflow.nets.file import ModelCard, renamed

__all__ = ["starting"]

NAMED = 3
"""Keys of each kind that an error names."""


def starting(path: Path, sha256: str, card: ModelCard) -> dict[str, Tensor]:
    """The weights in `path` that `card.network()` takes, by name, on the CPU; without the last layer's where their
    number of classes is another.

    Raises `DataError` for a file that is missing, is not the one that `sha256` is of, holds something else, or is of
    another structure.
    """
    content = _read(path, sha256)
    given = renamed(_parsed(path, content))
    with torch.device("meta"):
        net = card.network()
    wanted = net.state_dict()
    head = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    if _has_other_classes(given, wanted, head):
        given = {name: value for name, value in given.items() if not name.startswith(f"{head}.")}
        wanted = {name: value for name, value in wanted.items() if not name.startswith(f"{head}.")}
    if complaint := _complaint(given, wanted):
        mend = "Set `net` to the structure that the file is of, or give another file"
        raise DataError(str(path), f"does not fit the network of `net`: {complaint}", mend)
    return {name: given[name].to(wanted[name].dtype).contiguous() for name in wanted if name in given}


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        mend = "Put the file there (`dvc pull` may have it), or mend train.init_from"
        raise DataError(str(path), f"cannot be read ({error.strerror})", mend) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        mend = "Restore the file; if it is the one that you want, set train.init_sha256 to that"
        raise DataError(str(path), f"is not the file of train.init_sha256: its SHA-256 is {found}", mend)
    return content


def _parsed(path: Path, content: bytes) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    mend = "Give a `.safetensors` file, or a state dict saved as `torch.save(net.state_dict(), 'FILE.pth')`"
    try:
        if path.suffix == ".safetensors":
            return load(content)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(str(path), f"is not a whole safetensors file ({error})", mend) from error
    except pickle.UnpicklingError as error:
        raise DataError(str(path), "holds more than weights, or is no file of torch's", mend) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(str(path), f"is not a whole file of torch's ({reason})", mend) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        seen = ", ".join(map(str, list(found)[:NAMED])) if isinstance(found, Mapping) else type(found).__name__
        raise DataError(str(path), f"holds no state dict, names and tensors, but {seen}", mend)
    return found


def _has_other_classes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: str) -> bool:
    name = f"{head}.weight"
    return name in given and given[name].shape[:1] != wanted[name].shape[:1]


def _complaint(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What does not match, empty if all does. Files from before torch 0.4.1 do not count batches, and need not."""
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in wanted]
    other = [
        f"{name} is {tuple(given[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    kinds = (("it lacks", missing), ("it has the unknown", unknown), ("shapes differ:", other))
    return "; ".join(f"{words} {_listed(names)}" for words, names in kinds if names)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
