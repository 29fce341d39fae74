"""What if the database server is restarted in the middle of a study? Every call waits for it, for a while.

A call is tried again as a whole, because a restart breaks transactions, not only connections. It stands in
Optuna's storage, below all that search, leases and reports do with it, so nobody else has to know.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from time import sleep as pause
from typing import Any, TypeVar

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from harness.errors import UserError, first_line, without_password

AWAY_SECONDS = 240.0
"""How long a server may be away: less than a lease lasts unrenewed, so that none is taken over meanwhile."""
LONGEST_PAUSE_SECONDS = 2.0
OPENINGS = 20
"""Processes that make the tables at the same moment get into each other's way; each time one is done."""
TABLES_BEING_MADE = "already exists"
NOT_YET_OPEN = ("database system is starting up", "database system is shutting down")
"""PostgreSQL's words; its driver gives no code for a connection that was refused."""

Result = TypeVar("Result")

CALLS = (
    "create_new_study",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_all_trials",
    "_get_trials",
)
"""Methods of RDBStorage that Optuna's own front calls. To repeat one that got through after all does no harm:
values are written as they are, a study is looked up when it exists, and of two trials opened for one slot
the first counts and is known to be ours."""


class PatientStorage(RDBStorage):
    """Optuna's relational storage, every call of which outlasts a restart of the server.

    Every call raises a UserError if the server stays away; the next one then does not wait any more.
    """

    _given_up = False

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """End a trial; once, though the server may go away before it has said that it did."""
        tries = 0

        def end() -> bool:
            nonlocal tries
            tries += 1
            try:
                return super(PatientStorage, self).set_trial_state_values(trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                found = self.get_trial(trial_id)
                asked = (state, None if values is None else list(values))
                if tries == 1 or (found.state, found.values) != asked:
                    raise
                return True

        return self._patiently(end)

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """The result of a call, which is repeated as long as it fails because the server is away."""
        end, seconds = time.monotonic() + AWAY_SECONDS, 0.05
        while True:
            try:
                result = call()
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                cause = cause_of(error)
                if not is_away(cause):
                    raise
                if self._given_up or time.monotonic() > end:
                    self._given_up = True
                    raise UserError(
                        f"the search storage {without_password(self.url)} is away: "
                        f"{without_password(first_line(cause))}"
                    ) from error
            else:
                self._given_up = False
                return result
            pause(seconds)
            seconds = min(2 * seconds, LONGEST_PAUSE_SECONDS)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *args: Any, **options: Any) -> Any:
        return self._patiently(lambda: method(self, *args, **options))

    return call


for _name in CALLS:
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def cause_of(error: BaseException) -> BaseException:
    """What the driver said, which Optuna hides behind a sentence of its own."""
    return error if isinstance(error, SQLAlchemyError) else error.__cause__ or error


def is_away(cause: BaseException) -> bool:
    """True if a database could not be reached, or not for long enough; the second statement of a transaction
    that lost its connection says only that it cannot go on."""
    return isinstance(cause, (OperationalError, InterfaceError, PendingRollbackError)) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def open_patiently(url: str) -> PatientStorage:
    """The storage on a database server, with its tables made.

    A process holds few connections: PostgreSQL admits 100 unless told otherwise, and a worker uses two, one
    of them for its lease.

    Raises:
        Exception: whatever Optuna or the driver say; a server that is not there is not waited for.
    """
    options = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 2}
    for left in reversed(range(OPENINGS)):
        try:
            return PatientStorage(url, engine_kwargs=options)
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            if not (left and will_open(cause_of(error))):
                raise
        pause(random.uniform(0.05, 0.5))
    raise AssertionError


def will_open(cause: BaseException) -> bool:
    """True if other processes are making the tables, or the server is starting up or going down."""
    return isinstance(cause, DBAPIError) and (
        isinstance(cause, IntegrityError)
        or any(words in str(cause) for words in (TABLES_BEING_MADE, *NOT_YET_OPEN))
    )
