"""Seventy-five bad inputs, each with what becomes of it: one line, exit code 2, nothing lost.

The number of each is its row in the list; `ELSEWHERE` names the test of every row that has none here. What is
said to be fine is tested to be fine.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import timm
import torch
import torchvision
from optuna.trial import BaseTrial
from PIL import Image

from harness import strategies
from harness.backbones import build, weights_sha256
from harness.backbones.weights import read_weights
from harness.backbones.wheels import Wheel
from harness.core import stores
from harness.core.command_line import run_command
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.stores import default_tracking_uri
from harness.core.study import Study
from harness.core.study_file import load_study
from harness.data import load_target, open_image
from harness.data.cache_folder import default_folder
from harness.inputs import Pixels
from harness.search import preflight
from harness.search.cell import CellSearch
from harness.search.record import Record
from harness.search.space import first_draw
from harness.search.storage import open_storage
from harness.tracking.experiment import Experiment
from harness.training.device import Cpu
from harness.training.loop import start
from harness.training.optimizer import batches
from harness.training.outcomes import classify

ELSEWHERE = {
    1: "test_study_command.py::test_bad_study_file_is_refused_in_one_line",
    6: "test_spec.py::test_bad_field_of_a_study_is_named",
    17: "test_coordinator.py::test_space_that_fails_for_some_values_costs_those_trials_only",
    18: "test_spec.py::test_bad_field_of_a_study_is_named",
    26: "test_coordinator.py::test_images_that_changed_since_are_refused",
    30: "test_study_command.py::test_killed_study_goes_on_to_the_results_of_one_that_was_not",
    34: "test_data.py::test_absent_folder_is_refused",
    35: "test_data.py::test_empty_folder_is_refused",
    36: "test_data.py::test_folder_with_one_class_is_refused",
    37: "test_study_command.py::test_bad_folder_is_refused",
    38: "test_data.py::test_class_without_images_is_named",
    40: "test_data.py::test_truncated_photograph_is_refused",
    41: "test_data.py::test_what_is_no_image_is_refused_by_name",
    43: "test_data.py::test_transparency_is_shown_on_white",
    44: "test_data.py::test_exif_rotation_is_applied",
    47: "test_data.py::test_extreme_aspect_is_refused",
    48: "test_data.py::test_too_many_pixels_are_refused_before_they_are_decoded",
    50: "test_leaks.py::test_copy_of_a_training_image_among_the_tests_is_found_and_named",
    54: "test_data.py::test_class_that_is_too_small_is_named_with_its_size",  # no folds, no groups
    56: "test_coordinator.py::test_images_that_changed_since_are_refused",
    58: "test_backbone.py::test_unknown_backbone_lists_near_matches",
    59: "test_weights_files.py::test_another_architecture_is_refused_with_a_prefix_too",
    61: "test_backbone.py::test_weights_that_are_not_finite_are_refused_by_name",
    63: "test_backbone.py::test_code_in_a_weights_file_is_not_run",
    65: "test_backbone.py::test_weights_that_only_the_hub_has_are_refused_when_offline",
    66: "test_preflight.py::test_resolution_that_a_network_cannot_take_is_refused_before_the_study_starts",
    67: "test_data.py::test_folder_with_one_class_is_refused",
    70: "test_study_command.py::test_cuda_is_refused_where_there_is_none",
}
FAULTS = {69}
"""A disk that is full is a fault, not an input."""


def refused(said: str) -> Any:
    """Expects a UserError in one line that says so."""
    return pytest.raises(UserError, match=rf"(?s)\A{said}[^\n]*\Z")


pytestmark = pytest.mark.usefixtures("forget_targets")


# --- the study file --------------------------------------------------------------------------------

GOOD = """from harness import Study
study = Study(compare={"strategy": ["a"]}, space=print)
"""


def read(folder: Path, before: str, encoding: str = "utf-8") -> Study:
    (folder / "toy.py").write_bytes((before + GOOD).encode(encoding))
    return load_study(folder / "toy.py")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("import sys\nsys.exit(0)\n", r"toy\.py:2: SystemExit: 0"),
        ("\nb = bytearray(2**62)\n", r"toy\.py:2: MemoryError"),
        ("from harness import Study\nStudy(compair={})\n", r"toy\.py:2: .*; did you mean compare\?"),
        ("def f():\n    f()\nf()\n", r"toy\.py:2: RecursionError"),
    ],
    ids=["04 exits", "05 memory", "16 misspelt", "19 recursion"],
)  # fmt: skip
def test_study_file_that_would_end_the_command_is_refused(
    before: str, said: str, tmp_path: Path
) -> None:
    with refused(f"study file .*{said}"):
        read(tmp_path, before)


@pytest.mark.slow
def test_02_ctrl_c_ends_a_study_file_that_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (tmp_path / "toy.py").write_text("print('loops', flush=True)\nwhile True:\n    pass\n")
    command = [sys.executable, "-m", "harness.study", "--space", "toy.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "loops\n"
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=30)
        finally:
            running.kill()  # it would loop forever where Ctrl-C is ignored
    assert (running.returncode, said.partition(";")[0]) == (130, "stopped by Ctrl-C")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"], ids=["08 BOM, CRLF", "08 UTF-16"])
def test_encoding_of_a_study_file(encoding: str, tmp_path: Path) -> None:
    fine = encoding == "utf-8-sig"
    with contextlib.nullcontext() if fine else refused("study file .*null bytes"):
        assert read(tmp_path, "a = 'ä'\r\n", encoding).name == "toy"


# --- the space -------------------------------------------------------------------------------------


def draw(space: Callable[..., object]) -> TrialSpec:
    """The first trial of a study with that space, as the preflight draws it."""
    study = Study(compare={"strategy": ["a"]}, space=space, name="toy")  # type: ignore[arg-type]
    return first_draw(study, {"strategy": "a"})


def spec(**changes: Any) -> TrialSpec:
    fields: dict[str, Any] = {"strategy": strategies.LinearProbe(), "source": "scratch"}
    return TrialSpec("digits", "test_resnet", **{**fields, **changes})


def recursive(trial: BaseTrial, strategy: str) -> TrialSpec:
    return recursive(trial, strategy)


def twice(trial: BaseTrial, strategy: str) -> TrialSpec:
    trial.suggest_float("x", 0, 1)
    return spec(lr=trial.suggest_float("x", 5, 6))


def asks(method: str, *arguments: Any, **options: Any) -> Callable[..., TrialSpec]:
    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        getattr(trial, f"suggest_{method}")(*arguments, **options)
        return spec()

    return space


def leaves(trial: BaseTrial, strategy: str) -> TrialSpec:
    sys.exit(0)


BAD_SPACES: dict[str, tuple[Callable[..., object], str]] = {
    "04 exits": (leaves, "study 'toy': space failed for a: SystemExit: 0"),
    "07 None": (lambda trial, strategy: None, ".* must return a TrialSpec, got NoneType"),
    "07 list": (lambda trial, strategy: [spec()], ".* must return a TrialSpec, got list"),
    "09 low above high": (asks("int", "k", 5, 3), "space: 'k': `low <= high` must hold, .*low=5"),
    "10 log of 0": (asks("float", "x", 0, 1, log=True), "space: 'x': `low > 0` must hold for `log=True`"),
    "11 NaN": (asks("float", "x", float("nan"), 1), "space: bounds of 'x' .* got nan"),
    "11 infinity": (asks("float", "x", 0, float("inf")), "space: bounds of 'x' .* got inf"),
    "12 no choices": (asks("categorical", "c", []), "space: 'c': The `choices` must contain one"),
    "13 list": (asks("categorical", "c", [[1], [2]]), r"space: choices of 'c' .* got \[1\]"),
    "13 tensor": (asks("categorical", "c", [torch.ones(1)]), "space: choices of 'c' .* got tensor"),
    "13 NaN": (asks("categorical", "c", [float("nan")]), "space: choices of 'c' .* got nan"),
    "14 two ranges": (twice, "space: 'x' is suggested twice, as .*high=1.* and as .*high=6"),
    "15 long": (asks("float", "x" * 600, 0, 1), "space: parameter name 'x+' must be"),
    "15 slash": (asks("float", "a/b c", 0, 1), "space: parameter name 'a/b c' must be"),
    "15 line break": (asks("float", "a\nb", 0, 1), r"space: parameter name 'a\\nb' must be"),
    "15 empty": (asks("float", "", 0, 1), "space: parameter name '' must be"),
    "16 misspelt": (lambda trial, strategy: spec(lerning_rate=1), ".*'lerning_rate'; it has .*, lr,"),
    "19 recursion": (recursive, ".*space failed for a: RecursionError"),
    "20 batch of 0": (lambda trial, strategy: spec(batch_size=0), ".*batch_size must be .* got 0"),
    "20 batch of -1": (lambda trial, strategy: spec(batch_size=-1), ".*batch_size must be"),
    "21 rate of 0": (lambda trial, strategy: spec(lr=0), ".*lr must be"),
    "21 rate as text": (lambda trial, strategy: spec(lr="1e-3"), ".*lr must be .* got '1e-3'"),
    "21 no epochs": (lambda trial, strategy: spec(epochs=0), ".*epochs must be"),
}  # fmt: skip


@pytest.mark.parametrize(("space", "said"), BAD_SPACES.values(), ids=BAD_SPACES)
def test_bad_space_is_refused(space: Callable[..., object], said: str) -> None:
    with refused(said):
        draw(space)


def test_good_suggestions_are_passed_on() -> None:
    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        assert trial.suggest_int("k", 2, 8, log=True) in range(2, 9)
        assert trial.suggest_categorical("c", ["a", None, 1.5, True]) in ("a", None, 1.5, True)
        assert trial.suggest_float("s", 0, 1, step=0.5) in (0, 0.5, 1)
        first = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        assert trial.suggest_float("lr", 1e-4, 1e-1, log=True) == first
        assert trial.number == 0
        assert set(trial.params) == {"k", "c", "s", "lr"}
        return spec(lr=first)

    assert 1e-4 <= draw(space).lr <= 1e-1


def test_03_space_that_loops_is_refused_before_the_study_starts() -> None:
    def loops(trial: BaseTrial, strategy: str) -> TrialSpec:
        signal.raise_signal(signal.SIGALRM)  # the time is up
        while True:
            pass

    before = signal.getsignal(signal.SIGALRM)
    study = Study(compare={"strategy": ["a"]}, space=loops, name="toy")
    with refused(
        r"study 'toy': drawing .* more than 10 s; .*loop\? \(at .*test_bad_inputs\.py:\d+"
    ):
        preflight.check_study(study)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_03_strategy_that_loops_is_refused_before_the_study_starts() -> None:
    @dataclasses.dataclass(frozen=True)
    class Loops(strategies.Strategy):
        def lr_scales(self, num_groups: int, epoch: int) -> strategies.Scales:
            signal.raise_signal(signal.SIGALRM)  # the time is up
            while True:
                pass

    def looping(trial: BaseTrial, strategy: str) -> TrialSpec:
        return TrialSpec("digits", "small_cnn", Loops(), source="scratch", resolution=28)

    study = Study(compare={"strategy": ["a"]}, space=looping, name="toy")
    with refused(
        r"strategy Loops: planning \d+ epochs takes more than 10 s; does `lr_scales` loop\? "
        r"\(at .*test_bad_inputs\.py:\d+"
    ):
        preflight.check_study(study)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_20_batch_of_one_that_batch_norm_cannot_train_on_is_a_crash_that_says_so() -> None:
    strategy = strategies.FullFineTune()
    fields: dict[str, Any] = {"strategy": strategy, "source": "scratch", "resolution": 32}
    one = TrialSpec("digits", "resnet18", **fields, shots=2, batch_size=1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        list(start(one, Cpu()))
    assert classify(caught.value) == "crashed"


def test_20_batch_larger_than_the_data_is_one_batch() -> None:
    [only] = batches(5, 100, torch.Generator())
    assert sorted(only.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("effort", [0, -1, 10**9], ids=["22 none", "22 negative", "22 a slip"])
def test_senseless_effort_is_refused(effort: int) -> None:
    with refused("Study: trials must be"):
        Study(compare={"strategy": ["a"]}, space=recursive, trials=effort)


# --- storages --------------------------------------------------------------------------------------


@pytest.fixture
def database(optuna_template: Path, tmp_path: Path) -> Path:
    """An Optuna database without studies."""
    return Path(shutil.copy(optuna_template, tmp_path / "study.db"))


@pytest.fixture
def for_nobody() -> Iterator[Path]:
    """A folder, and a process whose files' permissions count: root is above them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        if os.geteuid() == 65534:
            os.seteuid(0)
        for folder in Path(name).rglob("*/"):
            folder.chmod(0o755)


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize(
    "content", [b"These are no trials\n" * 200, None], ids=["23 text", "23 folder"]
)
def test_what_is_no_database_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with refused("cannot open the storage sqlite:///.*study.db"):
        open_storage(f"sqlite:///{path}")
    assert content is None or path.read_bytes() == content


