"""Specification of a trial: the vocabulary that all other modules share.

All values are frozen. A study file builds a `Study` (harness.core.study), whose `space` function returns a
`TrialSpec`. The results of a trial are in `harness.core.results`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from harness.core.errors import UnknownName, UserError, require_count
from harness.core.folds import Fold
from harness.core.strategies import Scalar, Strategy, names, to_flat

Augmentation = Literal[
    "none",
    "flip_crop",
    "rotation",
    "trivial",
    "rand",
    "mixup",
    "cutmix",
    "time_shift",
    "spec_augment",
    "token_dropout",
]
Head = Literal["linear", "mlp", "attentive"]
LONGEST_PARAMETER = 6000
"""Largest number of characters of a parameter that MLflow stores."""


def derive_seed(*parts: object) -> int:
    """A 31-bit seed for the random stream named by `parts`; the same parts always give the same seed."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


SHIFTS = ("noise", "blur", "contrast", "patch_shuffle", "label_shift")
"""Shifted test sets of images."""
SOUND_SHIFTS = ("snr20", "snr10", "snr0", "band_limit", "label_shift")
"""Shifted test sets of sounds."""
TEXT_SHIFTS = ("typos", "word_dropout", "label_shift")
"""Shifted test sets of texts."""
DEFAULT_LR = {"adamw": 1e-3, "sgd": 1e-2}
"""Usual learning rates for fine-tuning: torch's default for AdamW, ten times that for SGD with momentum."""


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides one training run; equal specs give equal runs.

    Attributes:
        target: data set to adapt to, e.g. "digits" or "folder:PATH" (see harness.data).
        backbone: name of a timm model, "torchvision:NAME", "small_cnn"; for sounds also "resemblyzer",
            "small_lstm" or "small_gru"; for texts "minilm", "text_lstm" or "text_gru"; for both
            "transformers:NAME" (see harness.backbones.transformers_models).
        strategy: which layer groups train, and how fast, at each epoch.
        source: where the weights come from: "imagenet", "pretrained" (of networks on sounds or texts),
            "scratch", "file:PATH" or "recorded:NAME".
        shots: largest number of training examples per class; None takes all examples that are not used for
            validation or test.
        val_shots: largest number of validation examples per class; None takes the official validation set if
            there is one, else 20 % of the examples that are not test examples. With `fold` it must be None.
        test_shots: largest number of test examples per class; None takes the official test set if there is
            one, else 25 % of the examples.
        exact_shots: refuse classes that have fewer examples than `shots`, `val_shots` and `test_shots` ask
            for, so that every class has the same number of examples.
        head: what is trained on the features of the network: "linear"; "mlp", with a hidden layer as wide as
            the features; or "attentive", which learns to weigh tokens or positions (Efficient Probing; see
            harness.backbones.heads).
        depth: number of leading layer groups that are used, so that the head reads an earlier output; None
            takes the whole network.
        resolution: side of the square input in pixels; None takes the backbone's own.
        epochs: passes over the training examples.
        batch_size: examples per step.
        augment: how training images are varied (see harness.inputs.augment), or sounds (see
            harness.inputs.sound_augment), or texts (see harness.inputs.tokens).
        views: number of seeded variants of each example. Each epoch uses the next one, so that the outputs of
            frozen layers can be cached; None draws a new variant at every step.
        batch_norm: statistics of batch norms. Frozen groups always keep those of the source, and so do all
            groups with "frozen". With "train", groups that train use those of the batch; "auto" does so for
            groups that train from the first epoch, and groups that are unfrozen later keep those with which
            the head was trained (measured in studies/batch_norm.py). "reestimate" averages them once over
            the training examples, then fixes them.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        lr: peak learning rate of a group whose scale is 1; None takes the optimiser's usual rate.
        schedule: "cosine", "constant" or "one_cycle" (see harness.training.optimizer.Schedule).
        weight_decay: decoupled for AdamW; never on norms, biases and other 1-D parameters.
        warmup: share of all steps in which a group's rate rises linearly after it is unfrozen.
        label_smoothing: share of the target distribution spread over all classes.
        class_weights: weights of the classes in the loss, "none" or "balanced" (n / (k n_c) for a class with
            n_c of the n training examples of k classes, as in scikit-learn).
        sampling: "none" (each epoch takes each training example once) or "balanced" (it draws as many
            examples with replacement, so that each class is equally likely).
        precision: of activations, "float32" or "bfloat16" (torch.autocast; parameters stay float32).
        compile: run the network through torch.compile.
        shifts: names of additional, shifted test sets to score, joined by "+" (see harness.data.shift).
        seed: decides the training and validation examples, the initialisation of the head and the order of
            batches.
        fold: which fold of the examples that are not test examples is the validation part, e.g. "2/5 of
            shuffle 1234"; training examples are drawn from the other folds. Set by the harness, as the seed
            is; "" for a single split (see harness.core.folds).
    """

    target: str
    backbone: str
    strategy: Strategy
    source: str = "imagenet"
    shots: int | None = None
    val_shots: int | None = None
    test_shots: int | None = None
    exact_shots: bool = False
    head: Head = "linear"
    depth: int | None = None
    resolution: int | None = None
    epochs: int = 10
    batch_size: int = 32
    augment: Augmentation = "none"
    views: int | None = None
    batch_norm: Literal["auto", "train", "frozen", "reestimate"] = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = None  # type: ignore[assignment] # replaced by the optimiser's default
    schedule: Literal["cosine", "constant", "one_cycle"] = "cosine"
    weight_decay: float = 0.01
    warmup: float = 0.1
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["none", "balanced"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    shifts: str = ""
    seed: int = 0
    fold: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise UserError(
                f"TrialSpec: strategy must be one of {', '.join(sorted(names()))} "
                f"from harness.core.strategies, got {self.strategy!r}"
            )
        kind = type(self.strategy)
        if "__init__" in vars(kind) and "__dataclass_fields__" not in vars(kind):
            raise UserError(
                f"strategy {kind.__name__} is not a dataclass, so its settings would not be recorded: "
                "decorate it with @dataclass(frozen=True)"
            )
        for name in ("target", "backbone", "source"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"TrialSpec: {name} must be a name, got {getattr(self, name)!r}")
        require_short("TrialSpec", self.flat())
        for name in ("epochs", "batch_size"):
            require_count(f"TrialSpec: {name}", getattr(self, name))
        for name in ("shots", "val_shots", "test_shots", "depth", "resolution", "views"):
            if getattr(self, name) is not None:
                require_count(f"TrialSpec: {name}", getattr(self, name))
        require_choices(self)
        for name in self.shift_names():
            if name not in (known := dict.fromkeys((*SHIFTS, *SOUND_SHIFTS, *TEXT_SHIFTS))):
                raise UserError(
                    f"TrialSpec: shifts must be joined by '+' from {', '.join(known)}, got {name!r}"
                )
        if self.fold:
            Fold.parse(self.fold)
            if self.val_shots is not None:
                raise UserError(
                    "TrialSpec: val_shots must be None with resampling 'kfold', where a fold is the "
                    f"validation part, got {self.val_shots}"
                )
        if self.strategy.classifier != "head" and self.batch_norm == "reestimate":
            raise UserError(
                "TrialSpec: batch_norm 'reestimate' needs a strategy with gradient steps; use 'auto'"
            )
        if self.strategy.classifier != "head" and self.sampling != "none":
            raise UserError(
                "TrialSpec: sampling 'balanced' needs a strategy with gradient steps; with FeatureTransfer "
                "use class_weights='balanced'"
            )
        if self.strategy.classifier != "head" and self.head != "linear":
            raise UserError(
                f"TrialSpec: head {self.head!r} needs a strategy with gradient steps, such as LinearProbe; "
                f"{kind.__name__} replaces the head with a classifier of scikit-learn"
            )
        if self.strategy.classifier == "knn" and self.class_weights != "none":
            raise UserError(
                "TrialSpec: class_weights 'balanced' needs a strategy with a loss; nearest neighbours have "
                "none"
            )
        if self.views is not None and self.augment in ("none", "mixup", "cutmix"):
            raise UserError(
                f"TrialSpec: views need an augment that varies each example by itself, got "
                f"{self.augment!r}"
            )
        if self.lr is None:
            object.__setattr__(self, "lr", DEFAULT_LR[self.optimizer])
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("warmup", 0.0, 1.0),
            ("label_smoothing", 0.0, 1.0),
        ):
            value = getattr(self, name)
            wrong = not isinstance(value, (int, float)) or not low <= value <= high
            if wrong or math.isinf(value) or (name == "lr" and value == 0):
                raise UserError(f"TrialSpec: {name} must be in [{low}, {high}], got {value!r}")

    def shift_names(self) -> tuple[str, ...]:
        """Names of the shifted test sets."""
        return tuple(self.shifts.split("+")) if self.shifts else ()

    def flat(self) -> dict[str, Scalar]:
        """The complete spec, including the strategy, as flat entries that can be logged as parameters."""
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del rest["strategy"]
        return {**rest, **to_flat(self.strategy)}

    @classmethod
    def from_flat(cls, flat: Mapping[str, Scalar]) -> TrialSpec:
        """The spec that `flat` was made from; values may be strings, as MLflow stores them.

        Raises:
            UserError: on an unknown strategy or field.
        """
        kinds = names()
        if flat.get("strategy") not in kinds:
            raise UnknownName(
                f"unknown strategy {flat.get('strategy')!r}; known: {', '.join(sorted(kinds))}"
            )
        kind = kinds[str(flat["strategy"])]
        inner = {
            k.removeprefix("strategy."): v for k, v in flat.items() if k.startswith("strategy.")
        }
        outer = {k: v for k, v in flat.items() if not k.startswith("strategy")}
        return cls(strategy=kind(**typed(kind, inner)), **typed(cls, outer))


def require_short(what: str, flat: Mapping[str, Scalar]) -> None:
    """Refuse parameters that MLflow would cut, because they could not be read back.

    Raises:
        UserError: naming the entry that is too long.
    """
    for name, value in flat.items():
        if len(str(value)) > LONGEST_PARAMETER:
            hint = "; choose classes by position, e.g. [classes=0-99+120-150]"
            raise UserError(
                f"{what}: {name} has {len(str(value))} characters; the tracking store takes at most "
                f"{LONGEST_PARAMETER}{hint if name in ('target', 'data') else ''}"
            )


def _types(cls: type) -> dict[str, Any]:
    """Field -> type of a dataclass; Any for all fields if a study file uses a type that only type checkers
    import."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {f.name: Any for f in dataclasses.fields(cls)}


