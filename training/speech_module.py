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
from training.error_rate import Edits, character_edits, word_edits
from training.speech_data import Batch
from training.time_parallel import Pair, pair_up, split_forward

OPTIMISERS = ("adamw", "sgd")
RECURRENT = ("forward_weight", "backward_weight")  # the ends of their names
SHOWN = 4  # transcripts after each validation


@dataclass(frozen=True)
class OptimiserOptions:
    """AdamW with linear warm-up, the full rate for a while and a cosine to zero, or the paper's Nesterov momentum
    annealed every epoch."""

    name: str = "adamw"
    rate: float = 1e-3
    warmup_steps: int = 200
    hold: float = 0.0  # adamw: share of the steps after the warm-up at the full rate; 1 never lowers it
    weight_decay: float = 0.01
    recurrent_rate: float = 0.1  # adamw: factor on the rate of the recurrent matrices
    momentum: float = 0.99
    annealing: float = 0.9  # sgd: factor on the rate after each epoch

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise ValueError(f"optimiser is {self.name!r}. Select one of {OPTIMISERS}")
        if not 0 <= self.hold <= 1:
            raise ValueError(f"hold is {self.hold}: a share of the steps, from 0 to 1")


class SpeechModule(pl.LightningModule):
    """CTC training of a Deep Speech network, whole utterances mixed with latency-controlled chunks."""

    def __init__(
        self,
        features: FeatureConfig,
        model: DeepSpeechConfig,
        alphabet: Alphabet,
        optimiser: OptimiserOptions,
        chunked_share: float = 0.0,
        flat_start_steps: int = 0,
        seed: int = 0,
        model_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {"features": asdict(features), "model": asdict(model), "alphabet": list(alphabet.labels)}
        )
        self.features = Features(features)
        self.model = DeepSpeech(model)
        self.alphabet, self.optimiser = alphabet, optimiser
        self.chunked_share, self.flat_start_steps, self.seed = chunked_share, flat_start_steps, seed
        self.model_parallel = model_parallel
        self.pair: Pair | None = None
        self._forget_errors()

    def setup(self, stage: str) -> None:
        """With model parallelism: find the rank that has the other half of each utterance."""
        if self.model_parallel and self.pair is None:
            self.pair = pair_up()

    def forward(self, batch: Batch, chunking: Chunking | None) -> tuple[Tensor, Tensor]:
        """(B, N, V), (B,)."""
        features = self.features.normalise(batch.spectra).nan_to_num(nan=0.0)  # masked: the mean
        if self.training and self.pair is not None:
            return split_forward(self.model, features, batch.frames, self.pair, chunking)
        log_probs: tuple[Tensor, Tensor] = self.model(features, batch.frames, chunking)
        return log_probs

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean over the utterances of the negative log likelihood per symbol."""
        chunked = random.Random(f"{self.seed} {self.global_step}").random() < self.chunked_share
        log_probs, frames = self(batch, self.model.config.chunking if chunked else None)
        loss = (flat if self.global_step < self.flat_start_steps else ctc)(log_probs, frames, batch)
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
                self._count(name, said, heard)
            if name == "whole":
                self.losses += ctc(log_probs, frames, batch).item() * len(frames)
                self.utterances += len(frames)

    def on_validation_epoch_end(self) -> None:
        """Report the loss and the word and character error rates, in percent, over all processes; a few transcripts."""
        self.log("val_loss", self._ratio(self.losses, self.utterances))
        for name, (words, characters) in self.errors.items():
            self._log_rate(f"val_wer_{name}", words)
            self._log_rate(f"val_cer_{name}", characters)
        for said, heard in self.shown:
            self.print(f"  said  {said}\n  heard {heard}")
        self._forget_errors()

    def _count(self, name: str, said: str, heard: str) -> None:
        words, characters = self.errors.get(name, (Edits(), Edits()))
        self.errors[name] = words + word_edits(said, heard), characters + character_edits(said, heard)
        if name == "whole" and len(self.shown) < SHOWN:
            self.shown.append((said, heard))

    def _log_rate(self, name: str, edits: Edits) -> None:
        rate = 100.0 * self._ratio(edits.errors, edits.reference)
        self.log(name, rate, prog_bar=name == "val_wer_whole")

    def _ratio(self, part: float, whole: float) -> float:
        """Of the sums over all processes, whose shares of the utterances differ in size."""
        sums = torch.tensor([part, whole], dtype=torch.float64, device=self.device)
        parts, wholes = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return float(parts / max(1.0, wholes))

    def _forget_errors(self) -> None:
        self.losses, self.utterances = 0.0, 0
        self.errors: dict[str, tuple[Edits, Edits]] = {}
        self.shown: list[tuple[str, str]] = []

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule."""
        options = self.optimiser
        if options.name == "sgd":
            sgd = torch.optim.SGD(self.parameters(), options.rate, momentum=options.momentum, nesterov=True)
            return [sgd], [torch.optim.lr_scheduler.ExponentialLR(sgd, options.annealing)]
        adamw_groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.named_parameters():
            # Adam moves all entries of a matrix by about the rate. What they have in common adds up over the width and
            # again over the frames, so a recurrent matrix would leave any stable state within a few steps.
            rate = options.rate * (options.recurrent_rate if name.endswith(RECURRENT) else 1.0)
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            adamw_groups.setdefault((rate, decay), []).append(parameter)
        groups = [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in adamw_groups.items()]
        # One pass over the weights instead of a dozen. With fp16 it would unscale gradients itself, after the clipping.
        fused = self.trainer.precision != "16-mixed"
        adamw = torch.optim.AdamW(groups, options.rate, betas=(0.9, 0.98), fused=fused)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: learning_rate_factor(step, options, total))
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm of all gradients. Lightning would refuse a fused optimiser, also where nothing is scaled."""
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


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


def flat(log_probs: Tensor, frames: Tensor, batch: Batch) -> Tensor:
    """Mean over utterances of the cross entropy per frame, as if all symbols shared the loud frames equally.

    A flat start: an untrained network finds no alignment, and CTC only teaches it the letters' frequencies for long.
    Frames in the quiet half of the range of log energies are blank.
    """
    stride = -(-batch.spectra.shape[1] // log_probs.shape[1])
    energy = batch.spectra[:, ::stride, -1]  # (B, N)
    spoken = torch.arange(energy.shape[1], device=frames.device) < frames[:, None]
    quietest = energy.masked_fill(~spoken | energy.isnan(), torch.inf).amin(1, keepdim=True)
    loudest = energy.masked_fill(~spoken | energy.isnan(), -torch.inf).amax(1, keepdim=True)
    loud = spoken & (energy >= (quietest + loudest) / 2)  # a masked frame is NaN and not loud
    place = loud.cumsum(1) - 1
    turn = place.clamp(min=0) * batch.symbols[:, None] // loud.sum(1, keepdim=True).clamp(min=1)
    wanted = batch.targets.gather(1, turn).where(loud, BLANK)
    losses = -log_probs.gather(2, wanted[..., None])[..., 0]
    return ((losses * spoken).sum(1) / frames).mean()


def learning_rate_factor(step: int, options: OptimiserOptions, total: int) -> float:
    """AdamW's factor on the rate: linear warm-up, the full rate for a while, a cosine to zero."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    falls = options.warmup_steps + options.hold * (total - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, step - falls) / max(1, total - falls))))
