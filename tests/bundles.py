"""Machines that each record a part of one study, the bundles they pack, and what a merge makes of them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from analysis.load import load_study
from harness import bundle, pack_study
from harness.core.results import WAITED
from harness.search.plan import Shard
from tests.toy import Place, make_study

STUDY_FILE = "# what `space` looks like does not matter to a bundle\n"
COMMAND = "python -m harness.study --space {space}"
STUDY = make_study(repeats=2)
PROBE, FULL = Shard(1, 2), Shard(2, 2)


class Machine(Place):
    """A record, with results that are a function of the configuration in place of training."""

    def __init__(self, folder: Path, **info: Any) -> None:
        space_file = folder / "toy.py"
        space_file.write_text(STUDY_FILE)
        fields = {
            "command": COMMAND.format(space=space_file),
            "source": STUDY_FILE,
            "space_sha256": hashlib.sha256(STUDY_FILE.encode()).hexdigest(),
        }
        super().__init__(folder, **{**fields, **info})
        self.study = replace(STUDY, name=info.get("name", "toy"))
        self.record().describe(self.info(self.study))

    def train(self, *shards: Shard, **options: Any) -> Machine:
        """Trials and repeats of these cells, into the record only."""
        for shard in shards:
            uri, self.uri = self.uri, ""
            self.run(self.study, shard=shard, **options)
            self.uri = uri
        return self

    def pack(self, name: str = "", **options: Any) -> Path:
        out = self.folder / (name or f"{self.folder.name}.zip")
        pack_study(self.study.name, out, tracking_uri=self.uri, **options)
        return out


Make = Callable[..., Machine]
"""The fixture `machine`."""
WithStores = Callable[[Path], Path]
"""The fixture `with_stores`."""


class Shards(NamedTuple):
    """Bundles of the two cells, each of a machine of its own."""

    probe: Path
    full: Path


def pack_shards(with_stores: WithStores, folder: Path) -> Shards:
    command = COMMAND.format(space=folder / "a" / "toy.py")
    options = f"{command} --cells 1/2 --storage sqlite:///a.db"
    one = Machine(with_stores(folder / "a"), command=options)
    other = Machine(with_stores(folder / "b"), command=f"{command} --cells 2/2")
    return Shards(one.train(PROBE).pack(), other.train(FULL).pack())


def results(uri: str) -> dict[str, pd.DataFrame]:
    """What the report is made from, without what differs from one run of a study to the next."""
    table = load_study("toy", uri)
    runs = table.trials.set_index("run_id")[["cell", "phase", "index"]]
    trials = table.trials.drop(columns=["run_id", "start_time"])
    epochs = table.epochs.join(runs, on="run_id").drop(columns="run_id")
    predictions = table.predictions.drop(columns="run_id")
    return {
        "trials": trials.sort_values(["cell", "phase", "index"], ignore_index=True),
        "epochs": epochs.sort_values(["cell", "phase", "index", "epoch"], ignore_index=True),
        "predictions": predictions.sort_values(["cell", "seed", "example"], ignore_index=True),
    }


def same_results(one: str, other: str, but: tuple[str, ...] = ()) -> None:
    expected = results(other)
    for name, frame in results(one).items():
        kept = [c for c in frame.columns if not any(word in c for word in (*but, WAITED))]
        pd.testing.assert_frame_equal(frame[kept], expected[name][kept], obj=name)


def contents(folder: Path) -> dict[str, str | bytes]:
    """Every file below a folder but those of locks; of a database what it holds."""
    found: dict[str, str | bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm")):
            name = str(path.relative_to(folder))
            try:
                with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                    found[name] = "\n".join(connection.iterdump())
            except sqlite3.DatabaseError:
                found[name] = path.read_bytes()
    return found


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command refuses its input with."""
    capsys.readouterr()
    assert bundle.main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip()


def edited(
    path: Path, out: Path, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]
) -> Path:
    """A bundle that somebody has written anew.

    Args:
        change: is given member -> content, "bundle.json" as a mapping, and may change it.
    """
    with zipfile.ZipFile(path) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    members["bundle.json"] = json.loads(members["bundle.json"])
    change(members)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content) if isinstance(content, dict) else content)
    return out


def changed(where: tuple[str, ...], more: dict[str, Any], members: dict[str, Any]) -> None:
    """A change for `edited`: adds to the members, or to what one of them holds."""
    for name in where:
        members = members[name]
    members.update(more)
