"""Tokenizers of the library `tokenizers` (extra `text`), as values that are compared by their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from harness.core.errors import UserError, first_line, optional_library

PADS = ("[PAD]", "<pad>")
MASKS = ("[MASK]", "<mask>")
"""Usual names of the tokens that fill up a row, and that stand for a hidden word."""


@dataclass(frozen=True)
class TokenizerFile:
    """The contents of a tokenizer.json.

    Attributes:
        text: the contents.
        sha256: hash of the contents, by which tokenizers are compared.
    """

    text: str = field(repr=False, compare=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.text.encode()).hexdigest())

    def __reduce__(self) -> tuple[type[TokenizerFile], tuple[str]]:
        return TokenizerFile, (self.text,)

    def fitted(self, length: int) -> Any:
        """The library's tokenizer, which truncates and pads every text to that many tokens.

        Raises:
            UserError: if the extra is not installed, or the contents are not those of a tokenizer.
        """
        return _fitted(self, length)

    @cached_property
    def pad(self) -> int:
        """Id of the token that fills up a row; the attention mask hides it."""
        plain = _read(self.text)
        if plain.padding:
            return int(plain.padding["pad_id"])
        return next((i for n in PADS if (i := plain.token_to_id(n)) is not None), 0)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of the special tokens, such as those at the beginning and end of a text."""
        decoder = _read(self.text).get_added_tokens_decoder()
        return frozenset(i for i, token in decoder.items() if token.special) | {self.pad}

    @cached_property
    def ordinary(self) -> tuple[int, ...]:
        """Ids of all other tokens."""
        return tuple(sorted(set(_read(self.text).get_vocab().values()) - self.special))

    @property
    def size(self) -> int:
        """Number of embeddings that a network needs: one more than the largest id."""
        return 1 + max(*self.ordinary, *self.special)


def byte_tokenizer() -> TokenizerFile:
    """A tokenizer whose tokens are the bytes of a text in UTF-8, which needs no vocabulary."""
    library = _library()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    made = library.Tokenizer(library.models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = library.decoders.ByteLevel()
    return TokenizerFile(made.to_str())


@lru_cache(maxsize=16)
def _fitted(file: TokenizerFile, length: int) -> Any:
    made = _read(file.text)
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=file.pad, pad_token=made.id_to_token(file.pad) or "")
    return made


def _read(text: str) -> Any:
    try:
        return _library().Tokenizer.from_str(text)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"this is not a tokenizer.json of the library tokenizers: {first_line(error)}"
        ) from error


def _library() -> Any:
    return optional_library(
        "tokenizers", "targets of texts and their networks need the extra: pip install -e '.[text]'"
    )