def test_23_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    found = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    assert optuna.get_all_study_names(found) == []


def test_23_database_that_may_not_be_written_is_refused(
    optuna_template: Path, for_nobody: Path
) -> None:
    path = Path(shutil.copy(optuna_template, for_nobody / "study.db"))
    path.chmod(0o444)
    become_nobody()
    with refused("cannot open the storage .*(readonly|unable to open)"):
        open_storage(f"sqlite:///{path}")


@pytest.mark.parametrize("schema", ["v3.0.0.d", "v99.0.0.a"], ids=["24 older", "24 newer"])
def test_database_of_another_optuna_is_refused_with_the_way_out(
    schema: str, database: Path
) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        connection.commit()
    with refused("cannot open the storage .*(optuna storage upgrade|pip install -U optuna)"):
        open_storage(f"sqlite:///{database}")


def test_25_study_that_minimizes_is_refused() -> None:
    kept = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="toy/a", storage=kept, direction="minimize")
    study = Study(compare={"strategy": ["a"]}, space=recursive, name="toy")
    with refused("Optuna study 'toy/a' was not made by this harness"):
        CellSearch(Record(kept, Path()), study, {"strategy": "a"})


@pytest.mark.parametrize("name", ["../x", "..", "a'b", "x" * 600, "🙂", "-x", "a\n"])
def test_27_name_that_would_break_a_path_or_a_filter_is_refused(name: str) -> None:
    with refused("Study: name .* must be letters, digits"):
        Study(compare={"strategy": ["a"]}, space=recursive, name=name)


