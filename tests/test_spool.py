"""A tracking store that goes away: nothing is lost, nothing comes twice, nobody waits. Fault table row 13."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.delivery import Delivery, end
from harness.record import Recorder, StudyInfo
from harness.spool import Spool
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from harness.errors import UserError
from harness.results import EpochResult, Predictions, TrialResult
from harness.spec import TrialSpec

MakeSpec = Callable[..., TrialSpec]
INFO = StudyInfo("toy", "", "", {"strategy": ["a"]}, {}, 1, 1, "random", (), "")
ONE = np.array([1])
RESULT = TrialResult(
    "complete",
    {"peak_mib": 7.0, "bad": float("inf")},
    "because",
    Predictions(ONE, ONE, ONE, ONE / 2),
)
WRITES = ("create_run", "log_batch", "log_text", "set_tag", "set_terminated", "search_runs")


class Line:
    """The way to the store: real, until it is cut at the n-th call from now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls, self.cut_at = 0.0, 0, 10**9
        self.error: BaseException = MlflowException("gone", error_code=TEMPORARILY_UNAVAILABLE)
        for name in WRITES:
            monkeypatch.setattr(MlflowClient, name, self._through(getattr(MlflowClient, name)))

    def _through(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > self.cut_at:
                raise self.error
            return call(*args, **kwargs)

        return wrapped

    def cut(self, after: int = 0) -> None:
        self.cut_at = self.calls + after

    def mend(self) -> None:
        self.cut_at = 10**9
        self.now += 60

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "mlruns" / "spool" / "toy"


def record_a_trial(recorder: Recorder, spec: TrialSpec) -> str:
    run_id = recorder.start(spec, "a trial 0", {"phase": "tune", "cell": "a", "index": 0})
    for epoch in range(2):
        recorder.epoch(run_id, EpochResult(epoch, 1.0, 0.5, 0.25 * epoch, 1.0, 1.0))
    recorder.write(run_id, RESULT)
    recorder.end(run_id, "complete")
    return run_id


def runs(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    return [r for r in client.search_runs([experiment.experiment_id]) if "index" in r.data.tags]


def assert_whole(uri: str, run: Run, spec: TrialSpec) -> None:
    assert TrialSpec.from_flat(run.data.params) == spec
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "complete")
    assert run.data.metrics["peak_mib"] == 7.0
    assert "bad" not in run.data.metrics
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "val_accuracy")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 0.25)]
    assert (Path(run.info.artifact_uri.removeprefix("file://")) / "predictions.csv").exists()


