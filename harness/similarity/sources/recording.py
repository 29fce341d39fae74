"""Record trained sources, and find those that are still to be trained.

A model is stored as a file (see harness.backbones.recorded), from which trials load it, and as an MLflow run
with a copy of that file, for people.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from harness.backbones import input_named
from harness.backbones.recorded import Model, find_models, write_model
from harness.core.errors import UserError
from harness.core.versions import versions
from harness.data import load_target
from harness.data.cached import Cache
from harness.similarity.sources.objectives import check_objective
from harness.similarity.sources.pretraining import Trained, pretrain, split_source
from harness.similarity.sources.spec import SourceSpec
from harness.tracking.experiment import Experiment
from harness.training.device import Device

EXPERIMENT = "pretraining"
"""Name of the MLflow experiment that holds all source models."""
NOTE = "Source models, trained by python -m harness.pretrain; the weights are among the artifacts."
MEASURED = "metric."
"""Prefix of the names of metrics in the description of a model file."""


def check_sources(sources: Sequence[SourceSpec]) -> None:
    """Check that all sources can be trained, before any training begins.

    Raises:
        UserError: naming the source and what is wrong.
    """
    for spec in sources:
        target = load_target(spec.data)
        split_source(target, spec, 0)
        try:
            check_objective(spec.objective, target.medium.form(input_named(spec.backbone)))
        except UserError as error:
            raise UserError(f"source {spec.name}: {error}") from error
        for number in range(spec.models):
            recorded_model(spec, number)


def pretrain_all(
    sources: Sequence[SourceSpec],
    recorder: Experiment,
    device: Device,
    tags: Mapping[str, str],
    cache: Cache = Cache(),
) -> Iterator[tuple[Model, bool]]:
    """Train and record all models that are not recorded yet: first number 0 of all sources, then number 1,
    ...; gives each, and whether it was trained before.

    Args:
        sources: sources to train.
        recorder: recorder of the experiment EXPERIMENT.
        device: where to compute.
        tags: tags of the environment, set on every run.
        cache: where decoded examples are stored.

    Raises:
        UserError: if a source was recorded with other settings.
        Diverged: if a loss is not finite; nothing is recorded then.
    """
    known = {run["weights_sha256"] for run in recorder.kept("source")}
    for number in range(max(spec.models for spec in sources)):
        for spec in sources:
            if number >= spec.models:
                continue
            model = recorded_model(spec, number)
            resumed = model is not None
            if model is None:
                trained = pretrain(spec, number, device, cache)
                about = _about(spec, number, trained)
                model = write_model(f"{spec.name}.{number}", trained.state, about)
            if not (resumed and model.sha256 in known):
                _record(recorder, model, spec, tags)
            yield model, resumed


def recorded_model(spec: SourceSpec, number: int) -> Model | None:
    """The model, if it was trained before with this spec and these examples; None if it has to be trained,
    also because its file is damaged.

    Raises:
        UserError: if it was recorded with other settings.
    """
    name = f"{spec.name}.{number}"
    try:
        (model,) = find_models(name)
        model.read()
    except UserError:
        return None
    wanted = _identity(spec, number)
    changes = [
        f"{k} was {model.about.get(k, 'absent')}, is {v}"
        for k, v in wanted.items()
        if model.about.get(k) != v
    ]
    if changes:
        raise UserError(
            f"recorded source {name!r} was trained with other settings: {'; '.join(changes[:3])}; give the "
            f"source another name, or delete {model.path}"
        )
    return model


def _identity(spec: SourceSpec, number: int) -> dict[str, str]:
    """Everything that determines a model."""
    data = load_target(spec.data).fingerprint()
    own = {**spec.flat(), "number": number, "seed": spec.seed(number), "data_sha256": data}
    return {k: str(v) for k, v in own.items()}


def _about(spec: SourceSpec, number: int, trained: Trained) -> dict[str, str]:
    counts = {
        "classes": trained.classes,
        "images": trained.images,
        "val_images": trained.val_images,
        "recorded": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    metrics = {f"{MEASURED}{k}": repr(v) for k, v in trained.metrics.items()}
    return {**_identity(spec, number), **{k: str(v) for k, v in counts.items()}, **metrics}


def _record(recorder: Experiment, model: Model, spec: SourceSpec, tags: Mapping[str, str]) -> None:
    about = model.about
    recorder.keep(
        model.name,
        {**spec.flat(), "number": about["number"], "seed": about["seed"]},
        {
            "phase": "source",
            "outcome": "complete",
            "source": spec.name,
            "model": model.name,
            "weights_sha256": model.sha256,
            "data_sha256": about["data_sha256"],
            "classes": about["classes"],
            **tags,
            **{f"env.{package}": v for package, v in versions("torch", "torchvision").items()},
        },
        {
            "images": float(about["images"]),
            "val_images": float(about["val_images"]),
            **metrics_of(model),
        },
        {"weights.safetensors": model.path},
    )


def metrics_of(model: Model) -> dict[str, float]:
    """The metrics that were measured when the model was trained."""
    return {
        k.removeprefix(MEASURED): float(v) for k, v in model.about.items() if k.startswith(MEASURED)
    }
