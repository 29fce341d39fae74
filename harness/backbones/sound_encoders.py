"""Encoders of sounds of the library transformers in parts: convolutions or embeddings, layers, pooling, head.

As in encoders of texts, a mask is the last feature of every token; here it says which tokens are of the sound
and not of its padding. Only pooling uses it: these networks were trained to attend to the padding too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from harness.backbones.encoders import (
    Arguments,
    Encoder,
    Layer,
    RelativeLayer,
    TokenPool,
    divided,
    joined,
    tested,
)
from harness.core.errors import UserError
from harness.inputs import Features

AST, WHISPER, WAVLM = "audio-spectrogram-transformer", "whisper", "wavlm"
EXTRACTORS = {
    AST: "ASTFeatureExtractor",
    WHISPER: "WhisperFeatureExtractor",
    **dict.fromkeys(
        ("wav2vec2", "hubert", WAVLM, "data2vec-audio", "unispeech", "unispeech-sat"),
        "Wav2Vec2FeatureExtractor",
    ),
}
"""Types of model that can be divided, with the feature extractor of each."""
SECONDS = 1.0
"""Length of the sounds that a network takes, if the target has none."""
NOT_LOADED = ("decoder.", "masked_spec_embed")
"""Weights that are not used: of Whisper's decoder, and of a mask in pretraining."""


class Convolutions(nn.Module):
    """(n, samples) -> (n, tokens, channels + 1), with a mask of ones.

    Args:
        layers: those of the library's feature encoder.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        output = samples[:, None]
        for layer in self.layers:
            output = layer(output)
        return joined(output.transpose(1, 2), torch.ones_like(output[:, 0]))


class Projection(nn.Module):
    """Outputs of the convolutions -> features of the width of the layers, with positions, and the mask.

    Args:
        model: the library's model.
        norm: of the features, if there is one before the layers.
    """

    def __init__(self, model: Any, norm: nn.Module) -> None:
        super().__init__()
        self.project, self.positions = model.feature_projection, model.encoder.pos_conv_embed
        self.norm, self.dropout = norm, model.encoder.dropout

    def forward(self, carried: torch.Tensor) -> torch.Tensor:
        output, mask = divided(carried)
        found = self.project(output)
        hidden = found if isinstance(found, torch.Tensor) else found[0]
        return joined(self.dropout(self.norm(hidden + self.positions(hidden))), mask)


class PatchEmbeddings(nn.Module):
    """Frames and mask -> embeddings of patches and mask, for AST. Two leading tokens stand for the whole;
    the mask hides them, so that the mean is that of patches.

    Args:
        embeddings: the library's module.
    """

    leading = 2

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.patches = embeddings
        self._bands, times = embeddings.get_shape(embeddings.config)
        self._firsts = [number * embeddings.config.time_stride for number in range(times)]

    def forward(self, frames_and_mask: torch.Tensor) -> torch.Tensor:
        frames, mask = divided(frames_and_mask)
        of_patches = mask[:, self._firsts].repeat(1, self._bands)
        return joined(self.patches(frames), F.pad(of_patches, (self.leading, 0)))


class FrameEmbeddings(nn.Module):
    """Frames and mask -> embeddings of pairs of frames and mask, for Whisper.

    Args:
        encoder: the library's encoder. Its positions are sines, which are not trained.
    """

    positions: torch.Tensor

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.register_buffer("positions", encoder.embed_positions.weight.detach().clone())
        self.dropout = nn.Dropout(encoder.dropout)

    def forward(self, frames_and_mask: torch.Tensor) -> torch.Tensor:
        frames, mask = divided(frames_and_mask)
        hidden = F.gelu(self.conv1(frames.transpose(1, 2)))
        hidden = F.gelu(self.conv2(hidden)).transpose(1, 2)
        return joined(self.dropout(hidden + self.positions), mask[:, ::2])


class SoundLayer(Layer):
    """A layer that attends to all tokens."""

    def arguments(self, hidden: torch.Tensor, mask: torch.Tensor) -> Arguments:
        return {"attention_mask": None}


class WavLMLayer(RelativeLayer):
    """A layer of WavLM, whose embeddings of relative positions belong to the first layer."""

    def arguments(self, hidden: torch.Tensor, mask: torch.Tensor) -> Arguments:
        (first,) = self._shared
        tokens = hidden.shape[1]
        return {"position_bias": first.compute_bias(tokens, tokens).repeat(len(hidden), 1, 1)}


def prepared(model: Any) -> Any:
    """The model whose outputs are those of the encoder: of Whisper, without its decoder. Normed weights
    become plain ones, which are trained as others."""
    if model.config.model_type == WHISPER:
        model = model.encoder
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return model


def divide_sounds(model: Any, pool: str, form: Features) -> Encoder:
    """A model from `prepared` in parts, which are its own modules. They are tested on a random sound.

    Args:
        model: the model, without the head of a task.
        pool: "mean" or "cls".
        form: the input that its feature extractor makes.

    Raises:
        UserError: if its layers cannot be used one by one, it has no token for the whole, or its feature
            extractor has other settings than it needs.
    """
    config = model.config
    if config.model_type != AST and pool == "cls":
        raise UserError(
            f"{config.model_type} has no token that stands for the whole; leave out [pool=cls]"
        )
    if form.padded and form.shape != (needed := _frames(config)):
        raise UserError(
            "its feature extractor makes {} frames of {} bands, but the model takes {} of {}; use the "
            "preprocessor_config.json that belongs to the model".format(*form.shape, *needed)
        )
    encoder = tested(
        config.model_type, lambda: _outputs(model, form), lambda: _divided(model, pool)
    )
    encoder.input = form
    return encoder


def _frames(config: Any) -> tuple[int, int]:
    """Number of frames that a model takes, and of their bands."""
    if config.model_type == AST:
        return config.max_length, config.num_mel_bins
    return 2 * config.max_source_positions, config.num_mel_bins


def _divided(model: Any, pool: str) -> Encoder:
    config, leading = model.config, 1
    before: dict[str, nn.Module]
    if config.model_type == AST:
        embeddings = PatchEmbeddings(model.embeddings)
        before, last, leading = {"embeddings": embeddings}, model.layernorm, embeddings.leading
    elif config.model_type == WHISPER:
        before, last = {"embeddings": FrameEmbeddings(model)}, model.layer_norm
    else:
        norms = (model.encoder.layer_norm, nn.Identity())
        first, last = reversed(norms) if getattr(config, "do_stable_layer_norm", False) else norms
        convolutions = Convolutions(model.feature_extractor.conv_layers)
        before = {"convolutions": convolutions, "projection": Projection(model, first)}
    blocks = list(getattr(model, "layers", None) or model.encoder.layers)
    layers: list[Layer] = []
    for number, block in enumerate(blocks):
        norm = last if number == len(blocks) - 1 else nn.Identity()
        if config.model_type == WAVLM:
            layers.append(WavLMLayer(block, norm, False, blocks[0].attention))
        else:
            layers.append(SoundLayer(block, norm, False))
    return Encoder(before, layers, TokenPool(pool, leading), config.hidden_size)


@torch.no_grad()
def _outputs(model: Any, form: Features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random sound as the argument of the encoder, what the model gives for all its tokens, and that all of
    them count."""
    rows = form.random(1, torch.Generator().manual_seed(0))
    given = rows.squeeze(2)
    if model.config.model_type == WHISPER:
        given = rows.transpose(1, 2)
    output = model.eval()(given).last_hidden_state
    argument = form.preparation(torch.device("cpu"), torch.contiguous_format)(rows)
    return argument, output, torch.ones(output.shape[:2], dtype=torch.bool)
