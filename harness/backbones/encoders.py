"""Encoders of the library transformers in parts: embeddings, layers, pooling, head.

Each part takes one tensor and gives one, so that a network can be divided anywhere. What a layer needs
besides the outputs of the layer before it is therefore in these outputs, or is computed in the layer: the
attention mask is the last feature of every token, and relative or rotary positions follow from the length.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from harness.core.errors import UserError, first_line
from harness.inputs import Input

LAYERS = ("encoder.layer", "encoder.layers", "transformer.layer", "layers")
"""Names of the list of layers in the library's models."""
NORMS = ("final_norm", "LayerNorm", "encoder.ln", "encoder.emb_layer_norm_after")
"""Names of a norm after the last layer."""
Arguments = Mapping[str, Any]


def joined(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(n, tokens, width + 1): features, and the mask as the last one."""
    return torch.cat([hidden, mask[:, :, None].to(hidden.dtype)], 2)


def divided(carried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, tokens, width) features and the (n, tokens) mask, True for tokens that are not padding."""
    return carried[..., :-1].contiguous(), carried[..., -1].detach() > 0.5


class Embeddings(nn.Module):
    """(n, 2, tokens) ids and mask -> their embeddings, with the mask.

    Args:
        tokens: the library's module.
        project: what brings embeddings to the width of the layers.
        shared: a module whose parameters all layers use, such as embeddings of relative positions.
    """

    def __init__(self, tokens: nn.Module, project: nn.Module, shared: nn.Module | None) -> None:
        super().__init__()
        self.tokens, self.project = tokens, project
        if shared is not None:
            self.shared = shared

    def forward(self, ids_and_mask: torch.Tensor) -> torch.Tensor:
        ids, mask = ids_and_mask.unbind(1)
        return joined(self.project(self.tokens(input_ids=ids)), mask)


class Layer(nn.Module):
    """One layer: features and mask -> the same.

    Args:
        block: the library's module.
        norm: of its outputs, if it is the last layer of a network that ends with a norm.
        additive: whether it adds a mask to its attention scores, rather than selects by it.
    """

    def __init__(self, block: nn.Module, norm: nn.Module, additive: bool) -> None:
        super().__init__()
        self.block, self.norm, self._additive = block, norm, additive

    def forward(self, carried: torch.Tensor) -> torch.Tensor:
        hidden, mask = divided(carried)
        output = self.block(hidden, **self.arguments(hidden, mask))
        return joined(self.norm(output if isinstance(output, torch.Tensor) else output[0]), mask)

    def arguments(self, hidden: torch.Tensor, mask: torch.Tensor) -> Arguments:
        """What the block takes besides the features."""
        return {"attention_mask": self.visible(hidden, mask[:, None, None])}

    def visible(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mask in the form that the block takes."""
        if not self._additive:
            return mask
        hidden_score = torch.finfo(hidden.dtype).min
        return hidden.new_zeros(mask.shape).masked_fill(~mask, hidden_score)


class RotaryLayer(Layer):
    """A layer with rotary positions, and attention to all tokens or, in some of ModernBERT, to those nearby.

    Args:
        rotary: what computes the rotation of each position.
    """

    def __init__(
        self, block: nn.Module, norm: nn.Module, additive: bool, rotary: nn.Module
    ) -> None:
        super().__init__(block, norm, additive)
        self.rotary = copy.deepcopy(rotary)
        self._kind = [block.attention_type] if hasattr(block, "attention_type") else []
        window = getattr(getattr(block, "config", None), "sliding_window", None)
        self._window = window if self._kind == ["sliding_attention"] else None

    def arguments(self, hidden: torch.Tensor, mask: torch.Tensor) -> Arguments:
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        seen = mask[:, None, None]
        if self._window is not None:
            distance = (positions[:, None] - positions).abs()
            # Padding sees itself: without anything to see, it would become NaN, and then all other tokens.
            seen = (seen & (distance <= self._window)) | (distance == 0)
        return {
            "attention_mask": self.visible(hidden, seen),
            "position_embeddings": self.rotary(hidden, positions[None], *self._kind),
        }


class RelativeLayer(Layer):
    """A layer that uses embeddings of relative positions which belong to the network's embeddings.

    Args:
        shared: the library's encoder, without its layers.
    """

    def __init__(self, block: nn.Module, norm: nn.Module, additive: bool, shared: Any) -> None:
        super().__init__(block, norm, additive)
        self._shared = (shared,)  # in a tuple, so that it is not a part of this module


class DebertaLayer(RelativeLayer):
    """A layer of DeBERTa, version 1 to 3."""

    def arguments(self, hidden: torch.Tensor, mask: torch.Tensor) -> Arguments:
        (shared,) = self._shared
        return {
            "attention_mask": mask[:, None, None] & mask[:, None, :, None],
            "relative_pos": shared.get_rel_pos(hidden),
            "rel_embeddings": shared.get_rel_embedding(),
        }


class MPNetLayer(RelativeLayer):
    """A layer of MPNet."""

    def arguments(self, hidden: torch.Tensor, mask: torch.Tensor) -> Arguments:
        (shared,) = self._shared
        return {
            **super().arguments(hidden, mask),
            "position_bias": shared.compute_position_bias(hidden),
        }


RELATIVE = {"deberta": DebertaLayer, "deberta-v2": DebertaLayer, "mpnet": MPNetLayer}
"""Layers with relative positions, by type of model."""


class TokenPool(nn.Module):
    """(n, width): the mean over the tokens that are not padding, or over those that stand for the whole.

    Args:
        kind: "mean" or "cls".
        leading: number of tokens at the beginning that stand for the whole.
    """

    def __init__(self, kind: str, leading: int = 1) -> None:
        super().__init__()
        self.kind, self.leading = kind, leading

    def forward(self, carried: torch.Tensor) -> torch.Tensor:
        if self.kind == "cls":
            return carried[:, : self.leading, :-1].mean(1)
        hidden, mask = divided(carried)
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


class Encoder(nn.Sequential):
    """An encoder with a linear classifier of the pooled vector.

    Args:
        before: modules before the layers, by name; the last one gives features and mask.
        layers: the layers.
        pool: what makes one vector of features and mask.
        width: of the features.

    Attributes:
        input: the input that it takes.
    """

    input: Input

    def __init__(
        self, before: Mapping[str, nn.Module], layers: list[Layer], pool: TokenPool, width: int
    ) -> None:
        head = nn.Linear(width, 10)
        # The hash of pretrained weights must not depend on a head that no one uses.
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        named = {f"layer{number}": layer for number, layer in enumerate(layers)}
        super().__init__(OrderedDict({**before, **named, "pool": pool, "head": head}))


def divide(model: Any, pool: str) -> Encoder:
    """A model of the library in parts, which are its own modules. They are tested on two short texts.

    Args:
        model: the model, without the head of a task.
        pool: "mean" or "cls".

    Raises:
        UserError: if its layers cannot be used one by one.
    """
    kind = model.config.model_type
    if getattr(model.config, "attention_type", "") == "block_sparse":
        raise UserError(f"{kind} computes the attention in long texts otherwise than in short ones")
    return tested(kind, lambda: _outputs(model), lambda: _divided(model, pool))


def tested(
    kind: str,
    outputs: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    made: Callable[[], Encoder],
) -> Encoder:
    """A model in parts, if they give the same as the whole.

    Args:
        kind: its type, for messages.
        outputs: called first; returns the encoder's argument for some examples, the model's outputs for all
            their tokens, (n, tokens, width), and which of these count, (n, tokens).
        made: returns the encoder.

    Raises:
        UserError: if its layers cannot be used one by one.
    """
    try:
        given, wanted, kept = outputs()
        encoder = made()
        found = _tokens(encoder, given)
    except UserError:
        raise
    except Exception as error:  # each architecture has its own kind
        raise UserError(
            f"{kind} cannot be divided into layers: {type(error).__name__}: {first_line(error)}"
        ) from error
    # The norm of weights that are all zeros, as in a forecast of memory, makes them NaN.
    if found.shape != wanted.shape or not torch.allclose(
        found[kept], wanted[kept], 1e-3, 1e-4, equal_nan=True
    ):
        raise UserError(
            f"{kind} cannot be divided into layers: they need more than the outputs of the layer before and "
            "the attention mask"
        )
    return encoder


def _divided(model: Any, pool: str) -> Encoder:
    lists = (_at(model, name) for name in LAYERS)
    blocks = next((found for found in lists if isinstance(found, nn.ModuleList)), None)
    if blocks is None:
        raise UserError(
            f"{model.config.model_type} has no list of layers, or its layers share weights"
        )
    norms: list[nn.Module] = [nn.Identity() for _ in blocks]
    norms[-1] = next((found for name in NORMS if (found := _at(model, name))), norms[-1])
    additive = model.config._attn_implementation != "sdpa"
    shared, rotary = None, getattr(model, "rotary_emb", None)
    layers: list[Layer] = []
    if kind := RELATIVE.get(model.config.model_type):
        shared, norms[-1] = model.encoder, nn.Identity()
        shared.layer = nn.ModuleList()
    for block, norm in zip(blocks, norms, strict=True):
        if kind is not None and shared is not None:
            layers.append(kind(block, norm, additive, shared))
        elif rotary is not None:
            layers.append(RotaryLayer(block, norm, additive, rotary))
        else:
            layers.append(Layer(block, norm, additive))
    project = getattr(model, "embeddings_project", nn.Identity())
    before = {"embeddings": Embeddings(model.embeddings, project, shared)}
    return Encoder(before, layers, TokenPool(pool), model.config.hidden_size)


def _at(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that name; None if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@torch.no_grad()
def _outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two texts of different lengths, the model's outputs for all their tokens, and which are not padding."""
    ids = torch.arange(12).view(2, 6) % (model.config.vocab_size - 3) + 3
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    output = model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.stack([ids, mask], 1), output, mask > 0


@torch.no_grad()
def _tokens(encoder: Encoder, output: torch.Tensor) -> torch.Tensor:
    """What the layers give for all tokens of these examples."""
    for part in list(encoder.eval().children())[:-2]:  # without pooling and head
        output = part(output)
    return divided(output)[0]
