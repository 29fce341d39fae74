"""A study on a Ray cluster, a node of which is killed: Ray's own cluster of several nodes on one machine, the
real command, both stores as SQLite files of the machine that was typed at."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.results import TrialResult
from tests.processes import environment
from tests.refusals import refused
from tests.toy import RUN, assert_whole, results, trials_of, wait_for, write_study

SAY = "Path('new').write_text(str(os.getppid())); os.rename('new', 'mark')"
WAIT = f"if epoch == 1 and once('begun'): {SAY}; time.sleep(600)"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's cluster, which is not under test
def test_study_outlives_the_death_of_a_node(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    for name, value in {**environment(), "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    study = write_study(tmp_path, WAIT)
    ray = ["--workers", "2", "--engine", "ray", "--address", cluster.address]
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        with (tmp_path / "said").open("w") as said:
            command = subprocess.Popen(
                [*RUN, *ray], cwd=tmp_path, stdout=said, stderr=said, text=True
            )
        wait_for(lambda: (tmp_path / "mark").exists() or command.poll() is not None)
        assert (tmp_path / "mark").exists(), (tmp_path / "said").read_text()
        raylet = int((tmp_path / "mark").read_text())
        (dying,) = [n for n in nodes if n.all_processes["raylet"][0].process.pid == raylet]
        cluster.remove_node(dying, allow_graceful=False)
        assert command.wait(300) == 0, (tmp_path / "said").read_text()
    finally:
        cluster.shutdown()
    assert_whole(tmp_path / "mlruns", study)
    assert set(trials_of(tmp_path)["outcome"]) == {"complete"}, "Ray ran the trial again by itself"
    assert len(results(tmp_path)) == 8


def test_folder_that_a_node_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from harness.search.executors.ray_tasks import _run

    [said] = _run(b"", tmp_path / "toy.py", tmp_path / "elsewhere", 1, None)
    assert isinstance(said, TrialResult)
    assert (
        f"has no {tmp_path}/elsewhere: the study must be started in a folder that all"
        in said.reason
    )


def test_cluster_that_is_not_there_is_told() -> None:
    pytest.importorskip("ray")
    from harness.search.executors.ray_tasks import Room, connect

    with refused(r"no Ray cluster at '127\.0\.0\.1:1' .*ray start --head"):
        connect("127.0.0.1:1", Room())


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "harness.search.executors.ray_tasks", raising=False)
    with refused(r"pip install \"transfer-harness\[ray\]\""):
        importlib.import_module("harness.search.executors.ray_tasks")
