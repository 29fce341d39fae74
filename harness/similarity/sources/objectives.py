"""Pretraining objectives: the losses with which a source is trained.

Supervised training and the autoencoder have one player, a GAN has two. The outputs of the backbone's head are
class scores, the code, or the discriminator's score; a trial replaces the head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn
from torch.nn import functional as F

from harness.backbones import Backbone
from harness.core.errors import UserError
from harness.inputs import Input

CODE = 64
"""Dimension of an autoencoder's code and of a GAN's noise."""
HALF = 127.5
"""Half the range of a pixel."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(n, *shape) rows of the input and (n,) labels -> scalar loss."""


def check_objective(objective: str, form: Input) -> None:
    """Check that an objective is for such examples.

    Raises:
        UserError: if it makes pictures, and they are none.
    """
    if objective != "supervised" and (len(form.shape) != 3 or form.dtype != torch.uint8):
        raise UserError(
            f"objective {objective!r} makes pictures, and {form} are none; use objective 'supervised'"
        )


@dataclass(frozen=True)
class Player:
    """The modules that are trained together, their loss, and their Adam betas."""

    module: nn.Module
    loss: Loss
    betas: tuple[float, float] = (0.9, 0.999)


class Objective(ABC):
    """One way to train a backbone on a data set.

    Args:
        backbone: network with a head of `outputs` numbers, and with the form of the examples as its input.
        generator: random number generator for the noise.
    """

    outputs: ClassVar[int | None] = None
    """Number of outputs of the backbone's head; None for one per class."""

    def __init__(self, backbone: Backbone, generator: torch.Generator) -> None:
        self.model, self.generator, self.device = backbone.model, generator, backbone.device
        self.prepare = backbone.input.preparation(backbone.device, backbone.layout)
        self.players = self.make_players(backbone.input)

    @abstractmethod
    def make_players(self, form: Input) -> tuple[Player, ...]:
        """The players, which are trained in turn at every step."""

    @abstractmethod
    def scores(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Sums over validation images by name, to be divided by their number; the network is in eval()."""

    def see(self, rows: torch.Tensor) -> torch.Tensor:
        """Outputs of the head."""
        out: torch.Tensor = self.model(self.prepare(rows))
        return out


@final
class Supervised(Objective):
    """Cross-entropy of the labels."""

    def make_players(self, form: Input) -> tuple[Player, ...]:
        return (Player(self.model, lambda x, y: F.cross_entropy(self.see(x), y)),)

    def scores(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        logits = self.see(rows)
        return {
            "val_accuracy": float((logits.argmax(1) == labels).sum()),
            "val_loss": float(F.cross_entropy(logits, labels, reduction="sum")),
        }


@final
class Autoencoder(Objective):
    """Mean squared error of the image reconstructed from 64 numbers (Hinton & Salakhutdinov 2006)."""

    outputs = CODE

    def make_players(self, form: Input) -> tuple[Player, ...]:
        self.decoder = Decoder(form.shape[-1]).to(self.device)
        return (Player(nn.ModuleList([self.model, self.decoder]), lambda x, y: self.error(x)),)

    def error(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the pixels in [-1, 1]."""
        return F.mse_loss(self.decoder(self.see(rows)), rows.float() / HALF - 1)

    def scores(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        return {"val_loss": float(self.error(rows)) * len(rows)}


@final
class Gan(Objective):
    """The backbone learns to distinguish real images from those that a generator makes of noise, with the
    non-saturating loss (Goodfellow et al. 2014) and DCGAN's betas (Radford et al. 2016)."""

    outputs = 1
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)

    def make_players(self, form: Input) -> tuple[Player, ...]:
        self.decoder = Decoder(form.shape[-1]).to(self.device)

        def judge(real: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            drawn = self.draw(len(real)).detach()
            return F.softplus(-self.see(real)).mean() + F.softplus(self.see(drawn)).mean()

        def draw(real: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return F.softplus(-self.see(self.draw(len(real)))).mean()

        return Player(self.model, judge, self.betas), Player(self.decoder, draw, self.betas)

    def draw(self, count: int) -> torch.Tensor:
        """(count, 3, s, s) generated images in [0, 255]."""
        noise = torch.randn(count, CODE, generator=self.generator)
        pictures: torch.Tensor = self.decoder(noise.to(self.device))
        return (pictures + 1) * HALF

    def scores(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        real = (self.see(rows) > 0).sum()
        drawn = (self.see(self.draw(len(rows))) <= 0).sum()
        return {"val_told_apart": float(real + drawn) / 2}


class Decoder(nn.Module):
    """64 numbers -> an image in [-1, 1]: starts with a quarter of the side, which is doubled twice."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.start = size, -(-size // 4)
        self.first = nn.Linear(CODE, 32 * self.start**2)
        self.grow = nn.Sequential(
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """(n, 64) -> (n, 3, size, size)."""
        grown: torch.Tensor = self.grow(self.first(code).view(-1, 32, self.start, self.start))
        return grown[:, :, : self.size, : self.size]


OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "autoencoder": Autoencoder,
    "gan": Gan,
}
