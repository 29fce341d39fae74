"""Run a recorded trial again from its MLflow run alone, and compare the results value by value."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
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
"""Largest accepted difference if the hardware, a version or a setting differs: relative for losses, absolute
for accuracies. The largest one observed between emulated processors was of this size after 80 steps of AdamW;
after 2 steps it was 1e-5 (tests/test_processors.py)."""
COMPUTES = (
    *("device", "threads", "env.hardware", "env.cpu_capability", "env.platform"),
    *("env.variables", "env.arithmetic", "env.cuda"),
    *(f"env.{package}" for package in COMPUTING),
)
"""Tags that must all agree for results to be bitwise equal."""
READ = ("sha256.images", "sha256.weights")
"""Tags with the hashes of the inputs. With other inputs it is another trial, however close its values are."""
STUDY_FILE = "sha256.study_file"
"""Tag with the hash of the file that defines the strategy, backbone or target. It may change without an
effect on the trial, for example in its docstring."""
PER_EPOCH = ("train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Comparison:
    """A recorded value and the replayed one.

    Attributes:
        name: name of the metric.
        epoch: number of the epoch; 0 for metrics of the test examples.
        recorded, replayed: the values; NaN if one is missing.
    """

    name: str
    epoch: int
    recorded: float
    replayed: float

    @property
    def equal(self) -> bool:
        """Whether the values are bitwise equal."""
        return self.recorded == self.replayed

    @property
    def error(self) -> float:
        """Relative difference of a loss, absolute difference of any other metric."""
        error = abs(self.recorded - self.replayed)
        largest = max(abs(self.recorded), abs(self.replayed))
        return error / largest if "loss" in self.name and largest else error

    @property
    def digits(self) -> float:
        """Number of leading decimal digits that agree; -1 if a value is missing."""
        if math.isnan(self.error):
            return -1.0
        return math.inf if self.equal else max(0.0, -math.log10(self.error))

    @property
    def description(self) -> str:
        """How well the values agree."""
        if self.equal:
            return "bitwise equal"
        return "one is missing" if self.digits < 0 else f"{self.digits:.1f} digits"


@dataclass(frozen=True)
class Replayed:
    """Result of a replay; a table in a notebook.

    Attributes:
        run_id: run of the recorded trial.
        agreed: whether the values are bitwise equal or, if the hardware, a version or a setting differs,
            within the tolerance; False if examples or weights have changed.
        comparisons: every value of every epoch, then those of the test examples; empty if the trial failed.
        differs: differences of inputs, versions and settings, one line each.
        ended: why the trial failed; "" if it did not.
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
        recorded: the run of a complete trial.
        device: name of the device; None is the recorded one if it is available.
        space: study file that defines the strategy, backbone or target; None if no study file is needed.
        cache_dir: cache from which outputs of frozen layers are read; None computes them again.
        budget: size limit of the cache in bytes; 0 caches nothing.
        target: where the examples are now; None is the recorded place.

    Raises:
        UserError: on bad input.
    """
    run_id, spec = recorded.run_id, spec_of(recorded)
    spec = replace(spec, target=target or spec.target)
    used = _device(device, recorded)
    now = {tag: "absent" for tag in COMPUTES if tag in recorded.tags} | environment(used)
    now |= input_tags(inputs_of(spec.target, spec.backbone, spec.source))
    if space is not None:
        now[STUDY_FILE] = study_sha256(space)
    changed = differences(recorded, now)
    # The default is a new folder, because cached outputs would not be computed again.
    with tempfile.TemporaryDirectory(prefix="replay-") as empty:
        fit = start(spec, used, Cache((cache_dir or Path(empty)) if budget else None, budget))
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
    cached = differences(recorded, {k: v for k, v in notes.items() if k == "prefix"})
    for line in cached.values():
        print(f"differs: {line} (see --cache-budget)")
    values = tuple(compared(recorded, found))
    print_values(values)
    agreed, verdict = judge(values, changed.keys() | cached.keys())
    print(verdict)
    return Replayed(run_id, agreed, values, (*changed.values(), *cached.values()))


def spec_of(recorded: Recorded) -> TrialSpec:
    """The spec of the trial of a run.

    Raises:
        UserError: if the run is not a complete trial, or its parameters are invalid.
        UnknownName: if the strategy, backbone or target is unknown.
    """
    run = f"run {recorded.run_id!r} ({recorded.name})"
    if recorded.tags.get("phase") not in ("tune", "repeat"):
        raise UserError(
            f"{run} is not a trial of a study; choose one with the tag phase: tune or repeat"
        )
    outcome = recorded.tags.get("outcome", "unfinished")
    if outcome != "complete":
        raise UserError(f"{run} is {outcome}; only a complete trial can be compared")
    try:
        return TrialSpec.from_flat(recorded.params)
    except (UserError, ValueError, TypeError, SyntaxError) as error:
        kind = UnknownName if isinstance(error, UnknownName) else UserError
        raise kind(f"the parameters of {run} do not make a valid trial here: {error}") from error


def _device(name: str | None, recorded: Recorded) -> Device:
    """The named device, or else the recorded one if it is available, with the recorded number of threads."""
    if (threads := recorded.tags.get("threads", "")).isdecimal() and int(threads):
        torch.set_num_threads(int(threads))  # it decides the order of sums
    if name is not None:
        return resolve_device(name)
    try:
        return resolve_device(recorded.tags.get("device", "auto").partition(":")[0])
    except UserError:
        return resolve_device("auto")


def differences(recorded: Recorded, now: Mapping[str, str]) -> dict[str, str]:
    """Describe each recorded tag that has another value now, by tag."""
    return {
        tag: f"{tag} was {recorded.tags[tag]}, is {value}"
        for tag, value in now.items()
        if tag in recorded.tags and recorded.tags[tag] != value
    }


Values = dict[str, dict[int, float]]
"""Metric -> epoch -> value; those of the test examples at epoch 0, as in MLflow."""


def run_again(fit: Fit, test: bool) -> tuple[Values, Mapping[str, str]] | str:
    """The values of the trial and its notes; if it fails, the reason."""
    found: Values = {}
    try:
        for epoch in fit:
            for name, value in {"train_loss": epoch.train_loss, **epoch.validation}.items():
                found.setdefault(name, {})[epoch.epoch] = value
        result = fit.finish(test)
    except UserError:
        raise
    except Exception as error:  # it diverged, ran out of memory, ...
        return f"{type(error).__name__}: {first_line(error)}"
    tested = {k: {0: v} for k, v in result.metrics.items() if k.startswith("test_")}
    return found | tested, result.notes


def compared(
    recorded: Recorded, replayed: Mapping[str, Mapping[int, float]]
) -> Iterator[Comparison]:
    """A comparison for every value that was recorded or replayed."""
    names = [n for n in recorded.history if n.startswith(("val_", "test_"))]
    for name in dict.fromkeys((*PER_EPOCH, *names, *replayed)):
        then, now = recorded.history.get(name, {}), replayed.get(name, {})
        for epoch in sorted({*then, *now}):
            yield Comparison(name, epoch, then.get(epoch, math.nan), now.get(epoch, math.nan))


def print_values(values: Sequence[Comparison]) -> None:
    """Print one line per metric: its last values, and the epoch in which the values differ most."""
    for name in dict.fromkeys(c.name for c in values):
        mine = [c for c in values if c.name == name]
        last, same = mine[-1], sum(c.equal for c in mine)
        line = f"{name}: recorded {last.recorded!r}, replayed {last.replayed!r}: {last.description}"
        if len(mine) > 1 and same < len(mine):
            worst = min(mine, key=lambda c: c.digits)
            line += f"; epoch {worst.epoch}: {worst.description}"
        if not name.startswith("test_"):
            line += f" ({same} of {len(mine)} epochs bitwise)"
        print(line)


def judge(values: Sequence[Comparison], changed: Collection[str]) -> tuple[bool, str]:
    """Whether the values agree, and the explanation.

    Args:
        values: the comparisons.
        changed: tags that have another value now than when the trial was recorded.
    """
    equal = all(c.equal for c in values)
    close = all(c.error <= TOLERANCE for c in values)
    tolerant = not set(changed).isdisjoint({*COMPUTES, "prefix"})
    agreed = equal or (tolerant and close)
    inputs = [tag for tag in (*READ, STUDY_FILE) if tag in changed]
    if not set(READ).isdisjoint(inputs) or (inputs and not agreed):
        near = "bitwise equal" if equal else f"within {TOLERANCE:g}" if close else ""
        but = f"; nevertheless its values are {near}" if near else ""
        return False, f"DISAGREED: it is another trial now ({', '.join(inputs)} changed){but}"
    note = "; the study file has changed" if inputs else ""
    if equal:
        return True, f"AGREED: bitwise equal{note}"
    if agreed:
        return True, (
            f"AGREED within {TOLERANCE:g} (losses relative, accuracies absolute){note}\n"
            "values are only bitwise equal if hardware, versions and settings are the recorded ones"
        )
    if tolerant:
        return False, f"DISAGREED: values may differ by at most {TOLERANCE:g}"
    return False, "DISAGREED: values must be bitwise equal, because no setting has changed"
