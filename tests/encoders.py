"""Small encoders of texts and sounds with random weights, saved as the library transformers does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from harness.backbones import Backbone, build
from harness.core.spec import TrialSpec
from harness.training.device import Cpu
from harness.training.loop import Training
from harness.training.network import check_network
from tests.refusals import refused

WORDS = "the a cat dog bird fish runs swims flies eats red blue green big small fast".split()


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, "[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(names[:5])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))


def save_encoder(folder: Path, kind: str = "bert", **settings: Any) -> str:
    """Save an encoder of that type with random weights.

    Returns:
        Name of the backbone.
    """
    fields = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        **settings,
    }
    if kind == "distilbert":
        fields |= {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            del fields[name]
    _save_model(folder, kind, fields)
    save_tokenizer(folder)
    return f"transformers:{folder}"


def _save_model(folder: Path, kind: str, fields: dict[str, Any]) -> None:
    library: Any = importlib.import_module("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = library.AutoConfig.for_model(kind, **fields)
        model = library.AutoModel.from_config(config)
        for parameter in model.parameters():  # otherwise biases are 0, and attention does little
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SAMPLES = {
    **SMALL,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 4),
    "conv_stride": (8, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
SOUND_ENCODERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "ast": (
        "audio-spectrogram-transformer",
        "ASTFeatureExtractor",
        {
            **SMALL,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 3,
            "max_length": 32,
            "num_mel_bins": 16,
        },
        {"max_length": 32, "num_mel_bins": 16},
    ),
    "whisper": (
        "whisper",
        "WhisperFeatureExtractor",
        {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "max_target_positions": 8,
            "vocab_size": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
            "begin_suppress_tokens": None,
        },
        {"feature_size": 16, "chunk_length": 1},
    ),
    **{
        name: (kind, "Wav2Vec2FeatureExtractor", {**SAMPLES, **more}, {"do_normalize": True})
        for name, kind, more in (
            ("wav2vec2", "wav2vec2", {}),
            ("wav2vec2-stable", "wav2vec2", STABLE),
            ("hubert", "hubert", {}),
            ("hubert-stable", "hubert", STABLE),
            ("wavlm", "wavlm", {"num_buckets": 8, "max_bucket_distance": 16}),
            ("data2vec", "data2vec-audio", {"conv_pos_kernel_size": 3}),
            ("unispeech", "unispeech", {}),
            ("unispeech-sat", "unispeech-sat", {}),
        )
    },
}
"""Name -> type, feature extractor, and the settings of both."""


def save_sound_encoder(folder: Path, name: str, **settings: Any) -> str:
    """Save one of SOUND_ENCODERS.

    Args:
        folder: where.
        name: which.
        settings: of the model, instead of its own.

    Returns:
        Name of the backbone.
    """
    library: Any = importlib.import_module("transformers")
    kind, extractor, fields, own = SOUND_ENCODERS[name]
    _save_model(folder, kind, {**fields, **settings})
    getattr(library, extractor)(**own).save_pretrained(folder)
    return f"transformers:{folder}"


def refused_network(name: str, said: str, source: str = "pretrained") -> None:
    """The network is not built, for that reason."""
    with refused(said):
        build(name, source, 2, 0)


def pooled(network: Backbone, rows: torch.Tensor) -> torch.Tensor:
    """What the head reads."""
    found: list[torch.Tensor] = []
    hook = network.head.register_forward_pre_hook(lambda m, x: found.append(x[0]))
    with torch.no_grad():
        network.model.eval()(network.prepared(rows))
    hook.remove()
    return found[0]


def check(spec: TrialSpec) -> None:
    """What is checked of a network before a study."""
    check_network(Training(spec, Cpu()).backbone, spec)
