"""Figures, calibration and the report, on answers that can be checked by hand."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.vision_fixtures import COLOURS, colour_bundle, picture
from training import vision_plots, vision_report
from training.evaluate_vision import answer
from training.vision_calibration import fit_temperature, negative_log_likelihood
from training.vision_figures import Answers, ClassRow, Confused
from training.vision_files import ImageFiles, read_files


def answers(targets: list[int], probabilities: list[list[float]], temperature: float = 1.0) -> Answers:
    paths = tuple(Path(f"{index}.png") for index in range(len(targets)))
    files = ImageFiles(paths, tuple(targets), COLOURS)
    return Answers(files, torch.tensor(probabilities, dtype=torch.float64).log(), temperature)


@pytest.fixture
def toy() -> Answers:
    """red: right, right, called green; green: right, called blue; blue: none."""
    return answers(
        [0, 0, 0, 1, 1], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]
    )


def test_figures_by_hand(toy: Answers) -> None:
    assert toy.top(1) == pytest.approx(60) and toy.top(2) == toy.top(9) == pytest.approx(100)
    assert toy.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert toy.classes() == [
        ClassRow("red", 3, 2, precision=100.0, recall=200 / 3, f1=80.0),
        ClassRow("green", 2, 2, precision=50.0, recall=50.0, f1=50.0),
        ClassRow("blue", 0, 1, precision=0.0, recall=0.0, f1=0.0),
    ]
    assert toy.confused(9) == [Confused("green", "blue", 1, 50.0), Confused("red", "green", 1, 100 / 3)]
    assert toy.worst(9) == [2, 4] or toy.worst(9) == [4, 2], "both gave their label 0.3"
    assert toy.worst(1)[0] in (2, 4)


def test_calibration_error_by_hand() -> None:
    """Ten times 0.8 sure, and right half of the time: 0.3 too sure."""
    sure = answers([0] * 5 + [1] * 5, [[0.8, 0.1, 0.1]] * 10)
    assert sure.calibration_error(1.0) == pytest.approx(0.3)
    temperature = fit_temperature(sure.log_probabilities, sure.targets)
    assert temperature > 1
    assert sure.calibration_error(temperature) < 0.3


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_classifier_is_found_again(true: float) -> None:
    """Logits of two classes whose labels were drawn at `true`: as often as the probabilities say, exactly."""
    logits, targets = [], []
    for right in (60, 75, 90):
        logit = true * math.log(right / (100 - right))
        logits += [[logit, 0.0]] * 100
        targets += [0] * right + [1] * (100 - right)
    given, labels = torch.tensor(logits), torch.tensor(targets)
    found = fit_temperature(given, labels)
    assert found == pytest.approx(true, rel=1e-4)
    for other in (0.9 * found, 1.1 * found):
        assert negative_log_likelihood(given, labels, found) < negative_log_likelihood(given, labels, other)


def test_a_temperature_stays_within_bounds() -> None:
    assert fit_temperature(torch.tensor([[5.0, 0.0]]), torch.tensor([0])) == pytest.approx(0.25)
    assert fit_temperature(torch.tensor([[5.0, 0.0]]), torch.tensor([1])) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))


class Page(HTMLParser):
    """Collects what a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def test_the_report_holds_what_it_promises(tmp_path: Path) -> None:
    """Four pictures, one of them in the wrong folder."""
    for label, colour, name in (
        ("red", "red", "1"),
        ("red", "blue", "2"),
        ("blue", "blue", "3"),
        ("green", "green", "4"),
    ):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / label / f"{name}.png").write_bytes(picture(colour))
    of = colour_bundle()
    found = answer(of, read_files(tmp_path / "data", of.labels), batch_size=3, workers=1)
    log = tmp_path / "run" / "csv" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,step,train_loss,val_loss,val_top1\n0,9,0.5,,\n0,9,,0.4,75.0\n")
    vision_report.write(found, "a & b", tmp_path / "out", worst=5, run=tmp_path / "run")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{name}.png" for name in ("confusion", "reliability", "worst", "curves")}
    assert written == pictures | {"report.html", "report.json", "classes.csv", "confusion.csv", "predictions.csv"}
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert len(page.references) == 4 and all(each.startswith("data:image/png;base64,") for each in page.references)
    assert "a & b" in page.words and "75.00" in page.words
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["top1"] == 75.0 and [each["path"] for each in figures["worst"]] == [str(tmp_path / "data/red/2.png")]
    with (tmp_path / "out" / "confusion.csv").open() as file:
        assert list(csv.reader(file))[1] == ["red", "1", "0", "1"]
    with Image.open(tmp_path / "out" / "worst.png") as sheet:
        assert sheet.width > 500


def test_labels_are_no_formulas(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(picture("red"))
    named = ImageFiles((tmp_path / "1.png",), (0,), ("$x_{$", "$", "b"))
    wrong = replace(answers([0], [[0.1, 0.8, 0.1]]), files=named)
    vision_report.write(wrong, "prices", tmp_path / "out", worst=1)
    assert {"confusion.png", "worst.png"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_a_perfect_classifier_has_no_worst_images(tmp_path: Path) -> None:
    perfect = answers([0, 1, 2], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    vision_report.write(perfect, "all right", tmp_path, worst=5)
    assert not (tmp_path / "worst.png").exists()
    assert "Most confused" not in (tmp_path / "report.html").read_text()


def test_curves_need_a_run(tmp_path: Path, toy: Answers) -> None:
    with pytest.raises(ValueError, match="--curves takes"):
        vision_plots.curves(tmp_path, tmp_path / "curves.png")
