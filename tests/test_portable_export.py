"""A bundle in other formats gives the bundle's logits, and a file that does not is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.vision_fixtures import COLOURS, TINY, colour_bundle
from training import portable_export
from vision_zoo.bundle import VisionBundle
from vision_zoo.nasnet import NASNet


def tiny() -> VisionBundle:
    torch.manual_seed(0)
    return colour_bundle(model=NASNet(TINY))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's exporters
@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors"])
def test_exported_equals_the_bundle(tmp_path: Path, ending: str) -> None:
    source = tiny()
    source.model.train()
    file = portable_export.export(source, tmp_path / "new" / f"tiny.{ending}")
    assert file.stat().st_size > 10_000
    assert source.model.training, "the model is handed back as it came"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torch_export_takes_any_number_of_images(tmp_path: Path) -> None:
    source = tiny()
    program = torch.export.load(portable_export.export(source, tmp_path / "tiny.pt2")).module()
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(program(images), source.model(images), atol=1e-5)


def test_safetensors_carry_the_labels(tmp_path: Path) -> None:
    file = portable_export.export(tiny(), tmp_path / "tiny.safetensors")
    with safe_open(file, "pt") as content:
        assert tuple(json.loads(content.metadata()["labels"])) == COLOURS


def test_a_file_with_other_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: Any, model: Any, images: Any, out: Any) -> portable_export.Run:
        def run(batch: Tensor) -> Tensor:
            logits: Tensor = model(batch)
            return logits * 1.001

        return run

    monkeypatch.setitem(portable_export.FORMATS, ".onnx", wrong)
    with pytest.raises(ValueError, match=r"logits differ from the bundle's by 1\.0e-03; at most 1e-04"):
        portable_export.export(tiny(), tmp_path / "tiny.onnx")


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny\.tflite must end with one of .*\.onnx.*\.pt2.*\.safetensors"):
        portable_export.export(tiny(), tmp_path / "tiny.tflite")
