"""Ledgers of trials from which studies are simulated: what every configuration of every cell scored.

A ledger holds arrays (cells x configurations x runs). A simulated study draws its configurations in random
order without replacement, and the runs of a configuration with replacement, so that the mean over all its
runs is the truth about it.

medmnist: 20,157 published fine-tuning trials (docs/pages/medmnist.md), cells are sources. No configuration
was repeated there. Runs that differ in nothing but the weight decay (five values up to 1e-3) stand for
repeats.
classifiers: scikit-learn's classifiers on its data sets, made here, with real repeats: one seed fixes
training, validation and test examples for all cells.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CONFIGURATIONS, SEEDS = 20, 16
"""Of each cell of the classifiers."""
MOST_REPEATS = 100


@dataclass(frozen=True)
class World:
    """One simulated study: what its trials and repeats would give.

    Attributes:
        val, seconds: (cells x trials) of the tuning trials.
        ledger: where they are from.
        configurations: (cells x trials) position of each trial's configuration in the ledger.
        runs: (cells x seeds) which run of a configuration is its repeat on the n-th seed.
    """

    val: np.ndarray
    seconds: np.ndarray
    ledger: Ledger
    configurations: np.ndarray
    runs: np.ndarray

    def repeats(self, cell: int, trial: int) -> tuple[np.ndarray, np.ndarray]:
        """Validation scores and seconds of the repeats of a trial's configuration, seed by seed."""
        place = cell, self.configurations[cell, trial], self.runs[cell]
        return self.ledger.val[place], self.ledger.seconds[place]

    def truth(self, cell: int, trial: int) -> tuple[float, float]:
        """Mean validation and test score of a trial's configuration."""
        place = cell, self.configurations[cell, trial]
        return float(self.ledger.val[place].mean()), float(self.ledger.test[place].mean())


@dataclass(frozen=True)
class Ledger:
    """The runs of all configurations of all cells of one target.

    Attributes:
        val, test, seconds: (cells x configurations x runs).
        paired: whether the r-th run of all cells is on the same seed.
    """

    val: np.ndarray
    test: np.ndarray
    seconds: np.ndarray
    paired: bool

    def draw(self, random: np.random.Generator, shared: bool = False) -> World:
        """A simulated study.

        Args:
            random: source of all draws.
            shared: whether the i-th trial of every cell has the same configuration.
        """
        cells, count, runs = self.val.shape
        every = count if self.paired else count * runs
        orders = [random.permutation(every) for _ in range(1 if shared else cells)]
        drawn = np.broadcast_to(orders, (cells, every))
        if self.paired:
            order, run = drawn, np.broadcast_to(random.integers(runs), drawn.shape)
            again = np.broadcast_to(random.integers(runs, size=MOST_REPEATS), (cells, MOST_REPEATS))
        else:  # every run is a trial of its own
            order, run = drawn // runs, drawn % runs
            again = random.integers(runs, size=(cells, MOST_REPEATS))
        place = np.arange(cells)[:, None], order, run
        return World(self.val[place], self.seconds[place], self, order, again)

    @property
    def best_test(self) -> np.ndarray:
        """Of each cell the mean test score of the configuration with the best mean on validation."""
        best = self.val.mean(axis=2).argmax(axis=1)
        found: np.ndarray = self.test.mean(axis=2)[np.arange(len(best)), best]
        return found


def medmnist(path: Path) -> dict[str, Ledger]:
    """The ledgers of the twelve targets, from the published table of trials."""
    table = pd.read_csv(path)
    return {
        str(target): Ledger(
            _array(own, "val_auc"), _array(own, "test_auc"), 60 * _array(own, "minutes"), False
        )
        for target, own in table.groupby("target")
    }


def _array(table: pd.DataFrame, column: str) -> np.ndarray:
    """(sources x configurations x weight decays); the few missing runs are the mean of the others."""
    wide = table.pivot_table(
        index=["source", "lr", "momentum", "batch_size"], columns="wd", values=column
    )
    wide = wide.T.fillna(wide.mean(axis=1)).T
    found: np.ndarray = wide.to_numpy().reshape(table["source"].nunique(), -1, wide.shape[1])
    return found


# --- classifiers -------------------------------------------------------------------------------------


