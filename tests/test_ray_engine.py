"""A study on a Ray cluster, a node of which is killed: Ray's own cluster of several nodes on one machine, a
real PostgreSQL, the real command."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.record import StudyInfo
from harness.search.patience import open_patiently
from harness.search.workers import Job

from analysis.load import load_study
from benchmarks.postgres import Server
from harness.errors import UserError
from harness.study import check_options, parse

ROOT = Path(__file__).parents[1]
STUDY = '''"""Does it run?"""
import os
import time
from pathlib import Path

from harness import transfer
from harness.spec import Study, TrialSpec


def space(trial, strategy):
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    mark = Path("mark")
    if trial.number > 2 and not mark.exists():
        mark.with_suffix(".new").write_text(str(os.getppid()))
        mark.with_suffix(".new").rename(mark)
        time.sleep(600)
    return TrialSpec(
        target="digits", backbone="small_cnn", strategy=transfer.LinearProbe(), source="scratch",
        shots=4, val_shots=4, test_shots=4, resolution=28, epochs=1, lr=lr,
    )


study = Study(compare={"strategy": ["a", "b"]}, space=space, trials=4, repeats=1, name="toy")
'''


def job(tmp_path: Path, storage: str | None, tracking_uri: str | None) -> Job:
    info = StudyInfo("toy", "", "", {}, {}, 1, 1, "random", (), "")
    return Job(tmp_path / "toy.py", info, "cpu", storage, tracking_uri, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's cluster, which is not under test
def test_study_outlives_the_death_of_a_node(
    server: Server, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        (tmp_path / "toy.py").write_text(STUDY)
        with (tmp_path / "said").open("w") as said:
            command = subprocess.Popen(
                [
                    sys.executable, "-m", "harness.study", "--space", "toy.py", "--device", "cpu",
                    "--storage", server.url, "--tracking-uri", tracking_uri, "--workers", "3",
                    "--engine", "ray", "--address", cluster.address,
                ],
                cwd=tmp_path, stdout=said, stderr=said,
            )  # fmt: skip
        mark = tmp_path / "mark"
        wait_for(lambda: mark.exists() or command.poll() is not None)
        assert mark.exists(), (tmp_path / "said").read_text()
        raylet = int(mark.read_text())
        (dying,) = [n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet]
        cluster.remove_node(dying, allow_graceful=False)
        assert command.wait(300) == 0, (tmp_path / "said").read_text()
    finally:
        cluster.shutdown()
    found = load_study("toy", tracking_uri).trials
    complete = found[found["outcome"] == "complete"]
    assert len(complete) == 10
    assert not complete.duplicated(["cell", "phase", "index"]).any()
    assert set(found["outcome"]) == {"complete"} or set(found["outcome"]) == {"complete", "killed"}
    storage = open_patiently(server.url)
    states = [
        t.state.name for s in storage.get_all_studies() for t in storage.get_all_trials(s._study_id)
    ]
    storage.engine.dispose()
    assert states.count("COMPLETE") == 10
    assert "RUNNING" not in states
    assert "FAIL" in states, "no trial was cut short"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_several_machines_are_not_given_a_file_to_share(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from harness.search import ray_engine as engine

    shared = ("postgresql+psycopg://u@h/d", "http://h:5000")
    engine.require_shared(job(tmp_path, None, None), {"one"})
    engine.require_shared(job(tmp_path, *shared), {"one", "two"})
    for storage, tracking, option in (
        (None, shared[1], "--storage"),
        ("sqlite:///a.db", shared[1], "--storage"),
        (shared[0], None, "--tracking-uri"),
    ):
        with pytest.raises(UserError, match=f"2 machines cannot share .* want {option} "):
            engine.require_shared(job(tmp_path, storage, tracking), {"one", "two"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--worker-cpus 2", "--worker-cpus is for --engine ray"),
        ("--address auto", "--address is for --engine ray"),
        ("--engine ray --worker-cpus -1", "--worker-cpus must be at least 0"),
        ("--engine ray --worker-gpus nan", "--worker-gpus must be at least 0"),
        ("--engine ray --worker-gpus 1.5", "a part of one or a whole number"),
    ],
)
def test_options_of_the_engine_that_make_no_sense_are_refused(options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_options(parse(["--space", "x.py", *options.split()]))
    check_options(parse("--space x.py --engine ray --worker-cpus 4 --worker-gpus 0.5".split()))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "harness.search.ray_engine", raising=False)
    with pytest.raises(UserError, match=r"pip install \"transfer-harness\[ray\]\""):
        importlib.import_module("harness.search.ray_engine")
