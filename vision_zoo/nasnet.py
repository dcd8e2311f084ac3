"""NASNet: the network built from a genotype, N cells per stage, P final filters, a stem and a head.

Source: Zoph et al. 2017 (arXiv 1707.07012), section 3 and appendix A; stacking of the public reference. Methods that
timm's models have too are named and behave as there.
Dimension letters: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo.auxiliary_head import AuxiliaryHead
from vision_zoo.cells import NASNET_A, Cell, DropPath, Genotype
from vision_zoo.checkpointing import run_checkpointed
from vision_zoo.nasnet_config import CIFAR, LARGE, MOBILE, NASNetConfig
from vision_zoo.operations import CellOptions, Grid, SameConv2d

__all__ = ["CIFAR", "LARGE", "MOBILE", "NASNet", "NASNetConfig"]
GLOBAL_POOLS = ("avg", "")  # as timm names them; the empty one leaves the feature map as it is


class NASNet(nn.Module):
    """forward(images (B, 3, H, W), float, normalised) -> logits (B, K).

    feature_info: of each map of forward_intermediates, as in timm, its channels `num_chs` and `reduction`, which is
    input side / map side.
    """

    def __init__(self, config: NASNetConfig, genotype: Genotype = NASNET_A) -> None:
        super().__init__()
        self.config, self.genotype = config, genotype
        self.options = CellOptions(config.batch_norm_eps, config.batch_norm_momentum, config.padding)
        self.num_classes, self.global_pool, self.grad_checkpointing = config.num_classes, "avg", False
        base = config.filters // 24  # F
        imagenet = config.stem == "imagenet"
        self._total_cells = 3 * config.cells + 2 + 2 * imagenet
        self._channels: list[int] = []  # of every layer so far, the stem first
        self._scales: list[int] = []  # input side / layer side, if every reduction were strided
        self.stem = self._stem(config.stem_filters or 3 * base, imagenet)
        self.cells = nn.ModuleList()
        self._previous: list[int | None] = []  # index of each cell's previous layer
        self._auxiliary_after = -1
        if imagenet:
            self._add_cell(base // 4, reduction=True, previous=None)
            self._add_cell(base // 2, reduction=True, previous=0)
        width = base
        for cell in range(3 * config.cells):
            previous = self._layer(-2)
            if cell in (config.cells, 2 * config.cells):
                width *= 2
                self._add_cell(width, reduction=True, previous=previous)
                previous = previous if config.skip_reduction_input else self._layer(-2)
            self._add_cell(width, reduction=False, previous=previous)
            if cell == 2 * config.cells - 1:
                self._auxiliary_after = len(self.cells) - 1
        self.auxiliary = self._auxiliary_head()
        self.num_features = self.head_hidden_size = self._channels[-1]
        self.feature_info = self._describe_features()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self._classifier()
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the last feature map, rectified, (B, num_features, H', W')."""
        features, _ = self._features(images)
        return F.relu(features)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The map of forward_features -> logits (B, K), or what the classifier reads, (B, num_features)."""
        pooled = self.dropout(features.mean(dim=(2, 3)) if self.global_pool else features)
        logits: Tensor = pooled if pre_logits else self.classifier(pooled)
        return logits

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Training's door: (B, 3, H, W) -> logits (B, K) and the auxiliary head's logits (B, K)."""
        features, middle = self._features(images)
        return self.forward_head(F.relu(features)), None if self.auxiliary is None else self.auxiliary(middle)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> pooled features (B, num_features)."""
        return self.forward_features(images).mean(dim=(2, 3))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map at each stride that `indices` choose (all; the last n; these), with the final one before them.

        All are rectified, as the next cell reads them, except the stem's. Raises ValueError for an unknown choice.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is unknown; choose from ('NCHW',)")
        chosen = self._choose_features(indices)
        last = self._feature_ends[max(chosen)] if stop_early or intermediates_only else len(self.cells)
        maps: list[Tensor] = []
        for index, features in zip(range(last + 1), self.feature_maps(x), strict=False):
            if index in self._feature_ends and self._feature_ends.index(index) in chosen:
                maps.append(F.relu(features) if index else features)
        return maps if intermediates_only else (F.relu(features) if last else features, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the cells after the last of the chosen maps, and the classifier; -> the choice as positive indices."""
        chosen = self._choose_features(indices)
        last = self._feature_ends[max(chosen)]
        if prune_head or last < len(self.cells):
            self.reset_classifier(0, "")
        self.cells, self._previous = self.cells[:last], self._previous[:last]
        self.num_features = self.head_hidden_size = self._channels[last]
        return chosen

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier, and auxiliary classifier, of `num_classes`; 0 for none. Raises ValueError."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in GLOBAL_POOLS or (num_classes and not pool):
            raise ValueError(f"global_pool {pool!r} must be one of {GLOBAL_POOLS}, and 'avg' where there are classes")
        self.config = replace(self.config, num_classes=num_classes)
        self.num_classes, self.global_pool = num_classes, pool
        where = next(self.stem.parameters())
        self.classifier = _fresh(self._classifier()).to(where.device, where.dtype).train(self.training)
        if not num_classes:
            self.auxiliary = None
        elif self.auxiliary is not None:
            self.auxiliary.layers[-1] = _fresh(nn.Linear(768, num_classes)).to(where.device, where.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the activations inside cells twice, to keep only those between them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are how deep, as timm's layer-wise learning rates ask for it."""
        return {"stem": r"^stem", "blocks": [(r"^cells\.(\d+)", None)]}

    def schedule_drop_path(self, progress: float) -> None:
        """progress: share of the training steps done, 0 to 1."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.schedule(progress)

    def feature_maps(self, images: Tensor) -> Iterator[Tensor]:
        """Every layer's output in order, the stem first, not rectified; (B, C, H', W') each."""
        layers: list[Tensor] = [self.stem(images)]
        yield layers[0]
        for cell, previous in zip(self.cells, self._previous, strict=True):
            inputs = (layers[-1], None if previous is None else layers[previous])
            again = self.grad_checkpointing and torch.is_grad_enabled()
            layers.append(run_checkpointed(cell, *inputs) if again else cell(*inputs))
            yield layers[-1]

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """-> the last layer's output and the one that the auxiliary head reads."""
        middle = output = images
        for index, output in enumerate(self.feature_maps(images)):
            if index == self._auxiliary_after + 1:
                middle = output
        return output, middle

    def _layer(self, offset: int) -> int | None:
        index = len(self._channels) + offset
        return index if index >= 0 else None

    def _stem(self, filters: int, imagenet: bool) -> nn.Module:
        norm = nn.BatchNorm2d(filters, self.options.batch_norm_eps, self.options.batch_norm_momentum)
        self._channels.append(filters)
        self._scales.append(2 if imagenet else self.config.stem_stride)
        if imagenet:
            return nn.Sequential(nn.Conv2d(self.config.in_channels, filters, 3, stride=2, bias=False), norm)
        return nn.Sequential(SameConv2d(self.config.in_channels, filters, 3, self.config.stem_stride), norm)

    def _add_cell(self, filters: int, reduction: bool, previous: int | None) -> None:
        depth = (len(self.cells) + 1) / self._total_cells
        halve = previous is not None and self._scales[previous] != self._scales[-1]
        cell = Cell(
            self.genotype.reduction if reduction else self.genotype.normal,
            self._channels[-1],
            None if previous is None else self._channels[previous],
            filters,
            stride=2 if reduction else 1,
            halve_previous=halve,
            drop_path=DropPath(depth, self.config.drop_path_keep),
            options=replace(self.options, grid=self._grid(self._scales[-1], reduction)),
            previous_grid=self._grid(self._scales[previous or 0], halve),
        )
        self.cells.append(cell)
        self._previous.append(previous)
        self._channels.append(cell.out_channels)
        self._scales.append(self._scales[-1] * (2 if reduction else 1))

    def _grid(self, scale: int, halve: bool) -> Grid:
        """Of a layer that would have `scale` with every reduction strided, and is to be halved or not."""
        limit = self.config.output_stride
        return Grid(max(1, scale // limit), dense=halve and scale >= limit)

    def _auxiliary_head(self) -> AuxiliaryHead | None:
        if not self.config.auxiliary or not self.num_classes:
            return None
        layer, side = self._auxiliary_after + 1, self.config.input_size
        for _ in range(min(self._scales[layer], self.config.output_stride).bit_length() - 1):
            valid = self.config.stem == "imagenet" and side == self.config.input_size
            side = (side - 1) // 2 if valid else -(-side // 2)
        return AuxiliaryHead(self._channels[layer], side, self.num_classes, self.options)

    def _classifier(self) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()

    def _describe_features(self) -> list[dict[str, Any]]:
        ends = [layer for layer in range(len(self.cells)) if self._scales[layer] != self._scales[layer + 1]]
        self._feature_ends = [*ends, len(self.cells)]
        return [
            {
                "num_chs": self._channels[layer],
                "reduction": min(self._scales[layer], self.config.output_stride),
                "module": f"cells.{layer - 1}" if layer else "stem",
            }
            for layer in self._feature_ends
        ]

    def _choose_features(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_info)
        if indices is None or isinstance(indices, int):
            indices = range(-(count if indices is None else indices), 0)
        if not indices or not all(-count <= index < count for index in indices):
            raise ValueError(f"feature maps {list(indices)} are unknown; there are {count}, 0 to {count - 1}")
        return [index % count for index in indices]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            _fresh(module)


def _fresh(module: nn.Module) -> nn.Module:
    """A linear layer with small random weights; whatever else as it is."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    return module