def unreachable() -> int:
    """A port that refuses connections at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nodriver://ann:s3cret@h/x",
        "postgresql+psycopg://ann:s3cret@127.0.0.1:{port}/x",
        "postgresql://ann@127.0.0.1:{port}/x?password=s3cret&connect_timeout=1",
        "mysql://ann:s3cr@t/s3cret@127.0.0.1:{port}/x",
        "redis://:s3cret@127.0.0.1:{port}",
    ],
    ids=["28 no driver", "28 no server", "28 in the query", "28 with @ and /", "28 no user"],
)
def test_password_of_a_storage_is_not_shown(url: str) -> None:
    with refused("cannot open the storage ") as caught:
        open_storage(url.format(port=unreachable()))
    assert "s3cr" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value) or "nodriver" in str(caught.value)


def test_28_password_in_a_drivers_message_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no route for host=h user=ann password=s3cret, postgresql://ann:s3cret@h/x")

    monkeypatch.setattr(optuna.storages, "RDBStorage", fails)
    with refused("cannot open the storage .*no route for host=h") as caught:
        open_storage("postgresql+psycopg://ann:s3cret@h/x")
    assert "s3cret" not in str(caught.value)


def test_31_journal_is_refused_with_what_takes_its_place(tmp_path: Path) -> None:
    with refused(r"cannot open the storage journal:.*\(want sqlite:///PATH or postgresql"):
        open_storage(f"journal:{tmp_path}/study.log")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "warned"), [("nfs4", True), ("ext4", False)], ids=["32 nfs", "32 local"]
)
def test_database_on_a_network_is_warned_of(
    kind: str,
    warned: bool,
    database: Path,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mounts = database.with_name("mounts")
    mounts.write_text(f"disk / ext4 rw 0 0\nhost:/x {database.parent} {kind} rw 0 0\n")
    monkeypatch.setattr(stores, "MOUNTS", mounts)
    with caplog.at_level(logging.WARNING):
        open_storage(f"sqlite:///{database}")
        assert ("a local disk, or a PostgreSQL server" in caplog.text) == warned
        shutil.copy(mlflow_template, database.with_name("mlflow.db"))
        Experiment(f"sqlite:///{database.with_name('mlflow.db')}", "toy", {})
    assert ("of an MLflow server" in caplog.text) == warned


def test_29_deleted_experiment_is_refused_with_the_way_out(tracking_uri: str) -> None:
    made = Experiment(tracking_uri, "toy", {})
    made.client.delete_experiment(made.id)
    with refused(
        r"experiment 'toy' was deleted in MLflow: restore it \(mlflow experiments restore"
    ):
        Experiment(tracking_uri, "toy", {})


def test_33_file_store_beside_the_database_does_no_harm(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir()
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("artifact_location: x\nname: Default\n")
    assert default_tracking_uri(tmp_path / "mlruns") == tracking_uri
    assert list(Experiment(tracking_uri, "toy", {}).search()) == []


def test_33_file_store_as_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    with refused("cannot open the tracking store file:.*maintenance mode"):
        Experiment(f"file:{tmp_path}/mlruns", "toy", {})


# --- data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small images in two classes."""
    root = tmp_path_factory.mktemp("photographs")
    noise = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8)
    for i, pixels in enumerate(noise):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "ab"[i % 2] / f"{i}.png")
    return root


