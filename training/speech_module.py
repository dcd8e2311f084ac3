"""The recipe around the plain network: loss, optimiser, schedule and what is shown while it learns."""

import math
import random
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from asr_server.alphabet import BLANK, Alphabet
from asr_server.features import FeatureConfig, Features
from asr_server.model import Chunking, DeepSpeech, DeepSpeechConfig
from training.speech_data import Batch

OPTIMISERS = ("adamw", "sgd")


@dataclass(frozen=True)
class OptimiserOptions:
    """AdamW with linear warm-up and a cosine to zero, or the paper's Nesterov momentum annealed every epoch."""

    name: str = "adamw"
    rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    momentum: float = 0.99
    annealing: float = 0.9  # sgd: factor on the rate after each epoch

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise ValueError(f"optimiser is {self.name!r}. Select one of {OPTIMISERS}")


class SpeechModule(pl.LightningModule):
    """CTC training of a Deep Speech network, whole utterances mixed with latency-controlled chunks."""

    def __init__(
        self,
        features: FeatureConfig,
        model: DeepSpeechConfig,
        alphabet: Alphabet,
        optimiser: OptimiserOptions,
        chunked_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {"features": asdict(features), "model": asdict(model), "alphabet": list(alphabet.labels)}
        )
        self.features = Features(features)
        self.model = DeepSpeech(model)
        self.alphabet, self.optimiser = alphabet, optimiser
        self.chunked_share, self.seed = chunked_share, seed
        self.reset_errors()

    def forward(self, batch: Batch, chunking: Chunking | None) -> tuple[Tensor, Tensor]:
        """(B, N, V), (B,)."""
        features = self.features.normalise(batch.spectra).nan_to_num(nan=0.0)  # masked: the mean
        log_probs: tuple[Tensor, Tensor] = self.model(features, batch.frames, chunking)
        return log_probs

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean over the utterances of the negative log likelihood per symbol."""
        chunked = random.Random(f"{self.seed} {self.global_step}").random() < self.chunked_share
        log_probs, frames = self(batch, self.model.config.chunking if chunked else None)
        loss = ctc(log_probs, frames, batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.frames))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Errors of the greedy path, whole and in chunks."""
        cut = self.model.config.chunking
        for name, chunking in [("whole", None)] + ([("chunked", cut)] if cut else []):
            log_probs, frames = self(batch, chunking)
            paths = log_probs.argmax(-1)
            for row in range(len(frames)):
                said = self.alphabet.decode(batch.targets[row, : batch.symbols[row]].tolist())
                heard = self.alphabet.collapse(paths[row, : frames[row]].tolist())
                self.count(name, said, heard)
            if name == "whole":
                self.log("val_loss", ctc(log_probs, frames, batch), batch_size=len(frames))

    def on_validation_epoch_end(self) -> None:
        """Report word and character error rates and a few transcripts."""
        for name, (words, word_errors, characters, character_errors) in self.errors.items():
            self.log(f"val_wer_{name}", word_errors / max(1, words), prog_bar=name == "whole")
            self.log(f"val_cer_{name}", character_errors / max(1, characters))
        for said, heard in self.shown:
            self.print(f"  said  {said}\n  heard {heard}")
        self.reset_errors()

    def count(self, name: str, said: str, heard: str) -> None:
        """Add one transcript to the error counts."""
        totals = self.errors.setdefault(name, [0, 0, 0, 0])
        totals[0] += len(said.split())
        totals[1] += edits(said.split(), heard.split())
        totals[2] += len(said)
        totals[3] += edits(list(said), list(heard))
        if name == "whole" and len(self.shown) < 4:
            self.shown.append((said, heard))

    def reset_errors(self) -> None:
        """Forget the counts of the last validation."""
        self.errors: dict[str, list[int]] = {}
        self.shown: list[tuple[str, str]] = []

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule."""
        options = self.optimiser
        if options.name == "sgd":
            sgd = torch.optim.SGD(self.parameters(), options.rate, momentum=options.momentum, nesterov=True)
            return [sgd], [torch.optim.lr_scheduler.ExponentialLR(sgd, options.annealing)]
        decayed = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, options.rate, betas=(0.9, 0.98))
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: _rate(step, options.warmup_steps, total))
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def ctc(log_probs: Tensor, frames: Tensor, batch: Batch) -> Tensor:
    """Mean over utterances of the loss per symbol; equal shards therefore average to the whole batch's gradient."""
    return functional.ctc_loss(
        log_probs.transpose(0, 1),
        batch.targets,
        frames,
        batch.symbols,
        blank=BLANK,
        reduction="mean",
        zero_infinity=True,
    )


def edits(said: list[str], heard: list[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(heard) + 1))
    for i, left in enumerate(said, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(heard, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _rate(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
