"""Run a recorded trial again from its MLflow run alone, and compare the results digit by digit."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.core.errors import UnknownName, UserError, first_line
from harness.core.html import as_table
from harness.core.spec import TrialSpec
from harness.core.study_file import study_sha256
from harness.core.versions import COMPUTING
from harness.data.cached import Cache
from harness.tracking.runs import Recorded
from harness.training.device import Device, resolve_device
from harness.training.loop import Fit, start
from harness.training.provenance import environment, input_tags, inputs_of

TOLERANCE = 0.05
"""Elsewhere: relative, of a loss; absolute, of an accuracy. So far were losses of emulated processors apart
after 80 steps of AdamW; after 2 steps it is 1e-5 (tests/test_processors.py)."""
COMPUTES = (
    *("device", "threads", "env.hardware", "env.cpu_capability", "env.platform"),
    *("env.variables", "env.arithmetic", "env.cuda"),
    *(f"env.{package}" for package in COMPUTING),
)
"""Tags without whose agreement equal bits are not promised."""
READ = ("sha256.images", "sha256.weights")
"""Tags that say what a trial is made from: of other images it is another trial, however near."""
STUDY_FILE = "sha256.study_file"
"""Of the file that defines strategy, backbone or target; its words, such as its answer, may change."""
PER_EPOCH = ("train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Comparison:
    """One metric of one epoch (or, for the test images, of the end), recorded and replayed."""

    name: str
    epoch: int
    recorded: float
    replayed: float

    @property
    def equal(self) -> bool:
        """Bit for bit."""
        return self.recorded == self.replayed

    @property
    def error(self) -> float:
        """Relative difference of a loss, difference of an accuracy."""
        off = abs(self.recorded - self.replayed)
        largest = max(abs(self.recorded), abs(self.replayed))
        return off / largest if "loss" in self.name and largest else off

    @property
    def digits(self) -> float:
        """Leading decimal digits that agree; -1 where one of the two is missing."""
        if math.isnan(self.error):
            return -1.0
        return math.inf if self.equal else max(0.0, -math.log10(self.error))

    @property
    def description(self) -> str:
        """How well they agree."""
        if self.equal:
            return "bitwise equal"
        return "one is missing" if self.digits < 0 else f"{self.digits:.1f} digits"


@dataclass(frozen=True)
class Replayed:
    """A trial run again; a table in a notebook.

    Attributes:
        run_id: of the recorded trial.
        agreed: bitwise where nothing that computes differs, within a tolerance elsewhere; never where images
            or weights are not those it was made from.
        comparisons: every value of every epoch, then those of the test images; empty where it `ended`.
        differs: what is not as it was, one line each.
        ended: why it gave nothing to compare; else "".
    """

    run_id: str
    agreed: bool
    comparisons: tuple[Comparison, ...] = ()
    differs: tuple[str, ...] = ()
    ended: str = ""

    def _repr_html_(self) -> str:
        word = (
            f"ended with {self.ended}" if self.ended else "agreed" if self.agreed else "DISAGREED"
        )
        rows = [(c.name, c.epoch, c.recorded, c.replayed, c.description) for c in self.comparisons]
        columns = ("metric", "epoch", "recorded", "replayed", "")
        return as_table(f"run {self.run_id}: {word}", columns, rows)


def replay_run(
    recorded: Recorded,
    device: str | None,
    space: Path | None,
    cache_dir: Path | None,
    budget: int,
    target: str | None,
) -> Replayed:
    """Run a recorded trial again, and print how well it agrees.

    Args:
        recorded: a complete trial.
        device: None is the recorded one if it is there.
        space: study file that defines its strategy, backbone or target; None if none does.
        cache_dir: outputs of frozen layers are read from here; None computes them again.
        budget: bytes kept there; 0 keeps nothing.
        target: where its images are now; None takes the recorded place.

    Raises:
        UserError: on bad input.
    """
    run_id, spec = recorded.run_id, spec_of(recorded)
    spec = replace(spec, target=target or spec.target)
    where = _device(device, recorded)
    now = {tag: "absent" for tag in COMPUTES if tag in recorded.tags} | environment(where)
    now |= input_tags(inputs_of(spec.target, spec.backbone, spec.source))
    if space is not None:
        now[STUDY_FILE] = study_sha256(space)
    changed = differences(recorded, now)
    # A folder of its own: what an earlier trial kept would not be computed again.
    with tempfile.TemporaryDirectory(prefix="replay-") as own:
        fit = start(spec, where, Cache((cache_dir or Path(own)) if budget else None, budget))
        print(f"run {run_id} of study {recorded.experiment}: {recorded.name}")
        for line in changed.values():
            print(f"differs: {line}")
        known = (*COMPUTES, *READ, STUDY_FILE)
        if unknown := [t for t in known if t in now and t not in recorded.tags]:
            print(f"not recorded, so not compared: {', '.join(unknown)}")
        replayed = run_again(fit, test=recorded.tags["phase"] == "repeat")
    if isinstance(replayed, str):
        print(f"DISAGREED: recorded as complete, it now ends with {replayed}")
        return Replayed(run_id, False, differs=tuple(changed.values()), ended=replayed)
    found, notes = replayed
    ways = differences(recorded, {k: v for k, v in notes.items() if k == "prefix"})
    for line in ways.values():
        print(f"differs: {line} (see --cache-budget)")
    elsewhere = bool(ways or changed.keys() & COMPUTES)
    values = list(compared(recorded, found))
    agreed = _verdict(values, elsewhere, [t for t in (*READ, STUDY_FILE) if t in changed])
    return Replayed(run_id, agreed, tuple(values), (*changed.values(), *ways.values()))


def spec_of(recorded: Recorded) -> TrialSpec:
    """The trial that a run records.

    Raises:
        UserError: if it is no trial, did not complete, or its parameters make none.
        UnknownName: if it is of a strategy that is not known.
    """
    run = f"run {recorded.run_id!r} ({recorded.name})"
    if recorded.tags.get("phase") not in ("tune", "repeat"):
        raise UserError(
            f"{run} is no trial of a study; choose one with the tag phase: tune or repeat"
        )
    outcome = recorded.tags.get("outcome", "unfinished")
    if outcome != "complete":
        raise UserError(f"{run} is {outcome}; only a complete trial can be compared")
    try:
        return TrialSpec.from_flat(recorded.params)
    except (UserError, ValueError, TypeError, SyntaxError) as error:
        kind = UnknownName if isinstance(error, UnknownName) else UserError
        raise kind(f"the parameters of {run} make no trial here: {error}") from error


def _device(asked: str | None, recorded: Recorded) -> Device:
    """The one asked for, else the recorded one, else what there is; as many threads as then."""
    if (threads := recorded.tags.get("threads", "")).isdecimal() and int(threads):
        torch.set_num_threads(int(threads))  # else sums would be made in another order
    if asked is not None:
        return resolve_device(asked)
    try:
        return resolve_device(recorded.tags.get("device", "auto").partition(":")[0])
    except UserError:
        return resolve_device("auto")


def differences(recorded: Recorded, now: Mapping[str, str]) -> dict[str, str]:
    """Tag -> what it was and what it is, for those recorded that are not as they were."""
    return {
        tag: f"{tag} was {recorded.tags[tag]}, is {value}"
        for tag, value in now.items()
        if tag in recorded.tags and recorded.tags[tag] != value
    }


Values = dict[str, dict[int, float]]
"""Metric -> epoch -> value; those of the test images at epoch 0, as recorded in MLflow."""


def run_again(fit: Fit, test: bool) -> tuple[Values, Mapping[str, str]] | str:
    """What the trial gives now, and its notes on what was kept of frozen groups; or why it gives nothing."""
    found: Values = {}
    try:
        for epoch in fit:
            for name, value in {"train_loss": epoch.train_loss, **epoch.validation}.items():
                found.setdefault(name, {})[epoch.epoch] = value
        result = fit.finish(test)
    except UserError:
        raise
    except Exception as error:  # diverged, out of memory, a strategy of the user's that raises, ...
        return f"{type(error).__name__}: {first_line(error)}"
    tested = {k: {0: v} for k, v in result.metrics.items() if k.startswith("test_")}
    return found | tested, result.notes


def compared(
    recorded: Recorded, replayed: Mapping[str, Mapping[int, float]]
) -> Iterator[Comparison]:
    """Every value that was recorded or replayed; NaN where one of the two lacks it."""
    names = [n for n in recorded.history if n.startswith(("val_", "test_"))]
    for name in dict.fromkeys((*PER_EPOCH, *names, *replayed)):
        then, now = recorded.history.get(name, {}), replayed.get(name, {})
        for epoch in sorted({*then, *now}):
            yield Comparison(name, epoch, then.get(epoch, math.nan), now.get(epoch, math.nan))


def _verdict(found: list[Comparison], elsewhere: bool, other: list[str]) -> bool:
    """Print a line per metric and one in all; says whether it agreed.

    Args:
        found: what was compared.
        elsewhere: whether something that computes is not what it was.
        other: tags of what the trial is made from that are not what they were.
    """
    for name in dict.fromkeys(c.name for c in found):
        values = [c for c in found if c.name == name]
        last, same = values[-1], sum(c.equal for c in values)
        line = f"{name}: recorded {last.recorded!r}, replayed {last.replayed!r}: {last.description}"
        if len(values) > 1 and same < len(values):
            worst = min(values, key=lambda c: c.digits)
            line += f"; epoch {worst.epoch}: {worst.description}"
        by_epoch = not name.startswith("test_")
        print(f"{line} ({same} of {len(values)} epochs bitwise)" if by_epoch else line)
    equal, close = all(c.equal for c in found), all(c.error <= TOLERANCE for c in found)
    near = "bitwise equal" if equal else f"within {TOLERANCE:g}" if close else ""
    if set(READ) & set(other) or (other and not equal and not (elsewhere and close)):
        but = f"; its values are {near} all the same" if near else ""
        print(f"DISAGREED: it was made from something else ({', '.join(other)}){but}")
        return False
    but = "; the study file is not as it was" if other else ""
    if equal:
        print(f"AGREED: bitwise equal{but}")
        return True
    if elsewhere and close:
        print(f"AGREED within {TOLERANCE:g} (losses relative, accuracies absolute){but}")
        print("equal bits are promised only where nothing named above differs")
        return True
    why = f"{TOLERANCE:g} is allowed" if elsewhere else "bitwise equal is promised here"
    print(f"DISAGREED: {why}")
    return False
