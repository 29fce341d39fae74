"""Meaning of the columns of a table of trials, as Python values, TOML or JSON.

    python -c "from analysis.load.mapping import *; print(read_mapping('runs.toml'))"

    factors = ["source", "target"]   # or {source = "pretrained on"}: factor = "column"
    val = "val_auc"
    val_loss = "val_loss"
    select = "val_loss"
    test = "test_auc"
    metric = "AUC"
    time = "minutes"
    time_unit = "min"

`preset = "wandb"` sets the columns of a CSV export of Weights & Biases. `analysis.load.external` lists the
assumptions about what a mapping cannot say.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, first_line
from harness.core.results import OUTCOMES
from harness.core.study import RESERVED_FACTORS
from harness.core.units import UNITS

SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
MIB = {unit: UNITS[unit.lower()] / 2**20 for unit in ("B", "KiB", "MB", "MiB", "GB", "GiB")}
MEMORY = {"accelerator": "peak_accelerator_allocated_mib", "process": "peak_process_rss_mib"}
SELECT = {"val": "val_score", "val_loss": "val_loss"}
STATUS: dict[str, str] = {
    **{outcome: outcome for outcome in (*OUTCOMES, "unfinished")},
    **dict.fromkeys(("finished", "completed", "success", "succeeded", "done", "ok"), "complete"),
    **dict.fromkeys(("failed", "fail", "error"), "crashed"),
    **dict.fromkeys(("preempted", "preempting"), "killed"),
    **dict.fromkeys(("running", "pending", "scheduled"), "unfinished"),
}
"""What a status may be called elsewhere -> the outcome it is here; case does not matter."""
PRESETS: dict[str, dict[str, str]] = {
    "wandb": {"trial": "Name", "status": "State", "time": "Runtime", "started": "Created"},
}


@dataclass(frozen=True)
class TableMapping:
    """The meaning of the columns of a table. Columns that are not named are not read.

    Attributes:
        factors: factor -> its column; the factors together identify the cell.
        test: test score.
        val, val_loss: validation score of the same kind as `test`, and validation loss.
        select: how the trial of a cell is chosen: by the highest "val" or the lowest "val_loss". The default
            is val if it is mapped, else val_loss.
        metric: name of the scores in print.
        percent: whether scores are in [0, 100].
        test_loss: test loss.
        trial: name or number of a trial, unique within a cell, phase and seed.
        seed: integers.
        phase: "tune" or "repeat".
        status: how the run ended, as in STATUS or `outcomes` (status -> outcome).
        time, time_unit: training time; the unit is one of SECONDS.
        memory, memory_unit, memory_of: peak memory; its unit is one of MIB, its kind one of MEMORY.
        device: device of the run; times of different devices are not compared.
        started: start time as a date and time, in UTC unless stated otherwise.
        parameters: name -> column of the tuned parameters.
        over_seeds: each configuration (values of `parameters`) was run on several seeds. It is chosen by its
            mean validation score over them, and they are its repeats.
        baseline: one value of some factors.
        sampler: "random", "tpe" or "" if unknown.
        name, question: of the study; the default name is that of the file.
    """

    factors: dict[str, str]
    test: str
    val: str = ""
    val_loss: str = ""
    select: str = ""
    metric: str = "accuracy"
    percent: bool = False
    test_loss: str = ""
    trial: str = ""
    seed: str = ""
    phase: str = ""
    status: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)
    time: str = ""
    time_unit: str = "s"
    memory: str = ""
    memory_unit: str = "MiB"
    memory_of: str = "accelerator"
    device: str = ""
    started: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    over_seeds: bool = False
    baseline: dict[str, str] = field(default_factory=dict)
    sampler: str = ""
    name: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        if not self.factors or not self.test:
            raise UserError("a mapping needs factors and the column of the test score")
        for name in self.factors.keys() & RESERVED_FACTORS:
            raise UserError(f"factor {name!r} has a reserved name; choose another one")
        allowed: list[tuple[str, str, Iterable[str]]] = [
            ("select", self.select or "val", SELECT),
            ("time_unit", self.time_unit, SECONDS),
            ("memory_unit", self.memory_unit, MIB),
            ("memory_of", self.memory_of, MEMORY),
            *(("outcomes", o, (*OUTCOMES, "unfinished")) for o in self.outcomes.values()),
        ]
        for what, value, known in allowed:
            if value not in known:
                raise UserError(f"{what} {value!r} is not one of {', '.join(known)}")
        if self.select and not getattr(self, self.select):
            raise UserError(f"select = {self.select!r}, but no column is mapped to {self.select}")
        if self.over_seeds and not (self.seed and self.parameters and self.selection):
            raise UserError("over_seeds needs seed, parameters, and val or val_loss")
        if self.over_seeds and self.phase:
            raise UserError("with over_seeds, the rows are the repeats: map no phase")
        for name in self.baseline.keys() - self.factors.keys():
            raise UserError(f"baseline {name!r} is not a factor ({', '.join(self.factors)})")

    @property
    def selection(self) -> str:
        """The column of the data frame by which trials are chosen; "" if nothing is chosen."""
        if not self.val and not self.val_loss:
            return ""
        return SELECT[self.select or ("val" if self.val else "val_loss")]

    def columns(self) -> dict[str, str]:
        """Column of the data frame -> column of the table, for all mapped columns."""
        fixed = {
            "test_score": self.test,
            "val_score": self.val,
            "val_loss": self.val_loss,
            "test_loss": self.test_loss,
            "trial": self.trial,
            "seed": self.seed,
            "phase": self.phase,
            "outcome": self.status,
            "train_seconds": self.time,
            MEMORY[self.memory_of]: self.memory,
            "device": self.device,
            "start_time": self.started,
        }
        tuned = {f"param.{name}": column for name, column in self.parameters.items()}
        return {ours: theirs for ours, theirs in (fixed | tuned | self.factors).items() if theirs}


def read_mapping(path: str | Path) -> TableMapping:
    """Read a mapping from a TOML or JSON file: the fields of TableMapping, and `preset`.

    Raises:
        UserError: if the file cannot be read, or has an unknown field, preset or value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        entries = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the mapping {path}: {first_line(error)}") from error
    if not isinstance(entries, dict):
        raise UserError(f"the mapping {path} is not a table of fields")
    return mapping_from(entries)


