"""What determines a NASNet's tensors, and the three published networks.

Source: Zoph et al. 2017 (arXiv 1707.07012), appendix A; settings of the public reference implementation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STEMS = ("cifar", "imagenet")
OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class NASNetConfig:
    """Everything that determines the network's tensors; stored in a bundle as it is.

    cells: N, normal cells per stage. filters: P, channels of the last layer; the first stage is P / 24 wide.
    skip_reduction_input: the normal cell after a reduction reads the layer the reduction read as its previous one
    (large), instead of the reduction's input (mobile, CIFAR). num_classes 0: no classifier, pooled features come out.
    output_stride: input side / last map's side at most; reductions beyond it keep the resolution, and what follows
    them is dilated, so that the weights mean the same. Of 32 all reductions are strided.
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
    output_stride: int = 32
    in_channels: int = 3

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
        if self.num_classes < 0 or self.in_channels < 1:
            raise ValueError(f"num_classes {self.num_classes} must be at least 0, in_channels {self.in_channels} 1")
        if not 0 <= self.dropout < 1 or not 0 < self.drop_path_keep <= 1 or not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(
                f"dropout {self.dropout} must be 0 to below 1, drop_path_keep {self.drop_path_keep} and "
                f"batch_norm_momentum {self.batch_norm_momentum} above 0 to 1"
            )
        if self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride {self.output_stride} is unknown; choose from {OUTPUT_STRIDES}")


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
