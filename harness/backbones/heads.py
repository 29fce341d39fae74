"""Heads other than a network's own linear classifier: on an earlier layer group, with a hidden layer, or with
attentive pooling.

A network that ends early becomes four modules in a row: `body`, the network up to the end of a layer group;
`pool`, which brings its output into one form; `norm`, which standardises it as the last layer of a ViT does;
and `head`. Whatever of the network comes later is removed.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import nn

from harness import inputs
from harness.backbones.encoders import TokenPool, divided
from harness.backbones.groups import Backbone, module_groups, parameter_groups
from harness.backbones.library import tensor_names
from harness.backbones.trace import outputs_before
from harness.core.errors import UserError
from harness.core.spec import Head

QUERIES = 32
"""Number of queries of Efficient Probing, as in the paper; fewer if they do not divide the width."""
INSIDE = "body.network."
"""Prefix of the names of the original network's tensors."""


class EfficientProbing(nn.Module):
    """Attentive pooling with M learned queries (Psomas et al. 2026, "Attention, Please!", arXiv 2506.10178).

    For tokens x_1 ... x_N of width D, query q_m gives token n the weight softmax_n(q_m . x_n / sqrt(D)). With
    these weights the m-th of M slices of the projected tokens V x_n is averaged; the slices together are a
    vector of width D. Unlike in multi-head attention, queries and keys are not projected.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(math.gcd(QUERIES, width), width))
        self.values = nn.Linear(width, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, N, D) -> (n, D)."""
        count, width = self.queries.shape
        weights = self.scores(tokens).softmax(1)
        slices = self.values(tokens).unflatten(2, (count, width // count))
        return torch.einsum("ntm,ntmd->nmd", weights, slices).flatten(1)

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, N, M) scores of the tokens for each query."""
        return tokens @ self.queries.T / math.sqrt(self.queries.shape[1])


class MaskedProbing(EfficientProbing):
    """The same for tokens of which those that are all zeros are padding."""

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        padding = (tokens == 0).all(2, keepdim=True)
        return super().scores(tokens).masked_fill(padding, -math.inf)


class Tokens(nn.Module):
    """An output of a network as tokens, (n, tokens, channels).

    Args:
        channels_last: whether maps have their channels in the last axis, as in Swin.
        skip: number of leading tokens that do not stand for a part of the image.
    """

    def __init__(self, channels_last: bool, skip: int) -> None:
        super().__init__()
        self.channels_last, self.skip = channels_last, skip

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        if output.ndim == 2:
            return output[:, None]
        if output.ndim == 3:
            return output[:, self.skip :]
        return output.flatten(1, 2) if self.channels_last else output.flatten(2).transpose(1, 2)


class MeanPool(Tokens):
    """The mean of an output over its tokens or positions, (n, channels)."""

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return super().forward(output).mean(1)


class VisibleTokens(nn.Module):
    """Tokens that carry a mask -> tokens without it, (n, tokens, width), zeros for padding."""

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        hidden, mask = divided(output)
        return hidden * mask[:, :, None]


class _Reached(Exception):
    """Ends the forward pass of a body; its argument is the output."""


def _stop(module: nn.Module, inputs: object, output: torch.Tensor) -> NoReturn:
    raise _Reached(output)


class Body(nn.Module):
    """A network up to one of its modules, whose output it returns.

    Args:
        network: the whole network.
        last: name of that module.
    """

    def __init__(self, network: nn.Module, last: str) -> None:
        super().__init__()
        self.network = network
        network.get_submodule(last).register_forward_hook(_stop)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            self.network(images)
        except _Reached as reached:
            output: torch.Tensor = reached.args[0]
            return output
        raise AssertionError("the module was not reached")


def as_graph(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """A network that ends early as a graph of operations, for batches of any size; another one as it is.

    Unless strict, torch.export does not follow the exception that ends a body.

    Args:
        network: in eval().
        images: (n, 3, s, s) normalised images, n at least 2.
    """
    if not any(isinstance(module, Body) for module in network.modules()):
        return network
    batch = ({0: torch.export.Dim("batch")},)
    found: nn.Module = torch.export.export(
        network, (images,), dynamic_shapes=batch, strict=True
    ).module()
    return found


def put_head(
    backbone: Backbone, name: str, kind: Head, depth: int | None, classes: int
) -> Backbone:
    """The network with another head, initialised from torch's global generator.

    Args:
        backbone: a network with its own classifier, which is changed.
        name: name of the network, for messages.
        kind: "linear"; "mlp", with a hidden layer as wide as its input, and GELU; or "attentive", Efficient
            Probing before a linear layer.
        depth: number of leading groups that are kept; None keeps all. The head reads their output: without
            a depth, linear and mlp read the network's own features, else the mean over tokens or positions.
        classes: number of classes.

    Raises:
        UserError: if the network has no such depth, or no output there that the head can read.
    """
    if depth is None and kind == "mlp":
        return _with_hidden_layer(backbone, name, classes)
    below = len(backbone.groups) - 1
    if depth is not None and depth > below:
        known = ", ".join(group.name for group in backbone.groups[:-1])
        raise UserError(
            f"depth {depth}: {name} has {below} layer groups below its head ({known}); depth can be 1 to "
            f"{below}"
        )
    depth = below if depth is None else depth
    images = backbone.prepared(backbone.input.blank(2))
    last, output = _end(backbone, name, depth, images, several=kind == "attentive")
    masked = isinstance(backbone.input, inputs.Tokens | inputs.Features) and output.ndim == 3
    pool = _pool(backbone.model, output, kind, masked)
    width = pool(output).shape[-1]
    body = Body(backbone.model, last)
    _remove_unused(body, images)
    head = _head(kind, width, classes, masked).to(backbone.device)
    parts = {"body": body, "pool": pool, "norm": nn.LayerNorm(width, elementwise_affine=False)}
    model = nn.Sequential(OrderedDict(**parts, head=head))
    return dataclasses.replace(
        _regrouped(backbone, model, {"head": head}, INSIDE, depth),
        no_decay=frozenset(INSIDE + n for n in backbone.no_decay),
    )


def _pool(network: nn.Module, output: torch.Tensor, kind: Head, masked: bool) -> nn.Module:
    """What brings an output of the network into the form that the head reads."""
    if masked:
        return VisibleTokens() if kind == "attentive" else TokenPool("mean")
    channels_last = output.ndim == 4 and _channels_last(network, output.shape)
    skip = getattr(network, "num_prefix_tokens", 0)
    return (Tokens if kind == "attentive" else MeanPool)(channels_last, skip)


def _head(kind: Head, width: int, classes: int, masked: bool = False) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, classes)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, classes))
    probing = MaskedProbing(width) if masked else EfficientProbing(width)
    return nn.Sequential(probing, nn.Linear(width, classes))


def _with_hidden_layer(backbone: Backbone, name: str, classes: int) -> Backbone:
    """The network with an MLP in place of each linear classifier."""
    heads: dict[str, nn.Module] = {}
    for path, module in list(backbone.model.named_modules()):
        if not any(module is head for head in backbone.heads):
            continue
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"head 'mlp' replaces a linear classifier, but that of {name} is a "
                f"{type(module).__name__}; set a depth, so that the head reads the mean over positions"
            )
        heads[path] = _head("mlp", module.in_features, classes).to(backbone.device)
        backbone.model.set_submodule(path, heads[path])
    return _regrouped(backbone, backbone.model, heads, "", len(backbone.groups) - 1)


def _end(
    backbone: Backbone, name: str, depth: int, images: torch.Tensor, several: bool
) -> tuple[str, torch.Tensor]:
    """Name and output of the last module of the first `depth` groups, or, for `several` positions, of the
    last one that is not pooled yet."""
    groups = {id(module): inside for module, inside in backbone.modes}
    outputs, _ = outputs_before(backbone, depth, images)
    for last, output in reversed(outputs):
        if not isinstance(output, torch.Tensor) or not 2 <= output.ndim <= 4:
            break
        if several and _positions(output.shape) == 1:
            continue
        inside = groups[id(backbone.model.get_submodule(last))]
        if several and depth - 1 not in inside:
            break
        return last, output
    what = "tokens or a map of several positions" if several else "a single tensor"
    raise UserError(
        f"a head cannot be put on the first {depth} layer groups of {name}: with {backbone.input} they "
        f"do not give {what}; choose another depth, a larger resolution, or the head 'linear' without a depth"
    )


def _positions(shape: torch.Size) -> int:
    """Number of tokens or positions; 1 for a vector. Maps are square."""
    return 1 if len(shape) == 2 else shape[1] if len(shape) == 3 else shape[2] ** 2


def _channels_last(model: nn.Module, shape: torch.Size) -> bool:
    """Whether maps have their channels in the last axis. Images are square, and so are maps; if all three
    sides are equal, the network may say it, as timm's do."""
    if shape[1] == shape[2] == shape[3]:
        return bool(getattr(model, "output_fmt", "NCHW") == "NHWC")
    return shape[1] == shape[2]


def _remove_unused(body: Body, images: torch.Tensor) -> None:
    """Remove parameters on which the output does not depend, with their modules."""
    named = dict(body.network.named_parameters())
    trained = [p.requires_grad for p in named.values()]  # not the weights that adapters adapt
    body.network.requires_grad_(True)
    with torch.enable_grad():
        total = body(images).float().sum()
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    for parameter, flag in zip(named.values(), trained, strict=True):
        parameter.requires_grad_(flag)
    unused = {n for n, gradient in zip(named, found, strict=True) if gradient is None}

    def walk(path: str, module: nn.Module) -> None:
        for name, child in list(module.named_children()):
            inside = {f"{path}{name}.{n}" for n, _ in child.named_parameters()}
            if inside and inside <= unused:
                setattr(module, name, nn.Identity())
            else:
                walk(f"{path}{name}.", child)
        for name, _ in list(module.named_parameters(recurse=False)):
            if path + name in unused:
                setattr(module, name, None)

    walk("", body.network)


def _regrouped(
    backbone: Backbone,
    model: nn.Module,
    heads: Mapping[str, nn.Module],
    prefix: str,
    depth: int,
) -> Backbone:
    """The backbone with this model, whose groups are the first `depth` old ones, under names with a prefix,
    and one of the heads. A buffer that remains of a later group belongs to the last of them."""
    index = {
        prefix + n: min(g, depth - 1)
        for g, group in enumerate(backbone.groups)
        for n in (*group.parameters, *group.buffers)
    }
    index = {n: index.get(n, depth) for n in tensor_names(model)}
    names = [*(group.name for group in backbone.groups[:depth]), backbone.groups[-1].name]
    return dataclasses.replace(
        backbone,
        model=model,
        heads=tuple(heads.values()),
        groups=parameter_groups(model, index, names),
        modes=module_groups(model, index),
    )