def classifiers(file: Path) -> dict[str, Ledger]:
    """The ledgers of eight small problems; they are made once, in a few minutes, and kept in a file."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = ["target", "cell", "configuration", "seed", "val", "test", "seconds"]
        pd.DataFrame(_runs(), columns=columns).to_csv(file, index=False)
    table = pd.read_csv(file)
    found = {}
    for target, own in table.groupby("target", sort=False):
        cells = list(dict.fromkeys(own["cell"]))
        wide = own.set_index(["cell", "configuration", "seed"]).unstack().loc[cells]
        shape = len(cells), -1, own["seed"].nunique()
        val, test, seconds = (wide[n].to_numpy().reshape(shape) for n in ("val", "test", "seconds"))
        typical = np.broadcast_to(np.median(seconds, axis=2, keepdims=True), seconds.shape)
        found[str(target)] = Ledger(val, test, typical, True)
    return found


def _runs() -> Iterator[tuple[object, ...]]:
    warnings.simplefilter("ignore")  # some configurations do not converge; that is what they score
    for target, (x, y, train, val) in _problems().items():
        for seed in range(SEEDS):
            random = np.random.default_rng(seed)
            parts: tuple[list[int], ...] = ([], [], [])
            for label in np.unique(y):
                own = random.permutation(np.flatnonzero(y == label))
                for part, rows in zip(parts, np.split(own, [train, train + val]), strict=True):
                    part.extend(rows.tolist())
            for cell, make in _models().items():
                for number in range(CONFIGURATIONS):
                    model = make(np.random.default_rng([number, len(cell)]))
                    began = time.perf_counter()
                    model.fit(x[parts[0]], y[parts[0]])
                    scores = [model.score(x[part], y[part]) for part in parts[1:]]
                    yield target, cell, number, seed, *scores, time.perf_counter() - began


def _problems() -> dict[str, tuple[np.ndarray, np.ndarray, int, int]]:
    """Name -> examples, labels, training and validation examples per class."""
    from sklearn.datasets import load_breast_cancer, load_digits, load_wine

    x, y = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).normal(size=x.shape)
    low, high, few = y < 5, y >= 5, np.isin(y, (3, 8, 9))
    return {
        "digits, 30 per class": (x, y, 30, 20),
        "digits, 10 per class": (x, y, 10, 10),
        "digits, little noise": (x + 6 * noise, y, 30, 30),
        "digits 0 to 4, noise": ((x + 12 * noise)[low], y[low], 30, 30),
        "digits 5 to 9, noise": ((x + 8 * noise)[high], y[high], 20, 20),
        "digits 3, 8, 9, noise": ((x + 10 * noise)[few], y[few], 30, 30),
        "breast cancer": (*load_breast_cancer(return_X_y=True), 40, 40),
        "wine": (*load_wine(return_X_y=True), 12, 12),
    }


def _models() -> dict[str, Callable[[np.random.Generator], Any]]:
    """Ten kinds of classifiers -> a configuration drawn at random."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    def log(random: np.random.Generator, low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    def scaled(model: object) -> Any:
        return make_pipeline(StandardScaler(), model)

    return {
        "logistic": lambda r: scaled(LogisticRegression(C=log(r, 1e-4, 1e3), max_iter=60)),
        "linear SVM": lambda r: scaled(SVC(kernel="linear", C=log(r, 1e-4, 1e2))),
        "RBF SVM": lambda r: scaled(SVC(C=log(r, 1e-2, 1e3), gamma=log(r, 1e-4, 1))),
        "polynomial SVM": lambda r: scaled(
            SVC(kernel="poly", degree=int(r.integers(2, 5)), C=log(r, 1e-2, 1e3))
        ),
        "kNN": lambda r: scaled(KNeighborsClassifier(int(r.integers(1, 20)))),
        "tree": lambda r: DecisionTreeClassifier(max_depth=int(r.integers(2, 12)), random_state=0),
        "extra trees": lambda r: ExtraTreesClassifier(
            int(r.integers(10, 60)), max_features=log(r, 0.05, 1), random_state=0
        ),
        "LDA": lambda r: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=r.uniform()),
        "naive Bayes": lambda r: GaussianNB(var_smoothing=log(r, 1e-10, 1)),
        "MLP": lambda r: scaled(
            MLPClassifier(
                (int(r.integers(8, 64)),),
                alpha=log(r, 1e-5, 10),
                learning_rate_init=log(r, 1e-4, 0.1),
                max_iter=25,
                random_state=0,
            )
        ),
    }