@pytest.mark.parametrize("after", range(8))
def test_store_that_goes_away_at_any_call_gets_everything_once_later(
    after: int,
    line: Line,
    tracking_uri: str,
    make_spec: MakeSpec,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.cut(after)
    run_id = record_a_trial(recorder, make_spec())
    assert capsys.readouterr().err.count("the tracking store does not answer (gone)") == 1
    line.mend()
    assert recorder.flush() == 0
    [run] = runs(tracking_uri)
    assert_whole(tracking_uri, run, make_spec())
    assert recorder.outcomes() == {run_id: "complete"}
    assert "got what was kept for it of 1 runs" in capsys.readouterr().err


def test_store_that_is_away_is_asked_once_and_then_left_alone(
    line: Line, tracking_uri: str, make_spec: MakeSpec
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.cut()
    before = line.calls
    record_a_trial(recorder, make_spec())
    assert recorder.unfinished() == {}
    assert line.calls == before + 1
    line.now += 29
    recorder.flush()
    assert line.calls == before + 1
    line.now += 2
    recorder.flush()
    assert line.calls == before + 2


@pytest.mark.parametrize("after", range(7))
def test_whoever_dies_while_sending_does_no_harm(
    after: int, line: Line, tracking_uri: str, make_spec: MakeSpec
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.cut()
    record_a_trial(recorder, make_spec())
    line.mend()
    line.error = KeyboardInterrupt()  # stands for any sudden end
    line.cut(after)
    with pytest.raises(KeyboardInterrupt):
        recorder.flush()
    line.mend()
    Recorder(tracking_uri, INFO, clock=line).flush()
    [run] = runs(tracking_uri)
    assert_whole(tracking_uri, run, make_spec())


def test_what_is_kept_comes_before_what_is_new(
    line: Line, tracking_uri: str, make_spec: MakeSpec
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.cut()
    run_id = recorder.start(make_spec(), "x", {"index": 0})
    recorder.end(run_id, "crashed")
    line.mend()
    recorder.end(run_id, "killed")
    assert recorder.outcomes() == {run_id: "killed"}


def test_store_that_refuses_a_value_is_no_store_that_is_away(
    line: Line, tracking_uri: str, make_spec: MakeSpec, spool: Path
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.error = MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)
    line.cut()
    with pytest.raises(MlflowException, match="no such thing"):
        recorder.start(make_spec(), "x", {})
    assert not spool.exists()


def test_what_is_refused_later_is_set_aside_and_said(
    line: Line,
    tracking_uri: str,
    make_spec: MakeSpec,
    spool: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    run_id = recorder.start(make_spec(), "x", {"index": 0})
    line.cut()
    recorder.end(run_id, "complete")
    line.mend()
    recorder._client._tracking_client.store.delete_run(run_id)
    assert recorder.flush() == 0
    assert f"refuses {spool / run_id}.refused" in capsys.readouterr().err


def test_superseding_waits_for_the_runs_it_is_about(
    line: Line, tracking_uri: str, make_spec: MakeSpec
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.cut()
    for index, chosen in enumerate((0, 1)):
        tags = {"phase": "repeat", "cell": "a", "chosen": chosen, "index": index}
        recorder.start(make_spec(), "x", tags)
    recorder.supersede("a", 1)
    line.mend()
    recorder.flush()
    found = {r.data.tags["chosen"]: r.data.tags["superseded"] for r in runs(tracking_uri)}
    assert found == {"0": "true", "1": "false"}


class Broken(BaseHTTPRequestHandler):
    """A server that answers 500 to everything, or hangs up in the middle of it."""

    hangs_up = False

    def do_POST(self) -> None:
        """The only kind of request that writes."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.hangs_up:
            self.send_error(500)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.mark.parametrize("hangs_up", [False, True])
def test_server_that_fails_or_hangs_up_is_a_store_that_is_away(
    hangs_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    handler = type("Handler", (Broken,), {"hangs_up": hangs_up})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{server.server_port}")
        delivery = Delivery(client, "1", Spool(tmp_path))
        run_id = delivery.create("x", {})
        delivery.write(run_id, end("complete"))
        server.shutdown()
    assert [e["do"] for e in Spool(tmp_path).entries(run_id)] == ["create", "end"]


def test_server_that_accepts_and_never_answers_is_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        delivery = Delivery(client, "1", Spool(tmp_path))
        run_id = delivery.create("x", {})
        delivery.write(run_id, end("complete"))
    assert [e["do"] for e in Spool(tmp_path).entries(run_id)] == ["create", "end"]


SETTINGS = """
import os, sys
for name in [n for n in os.environ if n.startswith("MLFLOW_") or n in ("CI", "PYTEST_CURRENT_TEST")]:
    del os.environ[name]
import harness.tracking.runs
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.telemetry import get_telemetry_client
print(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get(), get_telemetry_client())
"""


def test_a_server_is_asked_for_seconds_and_mlflow_tells_nobody_what_is_done_here() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SETTINGS], capture_output=True, text=True, check=True
    )
    assert run.stdout == "2 10 None\n"


def test_text_that_no_database_takes_is_written_with_question_marks(tracking_uri: str) -> None:
    recorder = Recorder(tracking_uri, INFO)
    run_id = recorder.start(
        {"target": "folder:/b\udce4d"}, "a\udce4", {"cell": "probe", "phase": "tune"}
    )
    recorder.finish(run_id, TrialResult("crashed", reason="nul \0 and \udce4"))
    run = MlflowClient(tracking_uri=tracking_uri).get_run(run_id)
    assert run.data.tags["reason"] == "nul ? and ?"
    assert run.data.params["target"] == "folder:/b?d"


# --- the files themselves --------------------------------------------------------------------------


def test_line_that_was_cut_off_is_left_out_and_spoils_no_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append("x", {"a": 1})
    with (tmp_path / "x.jsonl").open("ab") as file:
        file.write(b'{"a": 2')  # a power cut
    spool.append("x", {"a": 3})
    assert spool.entries("x") == [{"a": 1}, {"a": 3}]


def test_only_one_process_takes_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append("x", {"a": 1})
    with spool.emptying("x") as mine, Spool(tmp_path).emptying("x") as theirs:
        assert (mine, theirs) == ([{"a": 1}], [])
    assert spool.waiting() == []


def _append_on_a_full_disk(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        Spool(folder).append("x", {"a": "b" * 200})
    except OSError:
        os._exit(3)


def test_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """Row 14."""
    Spool(tmp_path).append("x", {"a": 1})
    child = multiprocessing.get_context("fork").Process(
        target=_append_on_a_full_disk, args=(tmp_path,)
    )
    child.start()
    child.join()
    assert child.exitcode == 3
    assert (tmp_path / "x.jsonl").read_text() == '{"a": 1}\n'


def test_where_nothing_can_be_written_the_study_says_so(
    line: Line, tracking_uri: str, make_spec: MakeSpec, spool: Path
) -> None:
    """Row 14."""
    recorder = Recorder(tracking_uri, INFO, clock=line)
    spool.parent.parent.mkdir(exist_ok=True)
    spool.parent.write_text("in the way")
    line.cut()
    with pytest.raises(
        UserError, match=r"neither the tracking store nor .*spool/toy can be written"
    ):
        recorder.start(make_spec(), "x", {})


def test_other_studies_spools_are_left_alone(
    line: Line, tracking_uri: str, make_spec: MakeSpec
) -> None:
    recorder = Recorder(tracking_uri, INFO, clock=line)
    line.cut()
    record_a_trial(recorder, make_spec())
    line.mend()
    other = Recorder(tracking_uri, dataclasses.replace(INFO, name="other"), clock=line)
    assert other.flush() == 0
    assert recorder.flush() == 0
    assert len(runs(tracking_uri)) == 1