@functools.cache
def choices(cls: type) -> dict[str, tuple[object, ...]]:
    """Field -> its possible values, for the fields of a dataclass that are Literal or bool."""
    return {
        name: (False, True) if kind is bool else get_args(kind)
        for name, kind in _types(cls).items()
        if kind is bool or get_origin(kind) is Literal
    }


def require_choices(value: object) -> None:
    """Refuse a dataclass with a value outside of the choices of its field."""
    kind: type = type(value)
    for name, known in choices(kind).items():
        if getattr(value, name) not in known:
            raise UserError(
                f"{kind.__name__}: {name} must be one of {', '.join(map(str, known))}, "
                f"got {getattr(value, name)!r}"
            )


def typed(cls: type, entries: Mapping[str, Scalar]) -> dict[str, Any]:
    """Entries converted to the types of dataclass `cls` (MLflow stores every parameter as a string)."""
    types = _types(cls)
    if unknown := entries.keys() - {f.name for f in dataclasses.fields(cls)}:
        raise UserError(f"unknown {cls.__name__} field {sorted(unknown)[0]!r}")
    return {k: _from_text(v, types[k]) if isinstance(v, str) else v for k, v in entries.items()}


def _from_text(text: str, kind: Any) -> Any:
    """The value of type `kind` whose str() is `text`; any other text is returned as it is, and the spec
    refuses it."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # only when a run is read back

    adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    readings: list[Any] = [text]
    with suppress(ValueError, SyntaxError):
        literal = ast.literal_eval(text)
        readings = [literal, text] if literal is None or kind is Any else [text, literal]
    for reading in readings:
        with suppress(ValidationError):
            return adapter.validate_python(reading, strict=True)
    with suppress(ValidationError):
        return adapter.validate_python(text)  # "inf"
    return text
