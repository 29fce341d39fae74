"""Cells, storage and the runner: what a study is made of. Optuna speaks only of errors here."""

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
