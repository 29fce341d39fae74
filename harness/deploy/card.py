"""The model card of an exported model: a README.md in the format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from scipy.stats import binomtest

from harness.core.errors import counted
from harness.core.selection import METRICS
from harness.data.media import medium_of
from harness.deploy.int8 import INT8
from harness.deploy.model import WEIGHTS
from harness.deploy.onnx import FILE
from harness.deploy.use import RUNTIMES
from harness.inputs import Input
from harness.tracking.results import StudyResult

SHOWN = 20
"""Largest number of classes that are listed by name."""


def card(about: Mapping[str, Any], form: Input, study: StudyResult) -> str:
    """The card, with its YAML front matter.

    Args:
        about: contents of model.json.
        form: the kind of input of the network.
        study: the comparison from which the cell was chosen.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.deploy", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    body = environment.get_template("card.md.j2").render(_values(about, form, study))
    return f"---\n{_metadata(about, form).to_yaml()}\n---\n\n{body}\n"


def loading(about: Mapping[str, Any]) -> str:
    """Three lines of Python that load the network, in the folder of the model."""
    settings = "".join(f", {name}={value!r}" for name, value in about["arguments"].items())
    if "timm" in about:
        made = f"timm.create_model({about['timm']!r}{settings})"
        lines = ["import timm, safetensors.torch", f"model = {made}.eval()"]
    elif not about.get("torchvision", "mnasnet").startswith(
        "mnasnet"
    ):  # which needs more than weights
        made = f"torchvision.models.get_model({about['torchvision']!r}, weights=None{settings})"
        lines = ["import torchvision, safetensors.torch", f"model = {made}.eval()"]
    else:
        return (
            "from pathlib import Path\n"
            "from harness.deploy.model import open_model\n"
            'model = open_model(Path(".")).network'
        )
    return "\n".join([*lines, f'model.load_state_dict(safetensors.torch.load_file("{WEIGHTS}"))'])


def _metadata(about: Mapping[str, Any], form: Input) -> ModelCardData:
    library = next((name for name in ("timm", "torchvision") if name in about), "pytorch")
    target = about["trial"]["target"]
    task = medium_of(form).task
    accuracy = EvalResult(
        task_type=task,
        dataset_type=target,
        dataset_name=target,
        dataset_split="test",
        metric_type="accuracy",
        metric_value=about["exported"]["test_accuracy"],
    )
    return ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=[task, "transfer-learning", library],
        metrics=["accuracy"],
        model_name=about["study"],
        eval_results=[accuracy],
    )


def _values(about: Mapping[str, Any], form: Input, study: StudyResult) -> dict[str, Any]:
    tested = about["images"]["test"]
    right = round(about["exported"]["test_accuracy"] * tested)
    chosen = next(c for c in study.cells if c.cell == about["cell"])
    shifts = {
        name.partition(".")[2]: chosen.mean(name)
        for name in chosen.repeats[0].metrics
        if name.startswith("test_accuracy.")
    }
    names = about["classes"]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return {
        "about": about,
        "calibration": about["calibration"],
        "classes": _cell(", ".join(names[:SHOWN]) + more),
        "loading": loading(about),
        "preparation": form.in_words(),
        "noun": medium_of(form).noun,
        "corruptions": form.corruptions,
        "parts": [
            (part, count, _per_class(about["images_per_class"][part]))
            for part, count in about["images"].items()
        ],
        "settings": _rows(about["trial"].items()),
        "columns": study.columns(),
        "rows": _rows(study.rows()),
        "repeats": f"{counted(len(chosen.repeats), 'repeat')} of this cell",
        "interval": binomtest(right, tested).proportion_ci(method="wilson"),
        "scores": [
            (METRICS[name].label, METRICS[name].text(value))
            for name, value in about["test"].items()
        ],
        "files": [
            (
                name,
                RUNTIMES[name],
                f"{cost['mib']:.2f}",
                f"{cost['latency_ms']:.2f}",
                f"{cost['images_per_second']:.0f}",
            )
            for name, cost in about["use"]["files"].items()
        ],
        "int8": about["int8"] if INT8 in about["use"]["files"] else None,
        "onnx": FILE in about["use"]["files"],
        "shifts": ", ".join(f"{k} {v:.1%}" for k, v in shifts.items() if v is not None),
        "percent": lambda share: f"{share:.1%}",
    }


def _per_class(counts: Any) -> str:
    """Images per class of one part, as `images_per_class` gives them."""
    if isinstance(counts, int):
        return str(counts)
    if "least" in counts:
        return " to ".join(
            f"{number} ({_cell(name)})" for number, name in (counts["least"], counts["most"])
        )
    return ", ".join(f"{_cell(name)} {number}" for name, number in counts.items())


def _rows(rows: Iterable[tuple[Any, ...]]) -> list[tuple[str, ...]]:
    return [tuple(_cell(value) for value in row) for row in rows]


def _cell(value: Any) -> str:
    """Text that is one cell of a table."""
    return " ".join(str(value).replace("|", "\\|").split())
