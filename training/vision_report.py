"""A folder that says how well a classifier knows labelled images.

report.html       one page with all pictures in it, no file beside it needed
report.json       all figures
classes.csv       images, precision, recall and F1 of each class
confusion.csv     counts: a row a label, a column a choice
predictions.csv   each image, its label, the first choice and its probability
*.png             the page's pictures: confusion, reliability, worst, curves
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from training import vision_plots
from training.vision_figures import Answers

CONFUSED = 20  # pairs
STYLE = """body{font:15px/1.45 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.15em .8em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}"""


def write(answers: Answers, title: str, folder: Path, worst: int, run: Path | None = None) -> None:
    """worst: images on the contact sheet. run: the folder of the training, for its curves. Files are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw(answers, folder, worst, run)
    (folder / "report.json").write_text(json.dumps(document(answers, title, worst), indent=2) + "\n", encoding="utf-8")
    _write_tables(answers, folder)
    (folder / "report.html").write_text(page(answers, title, pictures), encoding="utf-8")


def document(answers: Answers, title: str, worst: int) -> dict[str, object]:
    """What report.json holds; percent, but for calibration errors and losses."""
    return {
        "bundle": title,
        "images": len(answers.files),
        "top1": answers.top(1),
        "top5": answers.top(5),
        "macro_f1": _macro_f1(answers),
        "temperature": answers.temperature,
        "calibration": {
            name: {"ece": answers.calibration_error(temperature), "log_loss": answers.log_loss(temperature)}
            for name, temperature in (("before", 1.0), ("after", answers.temperature))
        },
        "classes": [asdict(row) for row in answers.classes()],
        "confused": [asdict(pair) for pair in answers.confused(CONFUSED)],
        "worst": [_image(answers, index) for index in answers.worst(worst)],
    }


def page(answers: Answers, title: str, pictures: dict[str, Path]) -> str:
    """HTML; pictures: PNG files by name, which the page takes in."""
    parts = [f"<h1>{escape(title)}</h1>", _summary(answers)]
    for name, heading in (("curves", "Training"), ("reliability", "Calibration"), ("confusion", "Confusion matrix")):
        if name in pictures:
            parts += [f"<h2>{heading}</h2>", _inlined(name, pictures[name])]
    pairs = answers.confused(CONFUSED)
    if pairs:
        rows = [(each.label, each.predicted, each.count, f"{each.share:.1f}") for each in pairs]
        parts += ["<h2>Most confused</h2>", _table(("label", "predicted", "images", "% of the label's"), rows)]
    classes = [
        (row.label, row.images, f"{row.precision:.1f}", f"{row.recall:.1f}", f"{row.f1:.1f}")
        for row in answers.classes()
    ]
    parts += ["<h2>Classes</h2>", _table(("class", "images", "precision, %", "recall, %", "F1, %"), classes)]
    if "worst" in pictures:
        parts += ["<h2>Worst images</h2>", _inlined("worst", pictures["worst"])]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"


def _summary(answers: Answers) -> str:
    before, after = (
        f"{answers.calibration_error(t):.4f} and {answers.log_loss(t):.4f}" for t in (1.0, answers.temperature)
    )
    rows = [
        ("images", str(len(answers.files))),
        ("top-1, %", f"{answers.top(1):.2f}"),
        ("top-5, %", f"{answers.top(5):.2f}"),
        ("mean F1 of the classes, %", f"{_macro_f1(answers):.2f}"),
        ("calibration error and log loss, uncalibrated", before),
        (f"the same at the bundle's temperature, {answers.temperature:.3f}", after),
    ]
    return _table(("figure", "value"), rows)


def _macro_f1(answers: Answers) -> float:
    """Over the classes that the data has images of."""
    scores = [row.f1 for row in answers.classes() if row.images]
    return sum(scores) / len(scores)


def _draw(answers: Answers, folder: Path, worst: int, run: Path | None) -> dict[str, Path]:
    pictures = {name: folder / f"{name}.png" for name in ("confusion", "reliability")}
    vision_plots.confusion(answers, pictures["confusion"])
    vision_plots.reliability(answers, pictures["reliability"])
    if chosen := answers.worst(worst):
        pictures["worst"] = folder / "worst.png"
        vision_plots.contact_sheet(answers, chosen, pictures["worst"])
    if run is not None:
        pictures["curves"] = folder / "curves.png"
        vision_plots.curves(run, pictures["curves"])
    return pictures


def _write_tables(answers: Answers, folder: Path) -> None:
    labels = answers.files.labels
    classes = [asdict(row) for row in answers.classes()]
    _write_csv(folder / "classes.csv", list(classes[0]), (row.values() for row in classes))
    counts = zip(labels, answers.confusion.tolist(), strict=True)
    _write_csv(folder / "confusion.csv", ["label", *labels], ([label, *row] for label, row in counts))
    images = [_image(answers, index) for index in range(len(answers.files))]
    _write_csv(folder / "predictions.csv", list(images[0]), (row.values() for row in images))


def _image(answers: Answers, index: int) -> dict[str, object]:
    return {
        "path": str(answers.files.paths[index]),
        "label": answers.files.labels[answers.files.targets[index]],
        "predicted": answers.files.labels[int(answers.choices[index])],
        "probability": round(float(answers.calibrated[index].max()), 6),
    }


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _inlined(name: str, picture: Path) -> str:
    return f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">'


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