@pytest.fixture
def pets(photographs: Path, tmp_path: Path) -> Path:
    """A copy of them, to be spoilt."""
    return Path(shutil.copytree(photographs, tmp_path / "pets"))


def look(root: Path) -> torch.Tensor:
    """Every image of a folder."""
    target = load_target(f"folder:{root}")
    return target.read(np.arange(len(target.labels)), Pixels(8))


def test_39_files_without_a_byte_are_counted_and_five_are_named(pets: Path) -> None:
    for path in sorted(pets.rglob("*.png"))[:8]:
        path.write_bytes(b"")
    with refused(r"(image \S+\.png cannot be read: .*; ){4}image \S+ cannot .* \(and 3 more\)"):
        look(pets)


def test_40_truncated_png_is_refused(pets: Path) -> None:
    path = pets / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-60])
    with refused(r"image \S+/a/0\.png cannot be read: "):
        look(pets)


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.float32(0.5), "float32 pixels"), (np.int32(70_000), "7[0-9.e+]*"), (np.int32(-1), "-1")],
    ids=["42 float", "42 over 16 bits", "42 negative"],
)
def test_depth_that_is_not_understood_is_refused(
    value: np.generic, said: str, tmp_path: Path
) -> None:
    Image.fromarray(np.full((4, 4), value)).save(tmp_path / "deep.tif")
    with refused(rf"image \S+deep\.tif has .*{said}.*; save it with 8 or 16 unsigned bits"):
        open_image(tmp_path / "deep.tif")


