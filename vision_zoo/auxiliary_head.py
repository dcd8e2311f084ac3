"""The second classifier of NASNet training.

Source: wiring of the public reference implementation of Zoph et al. 2017 (arXiv 1707.07012).
Dimension letters: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from vision_zoo.operations import CellOptions


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
