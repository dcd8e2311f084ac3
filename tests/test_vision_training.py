"""The vision recipe: data in memory, augmentation, schedule, two processes against one, resume after a kill."""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from training import export
from training.fit import build_parser, main
from training.vision_data import FiledImages, LabelledImages, SeededBatches, VisionData, load_images
from training.vision_files import read_files, split
from training.vision_module import VisionOptions, augment
from training.vision_network import choose_architecture
from training.vision_recipe import resolve
from vision_zoo import bundle, precision, zoo
from vision_zoo.classifier import Classifier
from vision_zoo.nasnet import CIFAR
from vision_zoo.transforms import Preprocessing

TINY = ["--backbone", "nasnet-a-1@48", "--stem-stride", "2", "--batch-size", "8", "--validation", "8", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 noisy pictures: red above blue, and the other way round."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, top, bottom in (("dawn", 0, 2), ("dusk", 2, 0)):
        (root / name).mkdir()
        for index in range(20):
            pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[:16, :, top] += 150
            pixels[16:, :, bottom] += 150
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_folder_is_read_with_the_serving_decoder(folder: Path) -> None:
    data = load_images(read_files(folder), Preprocessing(size=32))
    assert isinstance(data, LabelledImages)
    assert data.labels == ("dawn", "dusk")
    assert data.images.shape == (40, 3, 32, 32) and data.images.dtype == torch.uint8
    with Image.open(folder / "dusk" / "0.png") as first_dusk:
        assert torch.equal(data.images[20].permute(1, 2, 0), torch.from_numpy(np.array(first_dusk)))


def test_images_that_do_not_fit_into_memory_are_read_from_their_files(folder: Path) -> None:
    kept, filed = (load_images(read_files(folder), Preprocessing(size=32), limit) for limit in (1 << 20, 1 << 16))
    assert isinstance(kept, LabelledImages) and isinstance(filed, FiledImages) and len(kept) == len(filed) == 40
    one, other = (VisionData(of, of, 4, seed=1) for of in (kept, filed))
    for name in ("train_dataloader", "val_dataloader"):
        for first, second in zip(getattr(one, name)(), getattr(other, name)(), strict=True):
            assert all(torch.equal(*each) for each in zip(first, second, strict=True))


def test_held_out_images_are_not_trained_on(folder: Path) -> None:
    train, validation = split(read_files(folder), 10, seed=3)
    assert len(train) == 30 and len(validation) == 10
    assert not set(train.paths) & set(validation.paths)


@pytest.mark.parametrize("count", [0, 40, 41])
def test_impossible_hold_out_names_the_numbers(folder: Path, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count}.*40"):
        split(read_files(folder), count, seed=0)


def test_batches_depend_on_seed_and_epoch_only() -> None:
    batches = SeededBatches(20, 4, seed=1, shuffle=True)
    first, again = torch.cat(list(batches)), torch.cat(list(batches))
    batches.set_epoch(1)
    second = torch.cat(list(batches))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))