def test_45_first_page_is_taken(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert open_image(tmp_path / "pages.tif").getpixel((1, 1)) == (255, 0, 0)


def test_46_one_pixel_is_an_image(pets: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(pets / "a" / "0.png")
    assert look(pets)[0, :, 3, 3].tolist() == [255, 0, 0]


def test_49_what_is_no_file_is_passed_over(pets: Path) -> None:
    (pets / "a" / "around").symlink_to(pets)
    (pets / "a" / "itself.png").symlink_to(pets / "a" / "itself.png")
    (pets / "a" / "nowhere.png").symlink_to(pets / "gone.png")
    (pets / "a" / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(pets / "a" / "pipe.png")
    assert len(look(pets)) == 12


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"a\nb.png"], ids=["51 bytes", "51 line break"])
def test_odd_file_name_is_fine_and_told_in_one_line(name: bytes, pets: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(pets / "a") + b"/" + name))
    (pets / "a" / "0.png").rename(path)
    target = load_target(f"folder:{pets}")
    assert len(look(pets)) == 12
    assert target.fingerprint() == target.fingerprint()
    [told] = [told for i in range(12) if (told := target.describe(i)) and "\\" in told]
    assert told.isprintable()
    path.write_bytes(b"")
    with refused(r"image \S+ cannot be read"):
        look(pets)


def test_51_class_whose_name_is_no_text_is_refused(pets: Path) -> None:
    (pets / "a").rename(Path(os.fsdecode(os.fsencode(pets) + b"/\xff")))
    with refused(r"target folder:\S+: the name of class folder .* is not printable"):
        load_target(f"folder:{pets}")


BAD_TABLES = {
    "52 missing column": ("image,note\na/0.png,x\n", "no column for the labels"),
    "52 no header": ("a/0.png,x\na/2.png,y\n", "the first line must name the columns"),
    "52 header only": ("image,label\n", "the table has no rows"),
    "52 one row": ("image,label\na/0.png,x\n", "at least 2 classes, found 1"),
    "52 constant": ("image,label\na/0.png,x\na/2.png, x \n", "at least 2 classes, found 1"),
    "52 no label": ("image,label\na/0.png,x\na/2.png,\n", "has no image or no label"),
    "52 blank label": ("image,label\na/0.png,x\na/2.png,  \n", "has no image or no label"),
    "52 odd label": ("image,label\na/0.png,x\na/2.png,\x07\n", "label '.x07' is not printable"),
    "52 twice": ("image,label\na/0.png,x\na/0.png,y\n", "is listed twice"),
    "52 long name": (f"image,label\n{'a' * 300},x\na/0.png,y\n", "1 images are missing"),
    "52 NUL in a name": ("image,label\na\0b.png,x\na/0.png,y\n", "1 images are missing"),
    "52 not text": (b"\xff\xfe\x00", "cannot be read as a table"),
}


