"""Draw some images of each class next to the number of its images, as PNG and as an HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from harness.core.html import as_table
from harness.data.images import THUMBNAIL as SIDE
from harness.dataset_report.inspection import DataSetReport

PER_CLASS = 8
MOST_CLASSES = 40
LABEL, GAP = 190, 6
"""Width of the column with names, and space between images, in pixels."""


def draw(report: DataSetReport) -> Image.Image:
    """One row for each of the first 40 classes: its name, its number of images, and up to 8 of its images."""
    shown = min(len(report.counts), MOST_CLASSES)
    step = SIDE + GAP
    sheet = Image.new("RGB", (LABEL + PER_CLASS * step + GAP, shown * step + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 15)
    labels = report.target.labels[report.decoded]
    for label in range(shown):
        top = GAP + label * step
        name = _shortened(report.target.classes[label], pen, font)
        pen.text((GAP, top + 26), name, "black", font)
        pen.text((GAP, top + 48), f"{report.counts[label]} {report.nouns}", "#555555", font)
        members = np.flatnonzero(labels == label)
        spread = np.unique(np.linspace(0, len(members) - 1, PER_CLASS).round().astype(int))
        shown_rows = report.rows[members[spread] if len(members) else members]
        pictures = report.form.pictures(shown_rows) if len(members) else ()
        for column, pixels in enumerate(pictures):
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            left = LABEL + column * step
            sheet.paste(picture, (left, top))
            pen.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), None, "#dddddd")
    return sheet


def _shortened(name: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> str:
    """As much of the name as fits into the column."""
    shown = name
    while pen.textlength(shown, font) > LABEL - 2 * GAP:
        shown = f"{shown.removesuffix('…')[:-1]}…"
    return shown


def picture(sheet: Image.Image, nouns: str) -> str:
    """The sheet as HTML, with the image embedded; `nouns` is what the examples are called."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    inside = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{inside}" alt="Up to {PER_CLASS} {nouns} of each class">'
    )


def page(
    report: DataSetReport, sheet: Image.Image, found: Sequence[str], lists: Sequence[str]
) -> str:
    """An HTML page with the sheet, the findings and a table of the classes, in one file.

    Args:
        report: report on the target.
        sheet: image from `draw`.
        found: findings, as sentences.
        lists: files and pairs of images, one per line.
    """
    title = html.escape(report.target.name)
    columns = {"class": report.target.classes, report.nouns: report.counts}
    if report.test_counts is not None:
        columns[f"official test {report.nouns}"] = report.test_counts
    classes = as_table("Classes", list(columns), zip(*columns.values(), strict=True))
    left = len(report.counts) - MOST_CLASSES
    more = f"<p>{left} more classes are not shown.</p>" if left > 0 else ""
    details = "".join(f"<li>{html.escape(line)}" for line in lists)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
h1, li {{ overflow-wrap: anywhere; }}
img {{ max-width: 100%; border: 1px solid #ddd; }}
caption {{ font-size: 1.5em; text-align: left; }}
td, th {{ padding: .15rem 1.5rem .15rem 0; border-bottom: 1px solid #ddd; }}
</style>
<h1>{title}</h1>
<ul>{"".join(f"<li>{html.escape(line)}" for line in found)}</ul>
{picture(sheet, report.nouns)}
{more}
{classes}
{f"<h2>Files to look at</h2><ul>{details}</ul>" if details else ""}
</html>
"""