def test_ranks_share_a_batch_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(SeededBatches(20, 8, seed=1, shuffle=True))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("training.vision_data.rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(list(SeededBatches(20, 4, seed=1, shuffle=True)))
    for joined, left, right in zip(whole, *parts, strict=True):
        assert sorted(joined.tolist()) == sorted(left.tolist() + right.tolist())


@pytest.mark.parametrize("count", [8, 9, 16])
def test_validation_batches_cover_everything_once(count: int) -> None:
    batches = SeededBatches(count, 8, seed=1, shuffle=False)
    found = list(batches)
    assert torch.cat(found).tolist() == list(range(count))
    assert len(found) == len(batches)


def test_augmentation_crops_flips_and_cuts_out() -> None:
    ramp = torch.arange(1.0, 65.0).view(1, 1, 8, 8).expand(64, 3, 8, 8)
    torch.manual_seed(0)
    still = augment(ramp, VisionOptions(crop_padding=0, flip=False, cutout=0))
    assert torch.equal(still, ramp)
    flipped = augment(ramp, VisionOptions(crop_padding=0, flip=True, cutout=0))
    mirrored = (flipped == ramp.flip(3)).flatten(1).all(1)
    kept = (flipped == ramp).flatten(1).all(1)
    assert bool((mirrored ^ kept).all()) and 10 < int(mirrored.sum()) < 54
    cut = augment(ramp, VisionOptions(crop_padding=0, flip=False, cutout=4))
    holes = (cut == 0).sum((1, 2, 3)) / 3
    assert holes.max() == 16 and holes.min() >= 4  # a corner keeps a quarter of the square
    assert torch.equal(cut[cut != 0], ramp[cut != 0])
    moved = augment(ramp, VisionOptions(crop_padding=2, flip=False, cutout=0))
    assert moved.shape == ramp.shape
    assert set(moved[:, 0, 4, 4].tolist()) <= {
        float(8 * (4 + y) + 4 + x + 1) for y in range(-2, 3) for x in range(-2, 3)
    }


def test_a_run_learns_and_writes_what_it_promises(folder: Path, tmp_path: Path) -> None:
    assert main(["vision", "--data", str(folder), "--out", str(tmp_path), "--epochs", "6", "--cutout", "8", *TINY]) == 0
    with open(tmp_path / "csv" / "version_0" / "metrics.csv") as file:
        top1 = [float(row["val_top1"]) for row in csv.DictReader(file) if row["val_top1"]]
    assert len(top1) == 6 and max(top1) == 100.0
    assert (tmp_path / "best.ckpt").exists() and list((tmp_path / "tensorboard").glob("events*"))


def test_a_second_run_into_the_same_folder_needs_resume(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(SystemExit) as stop:
        main(["vision", "--data", str(folder), "--out", str(tmp_path), *TINY])
    assert stop.value.code == 2
    assert "--resume" in capsys.readouterr().err


def command(folder: Path, out: Path, *more: str) -> list[str]:
    data = ["--data", str(folder), "--out", str(out), "--threads", "1", "--accelerator", "cpu"]
    return [sys.executable, "-m", "training.fit", "vision", *data, *TINY, *more]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=False)["state_dict"]
    return state


def test_a_killed_run_resumes_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with subprocess.Popen(command(folder, killed, "--epochs", "5", "--resume")) as run:
        deadline = time.monotonic() + 120
        while not (killed / "last.ckpt").exists() and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert torch.load(killed / "last.ckpt", weights_only=False)["epoch"] < 4
    subprocess.run(command(folder, killed, "--epochs", "5", "--resume"), check=True)
    assert main(command(folder, whole, "--epochs", "5")[3:]) == 0
    expected, actual = weights(whole / "last.ckpt"), weights(killed / "last.ckpt")
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name


WORKER = """
import sys, torch, pytorch_lightning as pl
from torch import nn
from training.vision_data import LabelledImages, VisionData
from training.vision_module import VisionModule, VisionOptions
from vision_zoo import bundle, zoo
from vision_zoo.nasnet import CIFAR
from vision_zoo.transforms import Preprocessing

torch.set_num_threads(1)
out, processes, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = LabelledImages(*torch.load(out + "/data.pt"), labels=("a", "b"))
network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 2))
network.load_state_dict(torch.load(out + "/weights.pt"))
options = VisionOptions(crop_padding=0, flip=False, cutout=0)
module = VisionModule(network, {}, ["a", "b"], Preprocessing(size=8), options)

class Keep(pl.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_rank == 0 and trainer.global_step == 0:
            torch.save([p.grad for p in module.network.parameters()], f"{out}/gradients-{processes}.pt")

pl.Trainer(
    accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_steps=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False, limit_val_batches=0,
    callbacks=[Keep()],
).fit(module, VisionData(data, data, batch, seed=1))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, which then aborts
"""


def test_two_processes_give_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 2))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.save((torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2), tmp_path / "data.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    worker = [str(tmp_path / "worker.py"), str(tmp_path)]
    subprocess.run([sys.executable, *worker, "1", "8"], check=True, env=environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, *worker, "2", "4"], check=True, env=environment)
    one, two = torch.load(tmp_path / "gradients-1.pt"), torch.load(tmp_path / "gradients-2.pt")
    for expected, actual in zip(one, two, strict=True):
        assert float(expected.abs().sum()) > 0
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_export_gives_a_bundle_that_answers_like_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert main(["vision", "--data", str(folder), "--out", str(tmp_path / "run"), "--epochs", "1", *TINY]) == 0
    checkpoint = str(tmp_path / "run" / "last.ckpt")
    assert export.main(["vision", "--checkpoint", checkpoint, "--name", "sky", "--out", str(tmp_path / "sky")]) == 0
    made = bundle.load(tmp_path / "sky")
    assert made.labels == ("dawn", "dusk") and made.preprocessing == Preprocessing(size=32)
    trained = zoo.build(zoo.NASNetArchitecture(replace(CIFAR, cells=1, filters=48, stem_stride=2, num_classes=2)))
    trained.load_state_dict({key.removeprefix("network."): value for key, value in weights(Path(checkpoint)).items()})
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(made.model(images), trained.eval()(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "nasnet-a-1@24"], "at least 48"),
        (["--backbone", "nasnet-b"], "did you mean|choose from"),
        (["--backbone", "timm/resnet18", "--stem-stride", "2"], "--stem-stride: for NASNets, not for timm/resnet18"),
        (["--backbone", "timm/resnet18", "--dropout", "0"], "--dropout: for NASNets"),
        (["--backbone", "nasnet-a-1@48", "--dropout", "1"], r"dropout 1.0 must be 0 to below 1"),
        (["--backbone", "nasnet-a-1@48", "--batch-norm-momentum", "0"], r"batch_norm_momentum 0.0 above 0 to 1"),
    ],
)
def test_backbones_that_will_not_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["vision", "--data", str(folder), "--out", str(tmp_path), "--validation", "8", "--quiet", *options])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "momentum"),
    [
        ([], 3e-4),
        (["--initial", "pretrained"], 0.1),
        (["--batch-norm-momentum", "0.02"], 0.02),
        (["--initial", "pretrained", "--batch-norm-momentum", "0.02"], 0.02),
    ],
)
def test_the_statistics_of_a_short_run_are_its_own(options: list[str], momentum: float) -> None:
    args = build_parser().parse_args(
        ["vision", "--data", "x", "--out", "y", "--backbone", "nasnet-a-mobile", "--dropout", "0.1", *options]
    )
    chosen = choose_architecture(resolve(args), 3)
    assert isinstance(chosen, zoo.NASNetArchitecture)
    assert (chosen.config.batch_norm_momentum, chosen.config.dropout) == (momentum, 0.1)


