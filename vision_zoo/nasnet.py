"""NASNet: the network built from a genotype, N cells per stage, P final filters, a stem and a head.

Source: Zoph et al. 2017 (arXiv 1707.07012), section 3 and appendix A; stacking of the public reference.
Dimension letters: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from vision_zoo.cells import NASNET_A, Cell, DropPath, Genotype
from vision_zoo.operations import CellOptions, SameConv2d

STEMS = ("cifar", "imagenet")


@dataclass(frozen=True)
class NASNetConfig:
    """Everything that determines the network's tensors; stored in a bundle as it is.

    cells: N, normal cells per stage. filters: P, channels of the last layer; the first stage is P / 24 wide.
    skip_reduction_input: the normal cell after a reduction reads the layer the reduction read as its previous one
    (large), instead of the reduction's input (mobile, CIFAR).
    """

    cells: int = 6
    filters: int = 768
    num_classes: int = 10
    stem: str = "cifar"
    stem_filters: int | None = None  # None: 3F for CIFAR
    stem_stride: int = 1  # of the CIFAR stem; 2 quarters the work, for training on a few CPU cores
    skip_reduction_input: bool = False
    auxiliary: bool = True
    dropout: float = 0.0
    drop_path_keep: float = 0.6
    input_size: int = 32
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1
    padding: str = "same"

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ValueError(f"stem {self.stem!r} is unknown; choose from {STEMS}")
        if self.filters <= 0 or self.filters % 24:
            raise ValueError(f"filters {self.filters} must be a positive multiple of 24 (six outputs, two doublings)")
        if self.stem == "imagenet" and (self.filters // 24) % 4:
            raise ValueError(
                f"filters {self.filters} must be a multiple of 96: the ImageNet stem cells are F/4 and F/2 wide"
            )
        if self.stem_stride not in (1, 2) or (self.stem_stride == 2 and self.stem == "imagenet"):
            raise ValueError(f"stem_stride {self.stem_stride} must be 1 or, with the CIFAR stem only, 2")
        if self.cells < 1:
            raise ValueError(f"cells {self.cells} must be at least 1")


CIFAR = NASNetConfig()
MOBILE = NASNetConfig(
    cells=4,
    filters=1056,
    num_classes=1000,
    stem="imagenet",
    stem_filters=32,
    dropout=0.5,
    drop_path_keep=1.0,
    input_size=224,
    batch_norm_eps=1e-3,
    batch_norm_momentum=3e-4,
)
LARGE = replace(
    MOBILE, cells=6, filters=4032, stem_filters=96, skip_reduction_input=True, drop_path_keep=0.7, input_size=331
)


class AuxiliaryHead(nn.Module):
    """The second classifier after cell 2N - 1, used in training only. (B, C, H, W) -> (B, K)."""

    def __init__(self, inputs: int, side: int, num_classes: int, options: CellOptions) -> None:
        super().__init__()
        spatial = (side - 5) // 3 + 1
        if spatial < 1:
            raise ValueError(f"the auxiliary head needs feature maps of at least 5 pixels, not {side}: switch it off")
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3),
            nn.Conv2d(inputs, 128, 1, bias=False),
            nn.BatchNorm2d(128, options.batch_norm_eps, options.batch_norm_momentum),
            nn.ReLU(),
            nn.Conv2d(128, 768, spatial, bias=False),
            nn.BatchNorm2d(768, options.batch_norm_eps, options.batch_norm_momentum),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class NASNet(nn.Module):
    """forward(images (B, 3, H, W), float, normalised) -> logits (B, K)."""

    def __init__(self, config: NASNetConfig, genotype: Genotype = NASNET_A) -> None:
        super().__init__()
        self.config, self.genotype = config, genotype
        self.options = CellOptions(config.batch_norm_eps, config.batch_norm_momentum, config.padding)
        base = config.filters // 24  # F
        imagenet = config.stem == "imagenet"
        self._total_cells = 3 * config.cells + 2 + 2 * imagenet
        self._channels: list[int] = []  # of every layer so far, the stem first
        self._scales: list[int] = []  # input side / layer side
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
        side = config.input_size
        for _ in range(self._scales[self._auxiliary_after + 1].bit_length() - 1):
            side = (side - 1) // 2 if imagenet and side == config.input_size else -(-side // 2)
        channels = self._channels[self._auxiliary_after + 1]
        self.auxiliary = AuxiliaryHead(channels, side, config.num_classes, self.options) if config.auxiliary else None
        self.num_features = self._channels[-1]
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.num_features, config.num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        features, _ = self._features(images)
        return self._classify(features)

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Training's door: (B, 3, H, W) -> logits (B, K) and the auxiliary head's logits (B, K)."""
        features, middle = self._features(images)
        return self._classify(features), None if self.auxiliary is None else self.auxiliary(middle)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> pooled features (B, num_features)."""
        features, _ = self._features(images)
        return F.relu(features).mean(dim=(2, 3))

    def schedule_drop_path(self, progress: float) -> None:
        """progress: share of the training steps done, 0 to 1."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.schedule(progress)

    def feature_maps(self, images: Tensor) -> Iterator[Tensor]:
        """Every layer's output in order, the stem first; (B, C, H', W') each."""
        layers: list[Tensor] = [self.stem(images)]
        yield layers[0]
        for cell, previous in zip(self.cells, self._previous, strict=True):
            layers.append(cell(layers[-1], None if previous is None else layers[previous]))
            yield layers[-1]

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """-> the last layer's output and the one that the auxiliary head reads."""
        middle = output = images
        for index, output in enumerate(self.feature_maps(images)):
            if index == self._auxiliary_after + 1:
                middle = output
        return output, middle

    def _classify(self, features: Tensor) -> Tensor:
        pooled = F.relu(features).mean(dim=(2, 3))
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits

    def _layer(self, offset: int) -> int | None:
        index = len(self._channels) + offset
        return index if index >= 0 else None

    def _stem(self, filters: int, imagenet: bool) -> nn.Module:
        norm = nn.BatchNorm2d(filters, self.options.batch_norm_eps, self.options.batch_norm_momentum)
        self._channels.append(filters)
        self._scales.append(2 if imagenet else self.config.stem_stride)
        if imagenet:
            return nn.Sequential(nn.Conv2d(3, filters, 3, stride=2, bias=False), norm)
        return nn.Sequential(SameConv2d(3, filters, 3, self.config.stem_stride), norm)

    def _add_cell(self, filters: int, reduction: bool, previous: int | None) -> None:
        depth = (len(self.cells) + 1) / self._total_cells
        cell = Cell(
            self.genotype.reduction if reduction else self.genotype.normal,
            self._channels[-1],
            None if previous is None else self._channels[previous],
            filters,
            stride=2 if reduction else 1,
            halve_previous=previous is not None and self._scales[previous] != self._scales[-1],
            drop_path=DropPath(depth, self.config.drop_path_keep),
            options=self.options,
        )
        self.cells.append(cell)
        self._previous.append(previous)
        self._channels.append(cell.out_channels)
        self._scales.append(self._scales[-1] * (2 if reduction else 1))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
