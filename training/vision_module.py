"""The vision recipe's steps and optimiser around a plain network.

Source: Zoph et al. 2017, appendix A (CIFAR-10); cutout: DeVries and Taylor 2017. B batch, S side, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo.nasnet import NASNet
from vision_zoo.transforms import Preprocessing, normalise


@dataclass(frozen=True)
class VisionOptions:
    """The optimiser and the augmentation; the defaults are the paper's for CIFAR-10, with cutout."""

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


class VisionModule(pl.LightningModule):
    """Batches are (images uint8 (B, 3, S, S), targets (B,)); logs train_loss, val_loss, val_top1 (percent).

    architecture and labels are kept in the checkpoint, so that training.export can make a bundle of it.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: Mapping[str, object],
        labels: Sequence[str],
        preprocessing: Preprocessing,
        options: VisionOptions,
    ) -> None:
        super().__init__()
        described = {"architecture": dict(architecture), "labels": list(labels), "preprocessing": asdict(preprocessing)}
        self.save_hyperparameters(described)
        self.network = network.to(memory_format=torch.channels_last)
        self.preprocessing, self.options = preprocessing, options

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        pixels = augment(normalise(images, self.preprocessing), self.options)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        smoothing = self.options.label_smoothing
        if isinstance(self.network, NASNet):
            self.network.schedule_drop_path(self.progress)
            logits, auxiliary = self.network.forward_with_auxiliary(pixels)
        else:
            logits, auxiliary = self.network(pixels), None
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        self.log("train_loss", loss.detach(), prog_bar=True)
        if auxiliary is not None:
            loss = loss + self.options.auxiliary_weight * F.cross_entropy(auxiliary, targets, label_smoothing=smoothing)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self.network(normalise(images, self.preprocessing).contiguous(memory_format=torch.channels_last))
        correct = (logits.argmax(dim=1) == targets).float().mean() * 100
        self.log("val_loss", F.cross_entropy(logits, targets), batch_size=len(targets), sync_dist=True)
        self.log("val_top1", correct, prog_bar=True, batch_size=len(targets), sync_dist=True)

    @property
    def progress(self) -> float:
        """Share of the run's training steps that are done."""
        return float(self.trainer.global_step / self._total_steps)

    @property
    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD; a short linear warm-up, then one cosine period to zero. No decay on biases and batch norm."""
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups: list[dict[str, object]] = [
            {"params": weights, "weight_decay": self.options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(
            groups, self.options.learning_rate, momentum=self.options.momentum, nesterov=self.options.nesterov
        )
        total = self._total_steps
        warmup = max(1, round(self.options.warmup * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