def mapping_from(entries: Mapping[str, Any]) -> TableMapping:
    """A mapping from plain values. `factors` and `parameters` may be lists of columns that keep their names.
    `preset` names one of PRESETS, whose columns the other entries override.

    Raises:
        UserError: if a field, preset or value is unknown.
    """
    given = dict(entries)
    preset = given.pop("preset", "")
    if preset and preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; presets: {', '.join(PRESETS)}")
    given = {**PRESETS.get(preset, {}), **given}
    fields = {f.name: f.type for f in dataclasses.fields(TableMapping)}
    for name, value in given.items():
        if name not in fields:
            raise UserError(f"a mapping has no field {name!r}{near(name, fields)}")
        if str(fields[name]).startswith("dict"):
            pairs = {v: v for v in value} if isinstance(value, list) else value
            if not isinstance(pairs, dict) or not all(isinstance(v, str) for v in pairs.values()):
                raise UserError(f"{name} must be a list of columns or a table of names")
            given[name] = pairs
        elif not isinstance(value, bool if fields[name] == "bool" else str):
            raise UserError(f"{name} = {value!r} is not a {fields[name]}")
    if missing := [name for name in ("factors", "test") if name not in given]:
        raise UserError(f"a mapping needs {' and '.join(missing)}")
    return TableMapping(**given)


def near(name: str, known: Iterable[str]) -> str:
    """Names that may have been meant, as in "; near: 'val_loss'", or all known names if none is similar."""
    names = [str(k) for k in known]
    lower = {k.lower(): k for k in names}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    if near:
        return f"; near: {', '.join(repr(k) for k in near)}"
    return f"; there are {' '.join(', '.join(names[:12]).split())}{' …' * (len(names) > 12)}"
