"""Texts to token ids: ragged, never padded, what truncation cut off counted.

Shape suffixes: N texts, N1 one more than the texts, T tokens of all texts together.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from scar_core import storage
from scar_core.errors import RankerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

TOKENIZER_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Both bound what the tokenizer holds beside the ids, about 300 bytes per token before truncation;
# speed is the same from 256 texts on.
_CHUNK_TEXTS = 1024
_CHUNK_CHARACTERS = 500_000


@dataclass(frozen=True)
class TokenRows:
    """Token ids of N texts, end to end."""

    ids_T: NDArray[np.int32]
    """All ids, text after text, special tokens included."""
    offsets_N1: NDArray[np.int64]
    """Text i is ids_T[offsets_N1[i] : offsets_N1[i + 1]]; the first offset is 0."""
    cut_N: NDArray[np.int32]
    """Tokens of each text that truncation cut off."""

    def __post_init__(self) -> None:
        """Refuse offsets that do not cover the ids, and counts of another number of texts."""
        texts = len(self.offsets_N1) - 1
        if texts != len(self.cut_N):
            raise ValueError(f"offsets of {texts} texts, cut counts of {len(self.cut_N)}")
        if self.offsets_N1[0] != 0 or self.offsets_N1[-1] != len(self.ids_T):
            raise ValueError(
                f"offsets run from {self.offsets_N1[0]} to {self.offsets_N1[-1]}, "
                f"ids from 0 to {len(self.ids_T)}"
            )

    def __len__(self) -> int:
        """Give the number of texts N."""
        return len(self.cut_N)

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of each text after truncation, special tokens included."""
        return np.diff(self.offsets_N1)

    def take(self, indices: ArrayLike) -> TokenRows:
        """Give the texts at these positions, in this order; a position may come twice."""
        picked = np.asarray(indices, dtype=np.int64).reshape(-1)
        lengths = self.lengths_N[picked]
        offsets = _offsets(lengths)
        # Where each picked text starts, less where it lands, spread over its tokens.
        shift = np.repeat(self.offsets_N1[:-1][picked] - offsets[:-1], lengths)
        return TokenRows(self.ids_T[np.arange(offsets[-1]) + shift], offsets, self.cut_N[picked])

    def to_arrow(self) -> pa.LargeListArray:
        """Give the ids as one large_list<int32> of N texts, without a copy; the cuts stay here."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets_N1), pa.array(self.ids_T))

    @classmethod
    def from_arrow(cls, ids: pa.Array | pa.ChunkedArray, cut: ArrayLike) -> Self:
        """Read lists of int32, sliced or chunked as they may be; one chunk's ids are not copied.

        Raises:
            ValueError: a list is null, or `cut` counts another number of texts.
        """
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks() if ids.num_chunks != 1 else ids.chunk(0)
        if ids.null_count:
            raise ValueError(f"{ids.null_count} of {len(ids)} token lists are null")
        bounds = ids.offsets.to_numpy().astype(np.int64) if len(ids) else np.zeros(1, np.int64)
        tokens = ids.values.slice(bounds[0], bounds[-1] - bounds[0]).to_numpy()
        return cls(
            tokens.astype(np.int32, copy=False),
            bounds - bounds[0],
            np.asarray(cut, dtype=np.int32).reshape(-1),
        )


class TextTokenizer:
    """A tokenizer for whole lists of texts: the ids `truncation=True` gives, never padded.

    Holds its own copy of the Rust tokenizer with truncation switched on once, so threads may share
    it and a process may fork. 1.2 times the tokens per second and core of
    `tokenizer(texts, truncation=True)` on 3,000 responses in MiniLM's vocabulary, because no masks
    are made and no lists kept. One core each where TOKENIZERS_PARALLELISM is false, as workers that
    share a machine want it; else all cores.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int = 512) -> None:  # noqa: ANN401  - transformers ships no usable types
        special = tokenizer.num_special_tokens_to_add(pair=False)
        if max_tokens <= special:
            raise ValueError(f"max_tokens must be above {special} special tokens, got {max_tokens}")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pad_id = int(tokenizer.pad_token_id or 0)  # masked out, so any id of the vocabulary
        self._special_tokens = special
        self._backend = _own_backend(tokenizer, max_tokens)

    @classmethod
    def load(cls, folder_or_name: str, *, max_tokens: int = 512) -> Self:
        """Read the tokenizer of a local or fsspec folder, or of a hub name; no remote code is run.

        Raises:
            RankerError: there is no tokenizer that can be read.
        """
        return cls(load_tokenizer(folder_or_name), max_tokens=max_tokens)

    def save(self, folder: str) -> None:
        """Write the tokenizer's files into a local folder."""
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, texts: Sequence[str]) -> TokenRows:
        """Give each text's ids in input order, special tokens included, at most `max_tokens`."""
        ids: list[list[int]] = []
        cut: list[int] = []
        encode = self._encode if self._backend is not None else self._encode_plainly
        for chunk in _chunks(texts):
            for text_ids, text_cut in encode(chunk):
                ids.append(text_ids)
                cut.append(text_cut)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        offsets = _offsets(lengths)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=offsets[-1])
        return TokenRows(flat, offsets, np.asarray(cut, dtype=np.int32))

    def tokenize_whole(self, texts: Sequence[str]) -> TokenRows:
        """As `tokenize`, but nothing is cut off."""
        ids: list[list[int]] = []
        for chunk in _chunks(texts):
            if self._whole is None:
                ids += self.tokenizer(chunk, verbose=False)["input_ids"]
            else:
                ids += [encoding.ids for encoding in self._whole.encode_batch_fast(chunk)]
        offsets = _offsets(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=offsets[-1])
        return TokenRows(flat, offsets, np.zeros(len(ids), np.int32))

    @cached_property
    def edges(self) -> tuple[int, int]:
        """Special tokens before a text and after it."""
        bare, some = (self.tokenize_whole([text]).ids_T.tolist() for text in ("", "a"))
        same = (one == other for one, other in zip(bare, some, strict=False))
        before = sum(takewhile(bool, same))
        return before, len(bare) - before

    @cached_property
    def _whole(self) -> Any:  # noqa: ANN401  - as above
        """A copy of the Rust tokenizer that cuts nothing off; None when there is none."""
        if self._backend is None:
            return None
        whole = type(self._backend).from_str(self._backend.to_str())
        whole.no_truncation()
        # Not a part of what `to_str` tells.
        whole.encode_special_tokens = self._backend.encode_special_tokens
        return whole

    def _encode(self, texts: list[str]) -> Iterator[tuple[list[int], int]]:
        """Ids and cut counts from the Rust tokenizer, which keeps what it cut off as overflow."""
        for encoding in self._backend.encode_batch_fast(texts):
            over = encoding.overflowing if len(encoding) >= self.max_tokens else ()
            # Each piece of overflow carries the special tokens again.
            yield encoding.ids, sum(len(piece) - self._special_tokens for piece in over)

    def _encode_plainly(self, texts: list[str]) -> Iterable[tuple[list[int], int]]:
        """Ids and cut counts from a tokenizer written in Python: each text twice, once whole."""
        whole = self.tokenizer(texts, verbose=False)["input_ids"]
        kept = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
        return ((ids, len(full) - len(ids)) for ids, full in zip(kept, whole, strict=True))


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Give texts that are tokenized together, in order; one too long for that comes alone."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        full = len(chunk) == _CHUNK_TEXTS or characters + len(text) > _CHUNK_CHARACTERS
        if chunk and full:
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


