"""Train the best cell's configuration again and write it as plain files.

    python -m harness.export --study freeze_depth

model.safetensors loads into the plain network of timm or torchvision; model.json says which, the classes,
and how an image is prepared. `python -m harness.predict` uses the folder.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import File, command, escaped_output, program
from harness.core.errors import UserError
from harness.core.study_file import names_of, study_path

if TYPE_CHECKING:
    from harness.deploy.export import Exported


@undisturbed()
@escaped_output()
def export_model(
    study: str,
    *,
    cell: str | None = None,
    space: File | None = None,
    out: File | None = None,
    onnx: bool = False,
    log_model: bool = False,
    register: str | None = None,
    device: str = "auto",
    tracking_uri: str | None = None,
    target: str | None = None,
) -> Exported:
    """Train the configuration of a study's best cell again, with the seed of its first repeat, and write it
    as plain files.

    Args:
        study: name of a study that was run.
        cell: label of a cell, e.g. 'linear probe'; the default has the best mean validation score.
        space: study file (its code is run), needed where it defines the strategy, backbone or target.
        out: folder to write, by default models/STUDY; a model that is there is not overwritten.
        onnx: also write model.onnx (extra onnx).
        log_model: also log the network as a model of MLflow, with its signature.
        register: and register it as a new version of this name in MLflow's model registry.
        device: auto, cpu, cuda or mps.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        target: where its images are now, e.g. folder:PATH; by default they are looked for where they were,
            and where equal ones have been seen since.

    Raises:
        UserError: if there is no such study or cell, the configuration cannot be trained here or cannot be
            written as a plain network, or the files do not predict what the network did.
    """
    if register is not None and (not register or set("/:") & set(register)):
        raise UserError(f"--register {register!r}: a name in MLflow's registry holds no '/' or ':'")

    from harness.deploy.choice import choose
    from harness.deploy.export import log_to_mlflow, train_and_write
    from harness.deploy.model import require_free
    from harness.deploy.onnx import require_onnx
    from harness.tracking.results import cell_records
    from harness.tracking.runs import metric_of, runs_of
    from harness.training.provenance import clear_caches

    clear_caches()
    folder = Path(out or Path("models", study))
    require_free(folder)
    if onnx:
        require_onnx()
    repeats = runs_of(study, "repeat", tracking_uri)
    chosen, why = choose(cell_records(repeats, metric_of(study, tracking_uri)), cell)
    file = None if space is None else study_path(str(space))
    with names_of(file, chosen.repeats[0].run.tags):
        done, model, pixels = train_and_write(study, chosen, why, folder, onnx, device, target)
    if log_model or register:
        print(log_to_mlflow(done, study, model, pixels, tracking_uri, register))
    return done


def show(done: Exported) -> None:
    """Print how to use it."""
    predict = f"{program('python')} -m harness.predict {shlex.quote(str(done.folder))} IMAGES..."
    print(f"wrote {done.folder}; to use it:\n    {predict}")


main = command("harness.export", export_model, show)

if __name__ == "__main__":
    sys.exit(main())
