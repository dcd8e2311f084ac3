"""The vision recipe's steps and optimiser around a plain network.

Source: Zoph et al. 2017, appendix A (CIFAR-10); cutout: DeVries and Taylor 2017; mixup: Zhang et al. 2017; cutmix: Yun
et al. 2019; decoupled weight decay: Loshchilov and Hutter 2017. B batch, S side, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from training.vision_finetune import FinetuneOptions, parameter_groups, prepare_epoch
from vision_zoo.nasnet import NASNet
from vision_zoo.transforms import Preprocessing, normalise

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

OPTIMISERS = ("sgd", "adamw")
_NETWORK, _AVERAGE, _TRAINED = "network.", "average.module.", "trained"


@dataclass(frozen=True)
class VisionOptions:
    """The optimiser and the augmentation of whole batches; the defaults are the paper's for CIFAR-10, with cutout."""

    optimiser: str = "sgd"
    learning_rate: float = 0.025
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup: float = 0.02  # share of the steps
    auxiliary_weight: float = 0.4
    label_smoothing: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    cutout: int = 16
    mixup: float = 0.0  # alpha of the Beta distribution that shares are drawn from, 0 for none
    cutmix: float = 0.0
    average: float = 0.0  # decay of the weights' exponential moving average, 0 for none
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser {self.optimiser!r} is unknown; choose from {OPTIMISERS}")
        if not 0 <= self.average < 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"average {self.average} and label_smoothing {self.label_smoothing} must be 0 to 1, without 1"
            )
        if min(self.mixup, self.cutmix) < 0:
            raise ValueError(f"mixup {self.mixup} and cutmix {self.cutmix} must not be below 0")


def augment(images: Tensor, options: VisionOptions) -> Tensor:
    """Float (B, 3, S, S), zero-centred -> the same shape: padded crops, mirror images, cutout; one draw an image."""
    batch, _, side, _ = images.shape
    pad = options.crop_padding
    if pad:
        windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, side, 1).unfold(3, side, 1)  # (B, 3, 2p+1, 2p+1, S, S)
        top, left = torch.randint(2 * pad + 1, (2, batch), device=images.device)
        images = windows[torch.arange(batch, device=images.device), :, top, left]
    if options.flip:
        mirrored = torch.rand(batch, device=images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if options.cutout:
        centre = torch.randint(side, (2, batch, 1), device=images.device)
        places = torch.arange(side, device=images.device)
        near = (places - centre + options.cutout // 2).div(options.cutout, rounding_mode="floor") == 0
        images = images.masked_fill((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)
    return images


def mix(images: Tensor, targets: Tensor, options: VisionOptions, classes: int) -> tuple[Tensor, Tensor]:
    """(B, 3, S, S), int64 (B,) -> mixed images and float (B, K), where mixup or cutmix is on; each batch draws one."""
    # torchvision's draw from torch's generator, which StepSeed sets; timm's draw from numpy's, which a resumed run has
    # in another state.
    chosen = [v2.MixUp(alpha=options.mixup, num_classes=classes)] if options.mixup else []
    chosen += [v2.CutMix(alpha=options.cutmix, num_classes=classes)] if options.cutmix else []
    if not chosen:
        return images, targets
    mixed: tuple[Tensor, Tensor] = v2.RandomChoice(chosen)(images, targets)
    return mixed


class VisionModule(pl.LightningModule):
    """Batches are (images uint8 (B, 3, S, S), targets (B,)); logs train_loss, val_loss, val_top1 (percent).

    architecture and labels are kept in the checkpoint, so that training.export can make a bundle of it. With an
    average of the weights, the average is what is validated, and what a checkpoint has as its network. class_weights:
    (K,), of each class in the loss.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: Mapping[str, object],
        labels: Sequence[str],
        preprocessing: Preprocessing,
        options: VisionOptions,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        described = {"architecture": dict(architecture), "labels": list(labels), "preprocessing": asdict(preprocessing)}
        self.save_hyperparameters(described)
        self.network = network.to(memory_format=torch.channels_last)
        self.preprocessing, self.options, self.classes = preprocessing, options, len(labels)
        self.register_buffer("class_weights", class_weights, persistent=False)
        if options.finetune.tune == "head":
            prepare_epoch(network, options.finetune, 0)  # before DDP asks who learns
        self.average: ModelEmaV3 | None = None
        if options.average:
            from timm.utils.model_ema import ModelEmaV3  # seconds to import

            # Its decay grows with the steps: a run may be too short to forget the weights that it began with.
            self.average = ModelEmaV3(network, options.average, use_warmup=True)
            self.average.requires_grad_(False)
        self.learning_rate = options.learning_rate  # where Lightning's search for a rate puts what it tries

    def on_train_epoch_start(self) -> None:
        prepare_epoch(self.network, self.options.finetune, self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        pixels = augment(normalise(images, self.preprocessing), self.options)
        pixels, targets = mix(pixels, targets, self.options, self.classes)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if isinstance(self.network, NASNet):
            self.network.schedule_drop_path(self.progress)
            logits, auxiliary = self.network.forward_with_auxiliary(pixels)
        else:
            logits, auxiliary = self.network(pixels), None
        loss = self._loss(logits, targets)
        self.log("train_loss", loss.detach(), prog_bar=True)
        if auxiliary is not None:
            loss = loss + self.options.auxiliary_weight * self._loss(auxiliary, targets)
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        if self.average is not None:
            self.average.update(self.network, self.trainer.global_step)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        network = self.network if self.average is None else self.average
        logits = network(normalise(images, self.preprocessing).contiguous(memory_format=torch.channels_last))
        correct = (logits.argmax(dim=1) == targets).float().mean() * 100
        self.log("val_loss", F.cross_entropy(logits, targets), batch_size=len(targets), sync_dist=True)
        self.log("val_top1", correct, prog_bar=True, batch_size=len(targets), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A reader of checkpoints finds one network, the one that was validated; its other self is for resuming."""
        if self.average is not None:
            state = checkpoint["state_dict"]
            checkpoint[_TRAINED] = {name: value for name, value in state.items() if name.startswith(_NETWORK)}
            checkpoint["state_dict"] = {
                name.replace(_AVERAGE, _NETWORK): value for name, value in state.items() if name.startswith(_AVERAGE)
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            if _TRAINED not in checkpoint:
                raise ValueError("the checkpoint is of a run without an average of the weights; resume without it")
            averaged = {name.replace(_NETWORK, _AVERAGE, 1): v for name, v in checkpoint["state_dict"].items()}
            checkpoint["state_dict"] = {**checkpoint[_TRAINED], **averaged}

    @property
    def progress(self) -> float:
        """Share of the run's training steps that are done."""
        return float(self.trainer.global_step / self._total_steps)

    @property
    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.class_weights if isinstance(self.class_weights, Tensor) else None
        return F.cross_entropy(logits, targets, weight=weights, label_smoothing=self.options.label_smoothing)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """A short linear warm-up, then one cosine period to zero. No decay on biases and batch norm."""
        options = self.options
        groups = parameter_groups(self.network, self.learning_rate, options.weight_decay, options.finetune.layer_decay)
        optimizer: torch.optim.Optimizer
        if options.optimiser == "adamw":
            optimizer = torch.optim.AdamW(groups, self.learning_rate)
        else:
            optimizer = torch.optim.SGD(
                groups, self.learning_rate, momentum=options.momentum, nesterov=options.nesterov
            )
        total = self._total_steps
        warmup = max(1, round(options.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
