"""Which images there are: folders, tables, stratified splits, class weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.vision_fixtures import picture
from training.vision_files import ImageFiles, class_weights, read_files, split, write_files


def files(*counts: int) -> ImageFiles:
    """counts[i] images of class i."""
    targets = tuple(target for target, count in enumerate(counts) for _ in range(count))
    return ImageFiles(tuple(Path(str(i)) for i in range(len(targets))), targets, tuple("abcdef"[: len(counts)]))


def test_a_table_names_the_same_images_as_its_folder(tmp_path: Path) -> None:
    for place in ("red/1.png", "red/more/2.PNG", "blue/3.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(picture())
    (tmp_path / "red" / "notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    found = read_files(tmp_path)
    assert found.labels == ("blue", "red") and found.targets == (0, 1, 1)
    (tmp_path / "table.csv").write_text("label,path\nblue,blue/3.png\nred,red/1.png\nred,red/more/2.PNG\n")
    assert read_files(tmp_path / "table.csv") == found
    write_files(found, tmp_path / "sub.csv")
    assert read_files(tmp_path / "sub.csv") == found
    assert read_files(tmp_path, ["red", "green", "blue"]).targets == (2, 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\n", r"no column \['label'\]"),
        ("path,label\nnone.png,a\n", r"line 2: .*none\.png is not a file"),
        ("path,label\nhere.png,\n", "no label"),
        ("path,label\n", "holds no images"),
        ("label,path\ndog\n", "line 2: .* is not a file"),
        ("path,label\nhere.png\n", "no label"),
        ('path,label\n"' + "x" * 200_000, "cannot be read: field larger"),
    ],
)
def test_tables_that_will_not_do(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "here.png").touch()
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_files(tmp_path / "table.csv")


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        read_files(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "1.png").touch()
    with pytest.raises(ValueError, match=r"without images: \['empty'\]"):
        read_files(tmp_path)
    with pytest.raises(ValueError, match=r"folders \['empty'\] that the bundle has no label for"):
        read_files(tmp_path, ["full"])


def test_a_split_keeps_the_proportions() -> None:
    train, held = split(files(60, 30, 10), 0.1, seed=1)
    assert Counter(held.targets) == {0: 6, 1: 3, 2: 1}
    assert sorted(train.paths + held.paths) == sorted(files(60, 30, 10).paths)
    assert split(files(60, 30, 10), 10, seed=1) == (train, held)
    assert split(files(60, 30, 10), 10, seed=2)[1].paths != held.paths


def test_a_split_leaves_rare_classes_on_both_sides() -> None:
    train, held = split(files(96, 2, 2), 4, seed=1)
    assert Counter(held.targets) == {0: 2, 1: 1, 2: 1}
    assert Counter(train.targets) == {0: 94, 1: 1, 2: 1}
    train, held = split(files(5, 1), 2, seed=1)
    assert Counter(held.targets) == {0: 2}, "the only image of a class is needed for training"


def test_rare_classes_count_more() -> None:
    weights = class_weights(files(6, 2))
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    assert float(weights[torch.tensor(files(6, 2).targets)].mean()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"none of \['b'\]"):
        class_weights(files(3, 0))
