"""What if the tracking store does not answer in the middle of a study? Then what it should get is kept.

Everything that is written about a run goes through here as an entry, a value that can be kept in a file. An
entry that is sent twice does no harm.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from harness.errors import UserError, first_line
from harness.spool import Entry, Spool

PAUSE_SECONDS = 30.0
"""After a failure nothing is tried for so long, or for nine times what the failure took."""
STANDS_FOR = "stands_for"
"""Tag of a run that was made later than its trial: the id under which the trial knows it."""
LOCAL = "local-"
"""Begins the id of a run that MLflow has not heard of yet."""
STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "killed": "KILLED"}
"""MLflow's own status of an outcome; every other outcome is FAILED."""
REFUSALS = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }
)
"""Errors that would come again: the store answers, but does not take this."""
WHOLE_STUDY = "study"
TIMES_AMONG_OTHERS = 20
"""Times that a process tries to write tags that others write at the same moment."""
INSERTED_TWICE = ("UNIQUE constraint", "duplicate key", "Duplicate entry")
"""What SQLite, PostgreSQL and MySQL say then."""


class Delivery:
    """Sends entries to one MLflow experiment, or keeps them until it answers again.

    Args:
        client: of the store.
        experiment: id.
        spool: where entries are kept.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        spool: Spool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._experiment, self._spool = client, experiment, spool
        self._clock, self._silent_until, self._warned = clock, -float("inf"), False
        self._real: dict[str, str] = {}

    def create(self, name: str, tags: Mapping[str, str]) -> str:
        """Open a run; returns its id, for now a local one if the store does not answer."""
        entry = {"do": "create", "name": name, "tags": dict(tags), "time": _now()}
        return self.write(f"{LOCAL}{uuid4().hex}", entry)

    def write(self, run_id: str, entry: Entry) -> str:
        """Send an entry or keep it; returns the id of its run.

        Raises:
            UserError: if it can neither be sent nor kept.
        """
        entry = _storable(entry)
        self.flush()
        if self._answers() and not self._spool.holds(run_id):
            began = self._clock()
            try:
                return self._send(run_id, entry)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                self._fell_silent(error, began)
        try:
            self._spool.append(run_id, entry)
        except OSError as error:
            raise UserError(
                f"neither the tracking store nor {self._spool.folder} can be written: {first_line(error)}; "
                "what was finished before is recorded"
            ) from error
        return run_id

    def flush(self) -> int:
        """Send what is kept, if the store answers; returns the number of runs of which something is left."""
        waiting = self._spool.waiting()
        if not waiting or not self._answers():
            return len(waiting)
        sent = 0
        # What is said of the study as a whole looks at its runs: they come first.
        for run_id in sorted(waiting, key=lambda run: run == WHOLE_STUDY):
            began = self._clock()
            try:
                with self._spool.emptying(run_id) as entries:
                    for entry in entries:
                        self._send(run_id, entry, again=True)
                    sent += bool(entries)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                if _is_refusal(error):
                    place = self._spool.set_aside(run_id)
                    _say(f"the tracking store refuses {place}: {first_line(error)}")
                    continue
                self._fell_silent(error, began)
                break
        if sent:
            _say(f"the tracking store got what was kept for it of {sent} runs")
            self._warned = False
        return len(self._spool.waiting())

    def kept_outcomes(self) -> dict[str, str]:
        """Outcome of each run of which something is kept, as far as it is kept; "" where it is not."""
        found = {}
        for run_id in self._spool.waiting():
            ends = [e["outcome"] for e in self._spool.entries(run_id) if e["do"] == "end"]
            if run_id != WHOLE_STUDY:
                found[run_id] = ends[-1] if ends else ""
        return found

    def ask(self, condition: str) -> list[Run] | None:
        """The runs that meet MLflow's condition, older first; None if the store does not answer."""
        self.flush()
        if not self._answers():
            return None
        began = self._clock()
        try:
            return list(search(self._client, self._experiment, condition))
        except (MlflowException, SQLAlchemyError, OSError) as error:
            self._fell_silent(error, began)
            return None

    def identity(self, run: Run) -> str:
        """The id under which the run's trial knows it."""
        known: str = run.data.tags.get(STANDS_FOR, run.info.run_id)
        self._real[known] = run.info.run_id
        return known

    def _answers(self) -> bool:
        return self._clock() >= self._silent_until

    def _fell_silent(self, error: Exception, began: float) -> None:
        """Keep from asking again for a while; raise what is no fault of the store."""
        if _is_refusal(error):
            raise error
        now = self._clock()
        self._silent_until = now + max(PAUSE_SECONDS, 9 * (now - began))
        if not self._warned:
            self._warned = True
            _say(
                f"the tracking store does not answer ({first_line(error)}); what it "
                f"should get is kept in {self._spool.folder} and sent when it answers again"
            )

    def _send(self, run_id: str, entry: Entry, again: bool = False) -> str:
        kind = entry["do"]
        if kind == "create":
            return self._create(run_id, entry, again)
        if kind == "supersede":
            among_others(lambda: self._supersede(entry["cell"], entry["chosen"]))
            return run_id
        real = self._known_as(run_id)
        if kind == "batch":
            metrics = [Metric(*m) for m in entry.get("metrics", ())]
            params = [Param(k, v) for k, v in entry.get("params", {}).items()]
            tags = [RunTag(k, v) for k, v in entry.get("tags", {}).items()]
            self._client.log_batch(real, metrics, params, tags)
        elif kind == "text":
            self._client.log_text(real, entry["text"], entry["file"])
        else:
            self._client.set_tag(real, "outcome", entry["outcome"])
            status = STATUS.get(entry["outcome"], "FAILED")
            self._client.set_terminated(real, status=status, end_time=entry["time"])
        return run_id

    def _create(self, run_id: str, entry: Entry, again: bool) -> str:
        tags = entry["tags"]
        if again:
            tags = {STANDS_FOR: run_id, **tags}
            if self._find(run_id):  # whoever sent this last time died before it was done
                return run_id
        run = self._client.create_run(
            self._experiment, start_time=entry["time"], tags=tags, run_name=entry["name"]
        )
        real: str = run.info.run_id
        self._real[run_id] = real
        return run_id if again else real

    def _known_as(self, run_id: str) -> str:
        """MLflow's own id of a run."""
        if run_id in self._real:
            return self._real[run_id]
        return self._find(run_id) if run_id.startswith(LOCAL) else run_id

    def _find(self, run_id: str) -> str:
        """MLflow's own id of the run that stands for that one; "" if there is none."""
        for run in search(self._client, self._experiment, f"tags.{STANDS_FOR} = '{run_id}'"):
            self.identity(run)
        return self._real.get(run_id, "")

    def _supersede(self, cell: str, chosen: int) -> None:
        for run in search(self._client, self._experiment, "tags.phase = 'repeat'"):
            stale = str(run.data.tags["chosen"] != str(chosen)).lower()
            if run.data.tags["cell"] == cell and run.data.tags.get("superseded") != stale:
                self._client.set_tag(run.info.run_id, "superseded", stale)


