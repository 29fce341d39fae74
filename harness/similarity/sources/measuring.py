"""Compute all measures for the pairs of source and target of a study, using only training examples of the
targets.

Distances between data sets are computed in one embedding per kind of examples, which does not depend on the
sources: the features of a `Reference`, then 64 principal axes of the same number of examples from every data
set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.backbones import build, weights_sha256
from harness.backbones.recorded import PREFIX, Model, find_models
from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer, LinearProbe
from harness.core.study import Cell
from harness.data import Examples, load_target, read_examples, split_indices
from harness.data.cached import Cache
from harness.data.expressions import roots
from harness.data.media import Images, Medium, Sounds, Texts
from harness.similarity import (
    MEASURES,
    Measurement,
    log_source_size,
    median_bandwidth,
    needs,
    principal_axes,
    source_accuracy,
)
from harness.similarity.sources.pretraining import split_source
from harness.similarity.sources.recording import metrics_of
from harness.similarity.sources.spec import SourceSpec, spec_from
from harness.training.audit import Audit
from harness.training.device import Device
from harness.training.network import Network

AXES = 64
MOST = 500
"""Largest number of examples used of a data set."""
SEED = 0
NO_DATA = "the examples that the source was trained on are not available"
NO_HEAD = "the source has no usable classifier"
Data = tuple[str, tuple[int, ...]]
"""Name of a data set, and positions of the examples used."""


@dataclass(frozen=True)
class Reference:
    """A network whose features are a common embedding.

    Attributes:
        backbone, source, resolution: as in TrialSpec.
        form: how examples are presented to it.
    """

    backbone: str
    source: str
    resolution: int | None
    form: str

    def __str__(self) -> str:
        return f"{self.backbone} {self.source} {self.form}, {AXES} principal axes"


REFERENCES: dict[type[Medium], Reference] = {
    Images: Reference("tf_efficientnet_lite0", "imagenet", 64, "at 64 px"),
    Sounds: Reference("tf_efficientnet_lite0", "imagenet", 64, "on spectrograms at 64 px"),
    Texts: Reference("minilm", "pretrained", None, "mean over tokens"),
}
"""What the examples are -> the network in whose features they are compared."""


@dataclass(frozen=True)
class Pair:
    """A source and a target of a study.

    Attributes:
        source, target: labels of the factors of these names, if the study compares them; else the names in
            the TrialSpec.
        spec: spec of a trial from this source to this target, with the largest training set.
        model: first model of the source, if it was trained with this harness.
        most: largest number of examples used of each side.
    """

    source: str
    target: str
    spec: TrialSpec
    model: Model | None
    most: int = MOST

    @property
    def name(self) -> str:
        """The pair as "source -> target"."""
        return f"{self.source} -> {self.target}"

    @property
    def reference(self) -> Reference:
        """The network in whose features the source's data and the target are compared."""
        return REFERENCES[type(load_target(self.spec.target).medium)]

    @property
    def target_data(self) -> Data:
        """The training examples of the target."""
        train = split_indices(load_target(self.spec.target), self.spec).train
        return self.spec.target, _some(train, self.most)

    @property
    def source_data(self) -> Data | None:
        """The examples that the first model of the source was trained on; None if it was not trained, or not
        with this harness."""
        if self.model is None:
            return None
        spec, train = _learned_from(self.model)
        return (spec.data, _some(train, self.most)) if spec.steps else None

    def identity(self) -> str:
        """Hash of everything that determines the measures."""
        spec, (target, rows) = self.spec, self.target_data
        model = self.model
        weights = model.sha256 if model else weights_sha256(spec.source, spec.backbone)
        parts = (
            *(spec.backbone, spec.source, spec.resolution, spec.batch_norm, spec.seed),
            str(self.reference),
            *(weights, load_target(target).fingerprint(), rows),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def pairs_of(drawn: Iterable[tuple[Cell, TrialSpec]]) -> list[Pair]:
    """Every pair of a source and a target that a study compares.

    Args:
        drawn: each cell of the study with the spec of its first trial.

    Raises:
        UserError: if a source is not recorded.
    """
    found: dict[tuple[str, str, str], TrialSpec] = {}
    for cell, spec in drawn:
        key = (*labels_of(cell, spec.flat()), spec.backbone)
        found[key] = max(found.get(key, spec), spec, key=_rank)
    return [Pair(s, t, spec, first_model(spec.source)) for (s, t, _), spec in found.items()]


def labels_of(cell: Mapping[str, str], flat: Mapping[str, object]) -> tuple[str, str]:
    """Labels of the source and the target of a trial.

    Args:
        cell: factor -> label; it may have further entries.
        flat: entries of the trial's spec.
    """
    source = cell.get("source", cell.get("backbone", str(flat["source"])))
    return source, cell.get("target", str(flat["target"]))


def _rank(spec: TrialSpec) -> tuple[float, bool]:
    return spec.shots or math.inf, spec.batch_norm == "reestimate"


def first_model(source: str) -> Model | None:
    """The first model of a recorded source; None for other sources."""
    return find_models(source)[0] if source.startswith(PREFIX) else None


def shared_images(pair: Pair) -> int:
    """Number of the source's examples that are also in the target, in any of its parts."""
    if pair.model is None:
        return 0
    spec, train = _learned_from(pair.model)
    seen = set(roots(load_target(spec.data), train))
    target = load_target(pair.spec.target)
    return len(seen & set(roots(target, np.arange(len(target.labels)))))


def _learned_from(model: Model) -> tuple[SourceSpec, np.ndarray]:
    """The spec of a recorded model, and the positions of its training examples in its data."""
    spec, number = spec_from(model.about)
    return spec, split_source(load_target(spec.data), spec, number).train


class Measuring:
    """Computes the measures of pairs; each data set is embedded only once.

    Args:
        pairs: all pairs of a study, because the axes and the bandwidth depend on them.
        device: where to compute.
        cache: where examples and outputs of networks are stored.
    """

    def __init__(self, pairs: Sequence[Pair], device: Device, cache: Cache) -> None:
        self._device, self._cache = device, cache
        self._embedded: dict[tuple[Reference, Data], np.ndarray] = {}
        self._bandwidth: dict[Reference, float] = {}
        for reference in dict.fromkeys(pair.reference for pair in pairs if pair.model):
            own = [pair for pair in pairs if pair.reference == reference]
            sets = {p.target_data for p in own} | {d for p in own if (d := p.source_data)}
            raw = {data: self._features(reference, data) for data in sorted(sets)}
            least = min(len(x) for x in raw.values())
            rng = np.random.default_rng(SEED)
            equal = np.concatenate([x[rng.permutation(len(x))[:least]] for x in raw.values()])
            axes = principal_axes(equal, AXES)
            self._embedded |= {(reference, data): x @ axes for data, x in raw.items()}
            self._bandwidth[reference] = median_bandwidth(equal @ axes, SEED)

    def measure(self, pair: Pair, resamples: int | None = None) -> Iterator[Measurement]:
        """All measures that rank sources, and the two baselines that need no other target.

        Args:
            pair: one of the pairs given to the constructor.
            resamples: number of resamples of each interval; 0 for no intervals, None for each measure's
                default.
        """
        options = {"seed": SEED} | ({} if resamples is None else {"resamples": resamples})
        given = self._given(pair)
        for name, measure in MEASURES.items():
            names = needs(measure)
            if any(name not in given for name in names):
                reason = NO_DATA if "source" in names else NO_HEAD
                yield Measurement(name, math.nan, 0, 0, reason=reason)
                continue
            yield measure(**{name: given[name] for name in names}, **options)
        yield from baselines(pair.model)

    def _given(self, pair: Pair) -> dict[str, Any]:
        target = pair.target_data
        given: dict[str, Any] = {"labels": _labels(target)}
        given["features"] = features(pair.spec, target, self._device, self._cache)
        if (source := pair.source_data) is not None:
            reference = pair.reference
            given |= {"source": self._embedded[reference, source]}
            given |= {"target": self._embedded[reference, target]}
            given |= {"source_labels": _labels(source), "bandwidth": self._bandwidth[reference]}
        if pair.model is not None and pair.model.about["objective"] == "supervised":
            theta = probabilities(pair, self._device, self._cache)
            given |= {"probabilities": theta, "predicted": theta.argmax(1)}
        return given

    def _features(self, reference: Reference, data: Data) -> np.ndarray:
        spec = TrialSpec(
            data[0],
            reference.backbone,
            FeatureTransfer(),
            source=reference.source,
            resolution=reference.resolution,
        )
        return features(spec, data, self._device, self._cache)


def baselines(model: Model | None) -> Iterator[Measurement]:
    """The baselines that do not use the target."""
    if model is None:
        for name in ("source_accuracy", "log_source_size"):
            reason = "the source was not trained with this harness"
            yield Measurement(name, math.nan, 0, 0, reason=reason)
        return
    accuracy, classes = metrics_of(model).get("val_accuracy"), int(model.about["classes"])
    if accuracy is None:
        reason = "the source was trained without labels"
        yield Measurement("source_accuracy", math.nan, 0, 0, reason=reason)
    else:
        yield source_accuracy(accuracy, int(model.about["val_images"]), classes)
    yield log_source_size(int(model.about["images"]))


def features(spec: TrialSpec, data: Data, device: Device, cache: Cache) -> np.ndarray:
    """(n, d) inputs of the head for these examples, from the network with which a trial would start.

    Statistics of batch norms are those of the source, or averaged over these examples if the spec says so.
    """
    strategy = LinearProbe() if spec.batch_norm == "reestimate" else FeatureTransfer()
    network, examples = _frozen(replace(spec, strategy=strategy), data, device, cache)
    found: np.ndarray = network.features(examples).numpy()
    return found


def probabilities(pair: Pair, device: Device, cache: Cache) -> np.ndarray:
    """(n, source classes) probabilities of the source's own head for the target's training examples."""
    assert pair.model is not None
    spec = replace(pair.spec, strategy=FeatureTransfer(), batch_norm="train")
    network, examples = _frozen(spec, pair.target_data, device, cache, pair.model)
    theta: np.ndarray = network.log_probabilities(examples).double().softmax(1).numpy()
    return theta


def _frozen(
    spec: TrialSpec, data: Data, device: Device, cache: Cache, head_of: Model | None = None
) -> tuple[Network, Examples]:
    """The network with all groups frozen, so that their outputs are cached, and the examples.

    Args:
        spec: of a trial that would start with it.
        data: the examples.
        device: where to compute.
        cache: where examples and outputs are stored.
        head_of: the model whose head it has; None for a new head.
    """
    spec, model = replace(spec, augment="none", views=None), first_model(spec.source)
    source = spec.source if model is None else f"{PREFIX}{model.name}"
    outputs = 2 if head_of is None else int(head_of.about["classes"])
    place = device.torch_device
    backbone = build(spec.backbone, source, outputs, spec.seed, place, spec.resolution)
    if head_of is not None:
        backbone.model.load_state_dict(head_of.read())
    form = load_target(data[0]).medium.form(backbone.input)
    network = Network(replace(backbone, input=form), spec, device, cache)
    examples = read_examples(*data, form, cache)
    if spec.batch_norm == "reestimate":
        network.reestimate_statistics(examples)
    audit = Audit(backbone.groups, frozenset())
    scales = (None,) * len(backbone.groups)
    audit.begin_epoch(scales)
    network.freeze(scales, audit.frozen_digest)
    return network, examples


def _some(rows: np.ndarray, most: int) -> tuple[int, ...]:
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(SEED).permutation(rows)[:most])
    return tuple(rows.tolist())


def _labels(data: Data) -> np.ndarray:
    labels: np.ndarray = load_target(data[0]).labels[list(data[1])]
    return labels


def as_run(pair: Pair, found: Sequence[Measurement]) -> tuple[dict[str, object], dict[str, float]]:
    """Tags and metrics of the MLflow run for a pair."""
    tags: dict[str, object] = {
        "phase": "similarity",
        "source": pair.source,
        "target": pair.target,
        "backbone": pair.spec.backbone,
        "model": pair.model.name if pair.model else "",
        "embedding": str(pair.reference),
        "seed": SEED,
        "pair_sha256": pair.identity(),
    }
    metrics: dict[str, float] = {}
    for one in found:
        if one.reason:
            tags[f"reason.{one.name}"] = one.reason
        if one.refused:
            continue
        tags[f"better.{one.name}"] = one.better
        more = {"n": one.n, "low": one.low, "high": one.high, "d": one.d, "p": one.p}
        metrics[f"similarity.{one.name}"] = one.value
        metrics |= {f"similarity.{one.name}.{k}": v for k, v in more.items()}
    return tags, metrics
