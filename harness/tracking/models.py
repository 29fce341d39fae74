"""Log a network as an MLflow model with signature and input example, and optionally register it.

python -m harness.export --study freeze_depth --log-model --register digits
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import torch
from mlflow.models import Model, infer_signature
from torch import nn

from harness.backbones import as_graph
from harness.core.errors import UserError, first_line, without_password
from harness.core.versions import versions
from harness.tracking.experiment import Experiment

LOGGERS = ("mlflow", "mlflow.models.model", "mlflow.pytorch", "torch.export")


@dataclass(frozen=True)
class LoggedModel:
    """A logged model.

    Attributes:
        uri: argument for mlflow.pytorch.load_model or mlflow.pyfunc.load_model.
        run_id: id of its run, a child of the study's run.
        version: its version in the registry; "" if it was not registered.
    """

    uri: str
    run_id: str
    version: str


def log_model(
    network: nn.Module,
    images: torch.Tensor,
    files: list[Path],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    tracking_uri: str,
    register: str | None = None,
) -> LoggedModel:
    """Log a network as a run of its own under its study's.

    Args:
        network: in eval mode on the CPU; (n, 3, s, s) -> (n, classes) logits.
        images: (n, 3, s, s) normalised, n at least 2: the input example, of which the first two are kept.
        files: kept beside it: how an image is prepared, the classes.
        tags: of the run; "study" names the experiment.
        metrics: of the run.
        tracking_uri: of the study's store.
        register: name in the model registry; None registers nothing.

    Raises:
        UserError: if torch.export or the store refuses.
    """
    example = images[:2].contiguous()
    with torch.inference_mode():
        signature = infer_signature(example.numpy(), network(example).numpy())
    try:
        experiment = Experiment(tracking_uri, tags["study"], {})
        parents = [run.info.run_id for run in experiment.search("tags.kind = 'study'")]
        # A run of kind "model" is not a trial and therefore in no comparison.
        under = {"mlflow.parentRunId": parents[0]} if parents else {}
        tags = {**under, "kind": "model", **tags}
        with (
            experiment.run(f"model {tags['cell']}", tags, metrics) as run_id,
            _quiet_at(tracking_uri),
        ):
            found = Model.log(
                artifact_path=None,
                name="model",
                flavor=mlflow.pytorch,
                run_id=run_id,
                registered_model_name=register,
                pytorch_model=as_graph(network, example),
                signature=signature,
                input_example=example.numpy(),
                extra_files=[str(file) for file in files],
                # If MLflow inferred this, it would take ten times as long as everything else.
                pip_requirements=[f"{k}=={v}" for k, v in versions("torch", "mlflow").items()],
                serialization_format="pt2",
            )
    except Exception as error:  # MLflow, its stores and torch.export raise many kinds
        raise UserError(
            f"the model could not be logged to {without_password(tracking_uri)}: "
            f"{first_line(error)}"
        ) from error
    return LoggedModel(found.model_uri, run_id, str(found.registered_model_version or ""))


@contextmanager
def _quiet_at(tracking_uri: str) -> Iterator[None]:
    """Set MLflow's global store inside the block, because Model.log knows no other, and silence its
    messages."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    levels = [logging.getLogger(n).level for n in LOGGERS]
    mlflow.set_tracking_uri(tracking_uri)
    try:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own, on torch's internals
            yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: as if it had not been set
        for name, level in zip(LOGGERS, levels, strict=True):
            logging.getLogger(name).setLevel(level)
