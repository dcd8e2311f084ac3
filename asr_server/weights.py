"""A network's weights from a safetensors file, into modules that were laid out without memory (torch's device "meta").

Nothing is reserved because a description asks for it: the file's header has to promise every tensor in its declared
shape, and the file has to be as long as that, before any of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asr_server.sealed_file import SealedFile

_SLACK = 1 << 20  # bytes of a file beside its tensors
_LONGEST = 8  # bytes of a number


def load(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Fill modules with exactly the tensors of their names and shapes, in evaluation mode, without gradients.

    Tensors are called `key.name`, for the keys of `modules`. Floats of any width become fp32. ValueError says what
    does not fit or is no finite number; OSError where the file cannot be read.
    """
    states = {
        f"{key}.{name}": tensor for key, module in modules.items() for name, tensor in module.state_dict().items()
    }
    longest = _SLACK + _LONGEST * sum(tensor.numel() for tensor in states.values())
    try:
        _fits(path, states)  # so that no copy is made of what is not wanted
        file = SealedFile(path, longest)
        _fits(file.path, states)
        found = _read(file.path)
    except SafetensorError as error:
        raise ValueError(f"cannot be read as safetensors: {error}") from error
    for key, module in modules.items():
        names = {name.removeprefix(f"{key}."): found[name] for name in states if name.startswith(f"{key}.")}
        module.load_state_dict(names, assign=True)
        module.eval().requires_grad_(False)


def _fits(path: Path, states: Mapping[str, Tensor]) -> None:
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    expected = {name: tuple(tensor.shape) for name, tensor in states.items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        raise ValueError(f"does not fit the model of bundle.json: {', '.join(wrong[:5])}")


def _read(path: Path) -> dict[str, Tensor]:
    """Copies, because safetensors maps the file and would keep all of it in memory."""
    found = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if not tensor.is_floating_point():
                raise ValueError(f"{name} is of type {tensor.dtype}, not of floats")
            found[name] = tensor.to(torch.float32, copy=True)
            if not bool(torch.isfinite(found[name]).all()):
                raise ValueError(f"{name} holds a number that is not finite")
    return found
