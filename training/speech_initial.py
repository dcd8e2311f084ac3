"""What a training begins with: the weights of another one, or those that it had when it was stopped."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from asr_server import bundle
from training.recognition import find_bundle
from training.speech_module import SpeechModule

DEEPER = ("model.deeper.", "model.gated.")  # recurrent layers above the first, on residual paths


def load(module: SpeechModule, source: str) -> list[str]:
    """Weights and feature statistics of a checkpoint or a bundle, whose network must have the same shape; it may have
    fewer recurrent layers. The names of what starts afresh."""
    state = _state(source)
    try:
        missing, unknown = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"--initial {source}: another network: {str(error).splitlines()[-1].strip()}") from error
    if unknown or any(not name.startswith(DEEPER) for name in missing):
        raise ValueError(f"--initial {source}: another network: {', '.join([*unknown, *missing][:5])}")
    for name in missing:
        if name.endswith((".project.weight", ".project.bias")) and name.startswith("model.gated."):
            module.get_parameter(name).data.zero_()  # a new layer passes on what the one below says
    return list(missing)


def check_shape(module: SpeechModule, checkpoint: Path) -> None:
    """ValueError where a run that is continued has another network than the options say."""
    theirs, ours = _weights(checkpoint, "--resume"), module.state_dict()
    for name in sorted({*theirs, *ours}):
        there, here = (tuple(state[name].shape) if name in state else None for state in (theirs, ours))
        if there != here:
            raise ValueError(
                f"--resume: {checkpoint} is of another network: its {name} has the shape {there}, not {here}; give the "
                "options that it was begun with"
            )


def _state(source: str) -> dict[str, Tensor]:
    if Path(source).is_file():
        return _weights(Path(source), "--initial")
    loaded = bundle.load(find_bundle(source))
    return {
        f"{part}.{name}": tensor
        for part, network in (("features", loaded.features), ("model", loaded.model))
        for name, tensor in network.state_dict().items()
    }


def _weights(path: Path, option: str) -> dict[str, Tensor]:
    reason = ""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            return dict(loaded["state_dict"])
    except (OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
    raise ValueError(f"{option} {path}: not a checkpoint of training.fit speech{reason and f': {reason}'}")
