"""The benchmark of vision: equal networks on both sides, turns and figures by hand, and that it runs as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import vision, vision_images, vision_networks
from tests.vision_fixtures import encoded, noise
from vision_zoo.bundle import VisionBundle
from vision_zoo.classifier import Classifier
from vision_zoo.images import decode
from vision_zoo.nasnet import NASNet

ROOT = Path(__file__).resolve().parent.parent
SMALL = 96  # filters


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(0)
    return vision_networks.create_theirs("nasnetalarge", None, SMALL)


@pytest.fixture(scope="module")
def ours(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> VisionBundle:
    return vision_networks.create_ours(theirs, tmp_path_factory.mktemp("ours"), 64)


def test_both_networks_are_the_same(theirs: nn.Module, ours: VisionBundle) -> None:
    assert isinstance(ours.model, NASNet) and ours.preprocessing.size == 64 and len(ours.labels) == 1000
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.model(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_random_weights_are_spread_over_their_answers(theirs: nn.Module, ours: VisionBundle) -> None:
    pixels = torch.stack([decode(vision_images.made_up(seed, (64, 64))) for seed in range(8)])
    vision_networks.spread(theirs, pixels, ours.preprocessing)
    eager = vision.Theirs(theirs, ours.preprocessing, torch.contiguous_format)
    logits = eager.probabilities([*pixels]).log()
    assert not theirs.training and len({*logits.argmax(1).tolist()}) > 4
    # the softmax takes one number from all logits of an image
    assert (logits - logits.mean(1, keepdim=True)).std(dim=0).mean() == pytest.approx(1, abs=0.1)


def test_other_models_of_timm_and_weights_of_a_file(tmp_path: Path) -> None:
    save_file(vision_networks.create_theirs("resnet10t").state_dict(), tmp_path / "thousand.safetensors")
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "seven.pth")
    for name, classes in (("thousand.safetensors", 1000), ("seven.pth", 7)):
        theirs = vision_networks.create_theirs("resnet10t", tmp_path / name)
        ours = vision_networks.create_ours(theirs, tmp_path / str(classes), 32)
        images = torch.randn(1, 3, 32, 32)
        assert len(ours.labels) == classes and torch.equal(ours.model(images), theirs(images))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"hold no last_linear.bias, so they are not those of timm's nasnetalarge"):
        vision_networks.create_theirs("nasnetalarge", tmp_path / "wrong.safetensors", SMALL)
    with pytest.raises(ValueError, match="timm has no model 'nasnetlarge'"):
        vision_networks.create_theirs("nasnetlarge")
    with pytest.raises(ValueError, match="only nasnetalarge can be made smaller, not resnet10t"):
        vision_networks.create_theirs("resnet10t", None, SMALL)


def test_contestants_take_turns_and_the_first_does_not_count() -> None:
    told: list[tuple[str, list[int]]] = []

    def turn(name: str) -> vision.Turn:
        def taken(chosen: Sequence[int]) -> float:
            told.append((name, [*chosen]))
            return 1.0 if len(told) <= 4 else 0.5

        return taken

    found = vision.take_turns({"a": turn("a"), "b": turn("b")}, [1, 2], images=3, repeats=2)
    assert [name for name, _ in told] == ["a", "b"] * 6
    assert [chosen for name, chosen in told if name == "a"] == [[0], [0, 1], [1], [2, 0], [2], [1, 2]]
    assert found == {name: [0.5, 0.5] for name in ("a_batch1", "b_batch1")} | {
        name: [0.25, 0.25] for name in ("a_batch2", "b_batch2")
    }


def test_figures_are_medians_and_the_worse_of_both_batches() -> None:
    seconds = {
        "timm_eager_batch1": [0.9, 0.6, 0.1],
        "ours_batch1": [0.2, 0.2, 9.0],
        "grpc_batch1": [0.21, 0.21, 0.3],
        "timm_eager_batch8": [0.4],
        "ours_batch8": [0.1],
        "grpc_batch8": [0.11],
    }
    found = vision.figures(seconds, [1, 8])
    assert found["seconds_timm_eager_batch1"] == 0.6
    assert found["ratio_timm_eager_batch1"] == pytest.approx(3) and found["ratio_timm_eager_batch8"] == pytest.approx(4)
    assert found["ratio_timm_eager"] == pytest.approx(3) and found["grpc_overhead"] == pytest.approx(0.1)
    assert found["grpc_overhead_batch1"] == pytest.approx(0.05)


class Fixed:
    """Gives each image, a number, its row; on both sides of the comparison."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self._rows = torch.tensor(rows)

    def probabilities(self, pixels: Sequence[Tensor]) -> Tensor:
        return self._rows[torch.stack([*pixels])]

    def submit(self, pixels: Tensor) -> Future[Tensor]:
        future: Future[Tensor] = Future()
        future.set_result(self._rows[pixels])
        return future


