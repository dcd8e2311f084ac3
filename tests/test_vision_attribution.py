"""Maps of what speaks for a label, on networks whose maps can be worked out by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from tests.vision_fixtures import TINY, MeanColour
from vision_zoo.attribution import attribute, overlay
from vision_zoo.head import cut, embed
from vision_zoo.nasnet import NASNet


def corner(side: int = 14) -> Tensor:
    """(3, S, S): red in the upper left quarter, grey elsewhere."""
    image = torch.zeros(3, side, side)
    image[0, : side // 2, : side // 2] = 1.0
    return image


class Tiny(nn.Module):
    """The image is its own feature map; mean pooling, or the mean of squares, and a head."""

    def __init__(self, squares: bool = False) -> None:
        super().__init__()
        self.squares, self.head = squares, nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([0.5, 0.0]))

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = (features**2 if self.squares else features).mean((2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def get_classifier(self) -> nn.Linear:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def test_cam_is_the_heads_weights_over_the_map() -> None:
    found = attribute(Tiny(), corner())
    assert (found.method, found.index) == ("cam", 0)
    assert torch.equal(found.map, 2 * corner()[0])
    assert found.logits.tolist() == pytest.approx([2 * 0.25 + 0.5, 0.0])
    assert attribute(Tiny(), corner(), 1).map.abs().max() == 0, "no green: nothing speaks for the other label"


@pytest.mark.parametrize("name", ["nasnet", "test_resnet"])
def test_the_mean_of_a_cam_and_the_bias_are_the_logit(name: str) -> None:
    torch.manual_seed(0)
    network = NASNet(replace(TINY, input_size=32)) if name == "nasnet" else timm.create_model(name, num_classes=3)
    model = network.eval()
    image = torch.randn(3, 32, 32)
    with torch.inference_mode():  # as in the batcher's thread
        found = attribute(model, image, 2)
        logits = model(image[None])[0]
    head = cut(model).head
    assert found.method == "cam" and isinstance(head, nn.Linear)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert (found.map.mean() + head.bias[2]).item() == pytest.approx(logits[2].item(), abs=1e-4)


def test_grad_cam_where_pooling_is_no_mean() -> None:
    model, image = Tiny(squares=True), 2 * corner()
    with torch.inference_mode():
        found = attribute(model, image)
    # d logit / d x = 2 w x / S^2 = 8 / 196 in a quarter of the map; its mean is 2 / 196.
    assert found.method == "grad-cam"
    assert torch.allclose(found.map, 2 * corner()[0] * (2 / 196))


def test_occlusion_where_there_is_no_map() -> None:
    found = attribute(MeanColour(), corner(14))
    assert (found.method, found.map.shape, found.index) == ("occlusion", (7, 7), 0)
    # A patch is 2 x 2 of 196 pixels; the network gives ten times the mean.
    expected = torch.zeros(7, 7)
    expected[:3, :3] = 40 / 196
    expected[3, :3] = expected[:3, 3] = 20 / 196
    expected[3, 3] = 10 / 196
    assert torch.allclose(found.map, expected, atol=1e-6)


def test_a_transformer_is_explained_by_occlusion() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    assert attribute(model, torch.randn(3, 32, 32)).method == "occlusion"


def test_an_index_that_is_no_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="label index 2 must be 0 to 1"):
        attribute(Tiny(), corner(), 2)


def test_the_overlay_turns_red_where_the_map_is_large() -> None:
    pixels = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    found = torch.zeros(2, 2)
    found[0, 0], found[1, 1] = 4.0, -4.0
    image = np.array(Image.open(io.BytesIO(overlay(pixels, found))))
    assert image.shape == (8, 8, 3)
    assert image[0, 0].tolist() == [193, 40, 40]  # 0.4 * 100 + 0.6 * (255, 0, 0)
    assert image[7, 7].tolist() == [100, 100, 100], "what speaks against stays as it is"


def test_embeddings_are_what_the_head_reads() -> None:
    torch.manual_seed(0)
    model = NASNet(TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.get_classifier()(embed(model, images)), model(images), atol=1e-5)
    with pytest.raises(ValueError, match="MeanColour has no embeddings"):
        embed(MeanColour(), images)
