"""A NASNet as the encoder of a segmentation or detection network: its last map at each stride, as timm gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vision_zoo.nasnet import NASNet


@dataclass(frozen=True)
class FeatureInfo:
    """Of each map that comes out, its channels and its reduction, which is input side / map side."""

    info: tuple[dict[str, Any], ...]

    def channels(self) -> list[int]:
        return [each["num_chs"] for each in self.info]

    def reduction(self) -> list[int]:
        return [each["reduction"] for each in self.info]

    def module_name(self) -> list[str]:
        return [each["module"] for each in self.info]


class FeatureMaps(nn.Module):
    """forward(images (B, 3, S, S)) -> the chosen maps, the highest resolution first; (B, C, H, W) each.

    Takes the network over: cells behind the last chosen map and the classifier are dropped. Raises ValueError for an
    unknown choice; None chooses all.
    """

    def __init__(self, network: NASNet, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        wanted = range(len(network.feature_info)) if out_indices is None else out_indices
        self.out_indices = sorted(network.prune_intermediate_layers(tuple(wanted)))
        self.feature_info = FeatureInfo(tuple(network.feature_info[index] for index in self.out_indices))
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.network.forward_intermediates(images, self.out_indices, intermediates_only=True)
        assert isinstance(maps, list)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.network.set_grad_checkpointing(enable)