def among_others(write: Callable[[], None]) -> None:
    """Of processes that insert one tag at the same moment MLflow fails all but one. Who looks again finds
    what it wanted to write, and goes on.

    Args:
        write: writes only what is not there yet.
    """
    for left in reversed(range(TIMES_AMONG_OTHERS)):
        try:
            write()
            break
        except MlflowException as error:
            if not left or not any(words in str(error) for words in INSERTED_TWICE):
                raise


def search(client: MlflowClient, experiment: str, condition: str) -> Iterator[Run]:
    """Every run that meets MLflow's condition, older first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            condition,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def batch(
    metrics: Mapping[str, float] | None = None,
    step: int = 0,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Entry:
    """An entry of values, all of one moment."""
    now = _now()
    values: list[list[Any]] = [[k, float(v), now, step] for k, v in (metrics or {}).items()]
    return {
        "do": "batch",
        "metrics": values,
        "params": dict(params or {}),
        "tags": dict(tags or {}),
    }


def end(outcome: str) -> Entry:
    """The entry of a run's end."""
    return {"do": "end", "outcome": outcome, "time": _now()}


def _storable(value: Any) -> Any:
    """The same with "?" for what no database takes: NUL, and bytes of file names that are no UTF-8."""
    if isinstance(value, str):
        return value.replace("\0", "?").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {k: _storable(v) for k, v in value.items()}
    return [_storable(v) for v in value] if isinstance(value, list) else value


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, MlflowException) and error.error_code in REFUSALS


def _now() -> int:
    return int(time.time() * 1000)


def _say(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