def load_tokenizer(folder_or_name: str) -> Any:  # noqa: ANN401  - one of transformers' many tokenizer classes
    """Read a transformers tokenizer as TextTokenizer.load does.

    Raises:
        RankerError: there is no tokenizer that can be read.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415  - seconds, and TokenRows needs none of it

    try:
        # quiet: it warns that it does not know a ranker's model_type, and need not.
        with local_folder(folder_or_name, files=("config.json", *TOKENIZER_FILES)) as here, quiet():
            return AutoTokenizer.from_pretrained(here, trust_remote_code=False)
    except Exception as error:  # the Rust library raises no narrower class
        raise RankerError(
            f"{folder_or_name}: no tokenizer that transformers can read ({first_line(error)}). "
            f"Give a folder with tokenizer.json, or a hub name that can be reached."
        ) from error


@contextmanager
def local_folder(path: str, *, files: tuple[str, ...]) -> Iterator[str]:
    """Give a path that other libraries can open; of a remote folder a copy of these files."""
    if storage.is_local(path):
        yield path if "://" not in path else storage.absolute(path)
        return
    with tempfile.TemporaryDirectory() as local:
        for name in files:
            if storage.exists(storage.join(path, name)):
                (Path(local) / name).write_bytes(storage.read_bytes(storage.join(path, name)))
        yield local


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars and reports: ours is an error or nothing."""
    from transformers.utils import logging  # noqa: PLC0415  - as above

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Give the first line of an error's text: others' messages run over a screen."""
    lines = str(error).strip().split("\n")
    return lines[0] or type(error).__name__


def _own_backend(tokenizer: Any, max_tokens: int) -> Any:  # noqa: ANN401  - as above
    """Copy the Rust tokenizer, truncating and not padding; None when there is none."""
    shared = getattr(tokenizer, "backend_tokenizer", None)
    if shared is None:
        return None
    backend = type(shared).from_str(shared.to_str())
    backend.enable_truncation(
        max_tokens, strategy="longest_first", direction=tokenizer.truncation_side
    )
    backend.no_padding()
    backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return backend


def _offsets(lengths_N: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths_N) + 1, dtype=np.int64)
    np.cumsum(lengths_N, out=offsets[1:])
    return offsets