@pytest.mark.parametrize(("table", "said"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_table_is_refused(table: str | bytes, said: str, pets: Path) -> None:
    (pets / "t.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    with refused(rf"target csv:\S+t\.csv:? .*{said}"):
        load_target(f"csv:{pets}/t.csv")


def test_52_labels_are_text_and_numbers_are_not_rounded(pets: Path) -> None:
    rows = [f"{p.relative_to(pets)},{kind}" for p, kind in zip(
        sorted(pets.rglob("*.png")), ("1", '"1"', "1.0", "inf", " inf ", "NaN"), strict=False
    )]  # fmt: skip
    (pets / "t.csv").write_text("\n".join(["\ufeffimage,label", *rows]) + "\n")
    assert load_target(f"csv:{pets}/t.csv").classes == ("1", "NaN", "inf")


def test_53_class_that_is_only_tested_is_refused(pets: Path) -> None:
    rows = [f"a/{i}.png,x,train" for i in range(0, 12, 2)]
    rows += [f"b/{i}.png,y,test" for i in range(1, 12, 2)]
    (pets / "t.csv").write_text("\n".join(["image,label,split", *rows]))
    with refused("target csv:.*different classes: 'y' in test only, not in train"):
        load_target(f"csv:{pets}/t.csv")


def archive(path: Path, kind: str) -> None:
    """A tar file with one member that points outside the folder it is unpacked into."""
    name = kind if kind.startswith("/") else {"path": "../outside"}.get(kind, "x")
    member = tarfile.TarInfo(name)
    member.size = 0
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "../outside"
    if kind == "device":
        member.type = tarfile.CHRTYPE
    with tarfile.open(path, "w") as tar:
        tar.addfile(member, io.BytesIO())


def test_55_absolute_path_in_a_downloaded_archive_lands_inside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(tmp_path / "x.tar", str(tmp_path / "elsewhere"))

    def unpacks(*_: object, **__: object) -> None:
        torchvision.datasets.utils.extract_archive(str(tmp_path / "x.tar"), str(tmp_path / "in"))
        raise ValueError("unpacked")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unpacks)
    with refused("target CIFAR10 could not be loaded by torchvision: .*unpacked"):
        load_target("cifar10")
    assert not (tmp_path / "elsewhere").exists()
    assert [p.name for p in (tmp_path / "in").rglob("elsewhere")] == ["elsewhere"]


@pytest.mark.parametrize("kind", ["path", "link", "device"], ids=lambda kind: f"55 {kind}")
def test_downloaded_archive_that_reaches_outside_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(tmp_path / "x.tar", kind)

    def unpacks(*_: object, **__: object) -> None:
        torchvision.datasets.utils.extract_archive(str(tmp_path / "x.tar"), str(tmp_path / "in"))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unpacks)
    with refused("target CIFAR10 could not be loaded by torchvision: .*(outside|device|special)"):
        load_target("cifar10")
    assert not (tmp_path / "outside").exists()


def test_57_folder_that_may_not_be_written_is_fine(photographs: Path, for_nobody: Path) -> None:
    root = Path(shutil.copytree(photographs, for_nobody / "pets"))
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    become_nobody()
    assert len(look(root)) == 12


# --- weights ---------------------------------------------------------------------------------------


def save_weights(path: Path, keep: slice = slice(None)) -> Path:
    state = timm.create_model("test_resnet").state_dict()
    torch.save(dict(list(state.items())[keep]), path)
    return path


def test_60_half_of_the_weights_are_refused(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "half.pt", slice(0, None, 2))
    with refused(r"weights \S+half\.pt belong to another architecture: .*missing"):
        build("test_resnet", f"file:{path}", 2, seed=0)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"


NO_WEIGHTS = {
    "62 truncated": None,
    "62 page": b"<!DOCTYPE html><html><title>404</title></html>",
    "62 pointer": POINTER,
    "empty": b"",
    "zip": b"PK\x03\x04 and then nothing",
    "pickled number": pickle.dumps(3),
    "pickled dictionary": pickle.dumps({"epoch": 3}),
    "header alone": b"\xff" * 8,
}


@pytest.mark.parametrize("content", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_weights_file_is_refused(
    content: bytes | None, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{suffix}"
    whole = save_weights(tmp_path / "whole.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with refused(rf"\S+x\.{suffix} is not a weights file"):
        read_weights(path)


def test_62_weights_that_unpack_to_more_than_they_are_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "spread.pt")
    with refused(r"weights file \S+spread\.pt: w has more values than the file contains"):
        read_weights(tmp_path / "spread.pt")


def test_64_one_changed_byte_changes_the_hash_that_a_resumed_study_compares(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.pt")
    before = weights_sha256(f"file:{path}", "test_resnet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert weights_sha256(f"file:{path}", "test_resnet") != before


def test_64_changed_byte_in_an_installed_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_up").mkdir()
    (tmp_path / "made_up" / "__init__.py").touch()
    file = save_weights(tmp_path / "made_up" / "w.pth")
    told = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")
    about = tmp_path / "made_up-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1\n")
    (about / "RECORD").write_text(f"made_up/__init__.py,,\nmade_up/w.pth,sha256={told},1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wheel = Wheel("made_up", "*.pth", "made-up")
    assert wheel.file() == file
    assert len(wheel.read(file)) == len(timm.create_model("test_resnet").state_dict())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with refused(
        r"weights file \S+w\.pth has changed since it was installed: pip install .* made-up"
    ):
        wheel.read(file)


# --- where it runs ---------------------------------------------------------------------------------


def test_68_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlruns").touch()
    uri = default_tracking_uri(tmp_path / "mlruns")
    with refused("cannot open the tracking store .*mlruns"):
        Experiment(uri, "toy", {})


PRINTS = """
import sys
from harness.core.command_line import run_command
sys.stdin.close()
sys.exit(run_command(lambda: [print("x" * 100) for _ in range(10_000)] and 0))
"""


def test_72_closed_pipe_ends_the_command_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{PRINTS}"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_73_without_a_home_the_cache_is_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert default_folder().parent == Path(tempfile.gettempdir())


def test_74_error_is_told_where_its_letters_are_unknown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stderr", plain)

    def fails() -> int:
        raise UserError("no class 'Kätzchen'")

    assert run_command(fails) == 2
    plain.seek(0)
    assert plain.read() == "error: no class 'K\\xe4tzchen'\n"


@pytest.mark.slow
def test_71_73_74_75_study_runs_in_an_odd_environment(tmp_path: Path) -> None:
    """No threads, no home, locale C, an odd time zone, inside another run of another MLflow."""
    study = """
from harness import Study, TrialSpec, strategies
def space(trial, strategy):
    return TrialSpec("digits", "test_resnet", strategies.LinearProbe(), source="scratch", shots=3,
                     val_shots=3, test_shots=3, resolution=32, epochs=1)
study = Study(compare={"strategy": ["a"]}, space=space, trials=1, repeats=0)
"""
    (tmp_path / "toy.py").write_text(study)
    keep = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "LANG")}
    odd = {"OMP_NUM_THREADS": "abc", "LC_ALL": "C", "TZ": "Australia/Lord_Howe"}
    odd |= {"MLFLOW_RUN_ID": "0" * 32, "MLFLOW_TRACKING_URI": "sqlite:///other.db"}
    odd |= {"XDG_CACHE_HOME": "/proc/none"}
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from harness.study import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--space", "toy.py", "--device", "cpu"],
        cwd=tmp_path,
        env={**keep, **odd},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MLFLOW_TRACKING_URI=sqlite:///other.db is not used" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "mlruns" / "mlflow.db").exists()
    assert not (tmp_path / "other.db").exists()


# --- all of them -----------------------------------------------------------------------------------


def test_every_row_has_its_test() -> None:
    text = Path(__file__).read_text()
    here = {int(n) for n in re.findall(r'"(\d\d) ', text)}
    here |= {
        int(n) for names in re.findall(r"def test((?:_\d\d)+)_", text) for n in names[1:].split("_")
    }
    here |= {55} if 'f"55 ' in text else set()
    assert here | set(ELSEWHERE) | FAULTS == set(range(1, 76))
    for name in ELSEWHERE.values():
        file, test = name.split("::")
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(), name