def resolved(*options: str, size: int = 32) -> argparse.Namespace:
    return resolve(build_parser().parse_args(["vision", "--data", "photos/flowers/train", *options]), size)


def test_defaults_follow_the_data_and_the_start() -> None:
    assert resolved().out == Path("runs/flowers"), "train says nothing of what is in it"
    assert resolved("--out", "there").out == Path("there")
    assert (resolved().epochs, resolved(size=224).epochs) == (600, 100)
    assert resolved("--initial", "x", size=224).epochs == 30
    assert resolved("--initial", "x", "--find-lr").tune == "full", "of the layers that will learn, not of the head"
    assert resolved("--initial", "x", "--find-lr", "--tune", "head").tune == "head"


def test_processes_do_not_wait_for_the_gradients_of_a_frozen_backbone() -> None:
    waiting = "ddp_find_unused_parameters_true"
    assert resolved("--initial", "x", "--devices", "2").strategy == waiting
    assert resolved("--initial", "x", "--nodes", "2", "--strategy", "ddp").strategy == waiting
    assert resolved("--initial", "x", "--devices", "2", "--tune", "full").strategy == "ddp"
    assert resolved("--initial", "x").strategy == "auto"


def test_a_transformer_of_one_size_says_so() -> None:
    options = resolved("--backbone", "timm/vit_tiny_patch16_224", "--input-size", "64")
    with pytest.raises(ValueError, match="--input-size 64: timm/vit_tiny_patch16_224 takes 224 pixels only"):
        choose_architecture(options, 3)


def test_any_timm_model_trains_and_is_served(folder: Path, tmp_path: Path) -> None:
    small = [
        "--backbone",
        "timm/test_resnet",
        "--input-size",
        "32",
        "--batch-size",
        "8",
        "--validation",
        "8",
        "--quiet",
    ]
    assert main(["vision", "--data", str(folder), "--out", str(tmp_path / "run"), "--epochs", "1", *small]) == 0
    checkpoint = str(tmp_path / "run" / "last.ckpt")
    assert export.main(["vision", "--checkpoint", checkpoint, "--name", "small", "--out", str(tmp_path / "small")]) == 0
    made = bundle.load(tmp_path / "small")
    assert made.preprocessing.normalisation == "mean-std"
    served = Classifier(made, precision=precision.available()[min(1, len(precision.available()) - 1)])
    (found,) = served.classify([(folder / "dusk" / "0.png").read_bytes()])
    assert sum(each.probability for each in found) == pytest.approx(1)
    served.close()
