"""Train the best cell's configuration again and write it as plain files.

    python -m harness.export --study freeze_depth

model.safetensors loads into the plain network of timm or torchvision; model.json says which, the classes,
how an example is prepared, and the cost of inference; README.md is a model card. `python -m harness.predict`
uses the folder.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.caller import undisturbed
from harness.core.command_line import File, command, escaped_output, program
from harness.core.errors import UserError
from harness.core.study_file import names_of

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
    int8: bool = False,
    max_loss: float = 1.0,
    average: Literal["soup", "wise_ft"] | None = None,
    members: int = 4,
    log_model: bool = False,
    register: str | None = None,
    device: str = "auto",
    tracking_uri: str | None = None,
    target: str | None = None,
) -> Exported:
    """Train the configuration of a study's best cell again, with the seed of its first repeat, and write it
    as plain files, with a model card.

    Probabilities are calibrated by a temperature that is fitted on the validation examples. Size and speed of
    each file are measured on this machine.

    Args:
        study: name of a study that was run.
        cell: label of a cell, e.g. 'linear probe'; the default is that with the best mean validation score.
        space: study file (its code is run), needed where it defines the strategy, backbone or target.
        out: folder to write, by default models/STUDY; an existing model is not overwritten.
        onnx: also write model.onnx (extra onnx).
        int8: also write model.onnx and model.int8.onnx, whose weights and activations have 8 bits, with
            scales from training examples.
        max_loss: percentage points of validation accuracy that model.int8.onnx may lose; if it loses more, it
            is not written, and the exit code is 2.
        average: export an average of weights instead, made with the seed of the first repeat; see
            harness.average.
        members: largest number of networks in a soup.
        log_model: also log the network as a model of MLflow, with its signature.
        register: log the network and register it as a new version of this name in MLflow's model registry.
        device: auto, cpu, cuda or mps.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        target: where the examples are now, e.g. folder:PATH, if they have moved.

    Raises:
        UserError: if there is no such study or cell, the configuration cannot be trained here or cannot be
            written as a plain network, or the files give other predictions than the network.
    """
    if register is not None and (not register or set("/:") & set(register)):
        raise UserError(
            f"--register {register!r}: a name in MLflow's registry cannot contain '/' or ':'"
        )

    if not 0 <= max_loss <= 100:
        raise UserError(f"--max-loss must be from 0 to 100 percentage points, got {max_loss:g}")

    if members < 1:
        raise UserError(f"--members must be at least 1, got {members}")

    from harness.deploy.averages import plan_of_kind
    from harness.deploy.choice import choose
    from harness.deploy.export import Formats, log_to_mlflow, train_and_write
    from harness.deploy.model import require_free
    from harness.deploy.onnx import require_onnx
    from harness.tracking.results import load_result
    from harness.tracking.runs import runs_of
    from harness.training.provenance import clear_caches

    clear_caches()
    folder = Path(out or Path("models", study))
    require_free(folder)
    formats = Formats(onnx or int8, int8, max_loss)
    if formats.onnx:
        require_onnx()
    recorded = load_result(study, tracking_uri)
    chosen, why = choose(recorded.cells, cell)
    tuned = runs_of(study, "tune", tracking_uri) if average else []
    with names_of(space, chosen.repeats[0].tags):
        plan = plan_of_kind(average, chosen, tuned, members, target) if average else None
        done, model, pixels = train_and_write(
            recorded, chosen, why, folder, formats, device, target, plan
        )
    if log_model or register:
        print(log_to_mlflow(done, study, model, pixels, tracking_uri, register))
    return done


def show(done: Exported) -> int:
    """Print how to use it, and return the exit code."""
    command = f"{program('python')} -m harness.predict {shlex.quote(str(done.folder))}"
    print(f"wrote {done.folder}; to use it:\n    {command} {done.noun.upper()}S...")
    if done.problem:
        print(f"error: {done.problem}", file=sys.stderr)
    return 2 if done.problem else 0


main = command("harness.export", export_model, show)

if __name__ == "__main__":
    sys.exit(main())