def test_agreement_by_hand() -> None:
    theirs = Fixed([[0.6, 0.4], [0.3, 0.7], [0.51, 0.49], [0.9, 0.1]])
    ours = Fixed([[0.5, 0.5], [0.2, 0.8], [0.49, 0.51], [0.9, 0.1]])
    pixels = [torch.tensor(number) for number in range(4)]
    found = vision.agreement(cast(vision.Theirs, theirs), cast(Classifier, ours), pixels, batch=3)
    assert found.pop("largest_difference_of_probability") == pytest.approx(0.1)
    assert found == {"agreement": 0.75, "agreement_images": 4, "agreement_labels": 2}


def test_cores_are_given_back() -> None:
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with vision.confined(1):
        assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == before and torch.get_num_threads() == threads
    with (
        pytest.raises(ValueError, match=f"--cores is {len(before) + 1}: 1 to {len(before)}"),
        vision.confined(len(before) + 1),
    ):
        pass


def test_photographs_come_evenly_from_a_folder_as_jpeg(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"class{number // 3}").mkdir(exist_ok=True)
        (tmp_path / f"class{number // 3}" / f"{number}.png").write_bytes(encoded(noise(20 + number, 30), "PNG"))
    (tmp_path / "notes.txt").write_text("no image")
    files = vision_images.photographs(tmp_path, 3)
    assert [decode(file).shape[2] for file in files] == [20, 22, 24]
    assert all(file.startswith(b"\xff\xd8\xff") for file in files)
    assert len(vision_images.photographs(tmp_path, 100)) == 6
    made_up = vision_images.photographs(None, 2)
    assert made_up == vision_images.photographs(None, 2) and made_up[0] != made_up[1]
    (tmp_path / "empty").mkdir()
    for folder, text in ((tmp_path / "empty", "no image in"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(ValueError, match=text):
            vision_images.photographs(folder, 3)


def test_the_whole_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--filters", str(SMALL), "--image-size", "64", "--repeats", "1", "--agreement-images", "4"]
    assert vision.main([*small, "--batches", "1,2", "--cores", "1", "--channels-last", "--json"]) == 0
    output = capsys.readouterr().out
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    for name in ("timm_eager", "timm_channels_last", "ours", "grpc"):
        assert found[f"seconds_{name}_batch1"] > 0 and found[f"seconds_{name}_batch2"] > 0
    assert found["ratio_timm_eager"] <= found["ratio_timm_eager_batch2"] and found["ratio_timm_eager"] > 0
    assert found["grpc_agreement"] == found["agreement"] == 1 and found["precision"] == "eager"
    assert (found["agreement_images"], found["weights"], found["agreement_on"]) == (4, "random", "made-up pictures")
    assert found["machine"]["timm"] and "times timm eager's throughput" in output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--repeats", "0"], "--repeats is 0: at least 1"),
        (["--cores", "1000"], "--cores is 1000: 1 to"),
        (["--model", "nasnet"], "timm has no model 'nasnet'"),
        (["--weights", "none.pth"], "none.pth does not exist"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        vision.main(words)
    assert stopped.value.code == 2 and text in capsys.readouterr().err


def test_the_client_needs_no_framework() -> None:
    code = "import sys, benchmarks.vision_client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
