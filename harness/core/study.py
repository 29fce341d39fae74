"""Definition of a study: what is compared, and with how much effort."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from harness.core.errors import UserError, counted, message_of, require_count
from harness.core.html import as_table
from harness.core.selection import Selectable
from harness.core.spec import TrialSpec, require_choices
from harness.core.strategies import Strategy, names
from harness.core.units import Seconds

if TYPE_CHECKING:
    import optuna

Phase = Literal["tune", "repeat"]
Cell = Mapping[str, str]
"""One value of each compared factor, e.g. {"strategy": "linear probe"}."""

Arms = Mapping[str, "Callable[[optuna.trial.BaseTrial], Strategy]"]
"""Label of a strategy -> function that draws the strategy for one trial."""

RESERVED_FACTORS = frozenset(
    "study cell phase index seed outcome reason run_id attempt chosen owner device threads superseded "
    "start_time optuna_trial size epoch example predicted probability failed tuned n mean sd low high "
    "train_loss val_loss test_loss val_accuracy test_accuracy val_score test_score "
    "train_seconds marginal_seconds "
    "total_seconds prefix trial_key resumed images_per_class class_names unfreezing kind ranges "
    "trained_depth trainable_share study_file group fold folds".split()
)
"""Names of tags and columns that the harness uses itself; a factor of the same name would hide one of
them."""
SAFE_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.][A-Za-z0-9_.-]{0,99}")
"""Pattern of allowed names. Names are used as folders and database keys and in filters, so ".." and quotes
are not allowed, and a name has at most 100 characters."""
MAX_EFFORT = 100_000
"""Largest number of trials or repeats per cell; a larger one is probably a typing error."""


@dataclass(frozen=True)
class Study:
    """A study: what is compared, what is tuned inside each cell, and with how much effort.

    Attributes:
        compare: factor -> its values; the cells are their product. Labels are short and unique.
        space: (trial, **cell) -> TrialSpec; the cell is given, Optuna draws the rest.
        trials: number of configurations tried per cell, the same for every cell.
        repeats: number of new seeds with which the chosen configuration of each cell is run and tested; with
            k-fold a multiple of `folds`.
        baseline: values of one or more factors; the other cells are compared with the cells that have them.
        sampler: "random" (i.i.d., needed for budget curves), "qmc" (scrambled Sobol points, spread evenly) or
            "tpe" (uses finished trials, so that its results depend on their order).
        pruner: "none" or "median" (a pruned trial has no comparable cost).
        seed: seed from which every random stream of the study is derived.
        name: name of the study; if empty, that of its file.
        resampling: "split" (a run has one validation part, drawn by its seed) or "kfold", for few examples:
            the examples that are not test examples are divided into `folds` folds, each configuration is
            scored on every fold, and the one with the best mean is chosen. The repeats are runs on the folds
            of new divisions, so cells are chosen by repeated k-fold cross-validation. Intervals then allow
            for runs that share examples.
        folds: number of folds; without effect with "split".
        metric: metric on validation by which configurations and cells are chosen: "accuracy",
            "balanced_accuracy" (mean recall of the classes), "macro_f1", "auroc" (of each class against the
            others, mean over the classes) or "log_loss". The report compares its test values, but
            with "log_loss" those of accuracy.
        budget: time for all trials, such as "20m". The cells then race (see `harness.core.race`): those that
            look worse get fewer trials, and `trials` and `repeats` have no effect. None gives every cell the
            same number of trials.
    """

    compare: Mapping[str, Iterable[str]]
    space: Callable[..., TrialSpec]
    trials: int = 16
    repeats: int = 5
    baseline: Cell = field(default_factory=dict)
    sampler: Literal["random", "qmc", "tpe"] = "random"
    pruner: Literal["none", "median"] = "none"
    seed: int = 0
    name: str = ""
    resampling: Literal["split", "kfold"] = "split"
    folds: int = 5
    metric: Selectable = "accuracy"
    budget: Seconds | str | None = None

    @property
    def seconds(self) -> float | None:
        """The budget in seconds."""
        return None if self.budget is None else float(Seconds(self.budget))

    @property
    def fold_count(self) -> int:
        """Number of folds that a configuration is scored on; 1 with a single split."""
        return self.folds if self.resampling == "kfold" else 1

    @property
    def tuning_runs(self) -> int:
        """Number of tuning runs of a cell among which its configuration is chosen; with a budget all."""
        return self.trials * self.fold_count if self.budget is None else sys.maxsize

    @property
    def runs_per_cell(self) -> int:
        """Number of runs of a cell: tuning and repeats."""
        return self.trials * self.fold_count + self.repeats

    @property
    def effort(self) -> str:
        """The runs of a cell, as text."""
        if self.budget is not None:
            return f"its share of {self.budget}"
        folds = f" x {self.folds} folds" if self.resampling == "kfold" else ""
        return f"{counted(self.trials, 'trial')}{folds} + {counted(self.repeats, 'repeat')}"

    def _repr_html_(self) -> str:
        cells = counted(len(self.cells()), "cell")
        caption = f"study {self.name}: {cells} x ({self.effort}), {self.sampler} sampling"
        rows = [(f, ", ".join(v), self.baseline.get(f, "")) for f, v in self.compare.items()]
        return as_table(caption, ("factor", "compared", "baseline"), rows)

    def __post_init__(self) -> None:
        if not self.compare or not all(list(values) for values in self.compare.values()):
            raise UserError("Study: compare needs at least one factor with at least one value")
        for factor, values in self.compare.items():
            bad = [v for v in values if not isinstance(v, str) or not v or " | " in v]
            if len(set(values)) < len(list(values)):
                twice = next(v for v in values if list(values).count(v) > 1)
                raise UserError(f"Study: compare[{factor!r}] lists {twice!r} twice")
            if bad or isinstance(values, str):
                raise UserError(
                    f"Study: compare[{factor!r}] must list names without ' | ', got "
                    f"{bad[0] if bad else values!r} (write a number as '5' and use int() in space)"
                )
            if (
                not SAFE_NAME.fullmatch(factor)
                or factor in RESERVED_FACTORS
                or factor.startswith(("mlflow.", "param.", "env.", "sha256."))
            ):
                raise UserError(
                    f"Study: factor {factor!r} must be letters, digits, '_', '.', '-' "
                    f"and not one of {', '.join(sorted(RESERVED_FACTORS))}"
                )
        if not callable(self.space):
            raise UserError("Study: space must be a function (trial, **cell) -> TrialSpec")
        for name, least in (("trials", 1), ("repeats", 0)):
            value = getattr(self, name)
            require_count(f"Study: {name}", value, least)
            if value > MAX_EFFORT:
                raise UserError(f"Study: {name} must be at most {MAX_EFFORT:,}, got {value:,}")
        require_choices(self)
        if self.resampling == "kfold":
            _require_folds(self)
        if self.budget is not None:
            _require_race(self)
        for factor, label in self.baseline.items():
            if label not in list(self.compare.get(factor, ())):
                raise UserError(
                    f"Study: baseline {factor}={label!r} is not among the compared values"
                )
        if self.name and not SAFE_NAME.fullmatch(self.name):
            raise UserError(f"Study: name {self.name!r} must be letters, digits, '_', '.', '-'")

    def cells(self) -> list[dict[str, str]]:
        """Every combination of one value per factor, in the order written."""
        return cells_of(self.compare)


def _require_folds(study: Study) -> None:
    """Refuse settings that do not work with k-fold resampling."""
    folds, repeats = study.folds, study.repeats
    require_count("Study: folds", folds, 2)
    if study.sampler == "tpe" or study.pruner != "none":
        raise UserError(
            f"Study: resampling 'kfold' works with sampler 'random' or 'qmc' and pruner 'none', got "
            f"{study.sampler!r} and {study.pruner!r}, which would judge a configuration by one fold"
        )
    if repeats % folds:
        more = folds * math.ceil(repeats / folds)
        raise UserError(
            f"Study: with resampling 'kfold' repeats must be a multiple of the {folds} folds, e.g. {more}, "
            f"got {repeats}; resampling 'split' takes any number"
        )


def _require_race(study: Study) -> None:
    """Refuse settings that do not work with a time budget."""
    try:
        budget = Seconds(study.budget or "")
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"Study: budget: {error}") from error
    if not 0 < budget < math.inf:
        raise UserError(f"Study: budget must be a time above 0, got {study.budget!r}")
    object.__setattr__(study, "budget", budget)
    if study.resampling == "kfold":
        raise UserError(
            "Study: a budget works with resampling 'split' only; with 'kfold' give trials and repeats (for a "
            f"quick first look --trials 2 --repeats {study.folds})"
        )
    if not study.repeats:
        raise UserError(
            "Study: with a budget the cells are compared by repeats, and repeats=0 asks for none; leave "
            "repeats out, or the budget"
        )
    if len(study.cells()) < 2:
        raise UserError("Study: a budget is shared by the cells, and this study has only one")


def cells_of(factors: Mapping[str, Iterable[str]]) -> list[dict[str, str]]:
    """Every combination of one value per factor, in the order written."""
    return [dict(zip(factors, v, strict=True)) for v in itertools.product(*factors.values())]


def cell_label(cell: Cell) -> str:
    """The name of a cell: its values joined by " | "."""
    return " | ".join(cell.values())


def unknown_argument(error: BaseException) -> str:
    """A hint if the error is a misspelt field of Study, TrialSpec or a strategy; "" for any other error."""
    found = re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message_of(error)
    )
    kind = {**names(), "Study": Study, "TrialSpec": TrialSpec}.get(found[1]) if found else None
    if found is None or kind is None:
        return ""
    known = [f.name for f in dataclasses.fields(kind)]
    near = difflib.get_close_matches(found[2], known, n=3)
    return f"; did you mean {', '.join(near)}?" if near else f"; it has {', '.join(known)}"
