"""Train the best cell's configuration again and write it as plain files.

    python -m harness.export --study freeze_depth

model.safetensors loads into the plain network of timm or torchvision; model.json says which, the classes,
and how an image is prepared. `python -m harness.predict` uses the folder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, add_tracking_uri, escaped_output, program, run_command
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.spec import TrialSpec
from harness.core.study_file import names_of, study_path

if TYPE_CHECKING:
    import torch

    from harness.core.results import Predictions
    from harness.deploy.model import Model
    from harness.tracking.results import CellRecord
    from harness.tracking.runs import Kept
    from harness.training.loop import Fit

ALLOWED = 1e-3
"""Largest difference of a probability between the network that was trained and the files read back."""
SHOWN_TO_ONNX = 32


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        cell: label of the cell.
        why: it was chosen.
        val_accuracy, test_accuracy: of the network in the folder, as trained now.
    """

    folder: Path
    cell: str
    why: str
    val_accuracy: float
    test_accuracy: float

    def _repr_html_(self) -> str:
        row = (self.cell, f"{self.val_accuracy:.1%}", f"{self.test_accuracy:.1%}", self.why)
        columns = ("cell", "validation", "test", "why")
        return as_table(f"model in {self.folder}", columns, [row])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.export",
        description="Train a study's best configuration again and write it as plain files.",
    )
    parser.add_argument("--study", required=True, metavar="NAME", help="study (MLflow experiment)")
    parser.add_argument(
        "--cell", help="its label, e.g. 'linear probe' (default: best mean validation accuracy)"
    )
    parser.add_argument(
        "--space",
        metavar="FILE",
        type=study_path,
        help="study file (its code is run); needed where it defines the strategy, backbone or target",
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: models/NAME)")
    parser.add_argument("--onnx", action="store_true", help="also model.onnx (extra onnx)")
    parser.add_argument(
        "--log-model", action="store_true", help="also as a model of MLflow, with signature"
    )
    parser.add_argument(
        "--register", metavar="NAME", help="and as a new version of NAME in MLflow's model registry"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_tracking_uri(parser)
    parser.add_argument(
        "--target", help="where its images lie now (default: where they were, or were seen since)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    a = arguments
    done = export_model(
        a.study,
        a.cell,
        a.out,
        a.onnx,
        a.device,
        a.tracking_uri,
        a.log_model,
        a.register,
        a.space,
        a.target,
    )
    command = f"{program('python')} -m harness.predict {shlex.quote(str(done.folder))} IMAGES..."
    print(f"wrote {done.folder}; to use it:\n    {command}")
    return 0


@undisturbed()
@escaped_output()
def export_model(
    study: str,
    cell: str | None = None,
    out: str | Path | None = None,
    onnx: bool = False,
    device: str = "auto",
    tracking_uri: str | None = None,
    log_model: bool = False,
    register: str | None = None,
    space: str | Path | None = None,
    target: str | None = None,
) -> Exported:
    """Train a cell's chosen configuration again, with the seed of its first repeat, and write it.

    Args:
        study: name of a study that was run.
        cell: its label; None takes the one of highest mean validation accuracy.
        out: folder; None is models/STUDY. A model that is there is not overwritten.
        onnx: also write model.onnx.
        device: "auto", "cpu", "cuda" or "mps".
        tracking_uri: where the study is recorded; None is the database in ./mlruns.
        log_model: also log the network as a model of MLflow.
        register: and register it there under this name.
        space: study file, or name of a shipped study, that defines its strategy, backbone or target, where
            one does; its code is run.
        target: where its images lie now, e.g. "folder:PATH"; None finds them where they were, or where equal
            ones were seen since.

    Raises:
        UserError: if there is no such study or cell, the configuration cannot be trained here or cannot be
            written as a plain network, or the files do not predict what the network did.
    """
    if register is not None and (not register or set("/:") & set(register)):
        raise UserError(f"--register {register!r}: a name in MLflow's registry holds no '/' or ':'")

    from harness.deploy.choice import choose
    from harness.deploy.model import require_free
    from harness.deploy.onnx import require_onnx
    from harness.tracking.results import cell_records
    from harness.tracking.runs import runs_of
    from harness.training.provenance import clear_caches

    clear_caches()
    folder = Path(out or Path("models", study))
    require_free(folder)
    if onnx:
        require_onnx()
    chosen, why = choose(cell_records(runs_of(study, "repeat", tracking_uri)), cell)
    file = None if space is None else study_path(str(space))
    with names_of(file, chosen.repeats[0].run.tags):
        done, model, pixels = _train_and_write(study, chosen, why, folder, onnx, device, target)
    if log_model or register:
        print(_log(done, study, model, pixels, tracking_uri, register))
    return done


def _train_and_write(
    study: str,
    chosen: CellRecord,
    why: str,
    folder: Path,
    onnx: bool,
    device: str,
    target: str | None,
) -> tuple[Exported, Model, torch.Tensor]:
    """The folder, the model read back from it, and images as it takes them."""
    from harness.data import find_again
    from harness.data.cached import Cache, default_folder
    from harness.deploy.model import open_model, staging
    from harness.deploy.onnx import write_onnx
    from harness.training.device import resolve_device
    from harness.training.loop import start

    kept = chosen.repeats[0]
    spec = TrialSpec.from_flat(kept.run.params)
    spec = replace(
        spec, target=target or find_again(spec.target, kept.run.tags.get("sha256.images", ""))
    )
    cache = Cache(default_folder())
    if spec.strategy.classifier == "knn":
        raise UserError(
            f"cell “{chosen.cell}” ({why}) classifies by nearest neighbours, which cannot be written as a "
            "network; name another by --cell"
        )
    fit = start(spec, resolve_device(device), Cache(None, 0) if cache.problem() else cache)
    print(f"cell “{chosen.cell}”: {why}")
    val_accuracy = [epoch.val_accuracy for epoch in fit][-1]
    result = fit.finish(test=True)
    test_accuracy = result.metrics["test_accuracy"]
    print(_agreement(kept, val_accuracy, test_accuracy))
    assert result.predictions is not None
    with staging(folder) as there:  # read back before it is where anyone would use it
        _write_folder(there, study, chosen.cell, kept, fit, (val_accuracy, test_accuracy))
        model = open_model(there)
        pixels = _pixels(spec, model, result.predictions)
        print(_read_back(model, pixels, result.predictions, spec))
        if onnx:
            worst = write_onnx(model, there, pixels[:SHOWN_TO_ONNX])
            shown = len(pixels[:SHOWN_TO_ONNX])
            print(f"model.onnx: logits of {shown} images differ by at most {worst:.1e}")
    return Exported(folder, chosen.cell, why, val_accuracy, test_accuracy), model, pixels


def _write_folder(
    folder: Path, study: str, cell: str, kept: Kept, fit: Fit, accuracies: tuple[float, float]
) -> None:
    from harness.data import load_target
    from harness.deploy.model import describe, plain_network, write

    spec, names = fit.spec, ("val_accuracy", "test_accuracy")
    size = spec.resolution or fit.backbone.input.resolution
    about = {
        **describe(fit.backbone, spec.backbone, load_target(spec.target).classes, size),
        "study": study,
        "cell": cell,
        "run_id": kept.run_id,
        "recorded": {name: kept.run.metrics.get(name) for name in names},
        "exported": dict(zip(names, accuracies, strict=True)),
        "trial": spec.flat(),
    }
    write(folder, plain_network(fit.backbone, fit.classifier), about)


def _log(
    done: Exported,
    study: str,
    model: Model,
    pixels: torch.Tensor,
    tracking_uri: str | None,
    register: str | None,
) -> str:
    """Log it as a model of MLflow; says where it is."""
    from harness.core.stores import default_tracking_uri
    from harness.deploy.model import ABOUT
    from harness.tracking.models import log_model

    logged = log_model(
        model.network,
        model.prepare(pixels[:2]),
        [done.folder / ABOUT],
        {"study": study, "cell": done.cell},
        {"val_accuracy": done.val_accuracy, "test_accuracy": done.test_accuracy},
        tracking_uri or default_tracking_uri(),
        register,
    )
    version = f", registered as {register} version {logged.version}" if register else ""
    return f"logged to MLflow{version}: mlflow.pytorch.load_model({logged.uri!r})"


def _agreement(kept: Kept, val_accuracy: float, test_accuracy: float) -> str:
    """Whether training again gave what was recorded, in words."""
    now = {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
    then = {k: kept.run.metrics[k] for k in now if k in kept.run.metrics}
    shown = f"validation {val_accuracy:.1%}, test {test_accuracy:.1%}"
    if then and all(now[k] == value for k, value in then.items()):
        return f"trained again: {shown}, exactly as recorded"
    recorded = ", ".join(f"{k.partition('_')[0]} {value:.1%}" for k, value in then.items())
    where = ", ".join(kept.run.tags.get(k, "?") for k in ("env.hardware", "env.torch"))
    return (
        f"trained again: {shown}; NOT as recorded ({recorded}, on {where}, "
        f"{kept.run.tags.get('threads', '?')} threads): another machine, version, number of threads or data"
    )


def _pixels(spec: TrialSpec, model: Model, predictions: Predictions) -> torch.Tensor:
    """The test images, as the model takes them."""
    from harness.data import read_examples

    prepared = model.about["preprocessing"]
    part = tuple(predictions.example.tolist())
    return read_examples(
        spec.target, part, prepared["resolution"], prepared["interpolation"]
    ).images


def _read_back(
    model: Model, pixels: torch.Tensor, predictions: Predictions, spec: TrialSpec
) -> str:
    """Whether the files predict what the network did, in words.

    Raises:
        UserError: if they do not.
    """
    import torch

    found = model.probabilities(pixels)
    labels = torch.from_numpy(predictions.label)
    given = found.gather(1, labels[:, None])[:, 0]
    worst = float((given - torch.from_numpy(predictions.probability)).abs().max())
    agree = int((found.argmax(1).numpy() == predictions.predicted).sum())
    said = (
        f"read back: {agree} of {len(labels)} test predictions are the same, probabilities differ by at "
        f"most {worst:.1e}"
    )
    if spec.precision == "bfloat16":
        return f"{said} (the network was trained in bfloat16 and is written in float32)"
    if not worst <= ALLOWED:
        raise UserError(f"the files are not the network that was trained: {said}")
    return said


if __name__ == "__main__":
    sys.exit(main())
