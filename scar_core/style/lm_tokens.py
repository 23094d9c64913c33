"""Prompts and responses as token ids of a language model, and its files read.

A prompt is the instruction in the tokenizer's chat template, as one user turn and the opening of
the answer; without a template the start token, the instruction and an empty line. The response
follows, its text alone. Both are tokenized apart, so that a response has the same tokens whatever
it follows.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from scar_core import storage
from scar_core.errors import InputError
from scar_core.ranker.encoding import TokenRows, first_line, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    Precision = Literal["fp32", "bf16"]

_HERE = "\ue000instruction\ue001"
"""Stands for the instruction while a template is cut in two: private use, in no vocabulary."""
_CHUNK_TEXTS = 256


class LanguageModel(NamedTuple):
    """A causal language model in eval mode and its tokenizer, both transformers' own."""

    model: Any
    tokenizer: Any


def load_language_model(path: str, *, precision: Precision = "fp32") -> LanguageModel:
    """Read a model from a local or fsspec folder, a `.gguf` file, or a hub name.

    No code of a model is ever run. GGUF files need the package `gguf`, and are taken out of their
    quantization.

    Raises:
        InputError: there is none that transformers can read as a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415  - seconds

    options: dict[str, Any] = {"trust_remote_code": False}
    folder = path
    if path.endswith(".gguf"):
        folder, _, options["gguf_file"] = path.rpartition("/")
    try:
        with tempfile.TemporaryDirectory() as local, quiet():
            if "://" in folder:
                storage.download_folder(folder, Path(local))
                folder = local
            tokenizer = AutoTokenizer.from_pretrained(folder or ".", **options)
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            model = AutoModelForCausalLM.from_pretrained(folder or ".", dtype=dtype, **options)
    except Exception as error:  # transformers and its Rust libraries raise whatever they like
        raise InputError(
            f"{path}: no causal language model that transformers can read ({first_line(error)}). "
            "Give a folder with config.json, weights and tokenizer, a .gguf file (with the package "
            "gguf), or a hub name that can be reached."
        ) from error
    return LanguageModel(model.eval(), tokenizer)


class PairTokenizer:
    """Texts to a language model's token ids; `start_id` stands before what follows nothing."""

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401  - transformers ships no usable types
        *,
        max_tokens: int,
        template: Literal["auto", "never"] = "auto",
    ) -> None:
        """Cut the chat template in two.

        Raises:
            InputError: the template does not take one user turn, or leaves no room for it.
        """
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        bos = tokenizer.bos_token_id
        self.start_id: int | None = tokenizer.eos_token_id if bos is None else bos
        """BOS, or as for GPT-2 EOS; None where a tokenizer has neither."""
        self._templated = template == "auto" and bool(tokenizer.chat_template)
        before, after = self._template() if self._templated else ("", "\n\n")
        self._before, self._after = before, after
        self._after_ids = self._ids([after])[0]
        if max_tokens <= len(self._ids([before])[0]) + len(self._after_ids) + 1:
            raise InputError(
                f"max_tokens is {max_tokens}, and the chat template alone takes as many. "
                "Raise it, or use no template."
            )

    def prompts(self, instructions: Sequence[str]) -> TokenRows:
        """Give instructions as prompts; the end of one that is too long is cut."""
        start = [] if self._templated or self.start_id is None else [self.start_id]
        texts = [f"{self._before}{text}{self._after}" for text in instructions]
        kept, cut = [], []
        for ids in map(start.__add__, self._ids(texts)):
            over = max(0, len(ids) - self.max_tokens)
            room = self.max_tokens - len(self._after_ids)
            kept.append(ids[:room] + self._after_ids if over else ids)
            cut.append(over)
        return _rows(kept, cut)

    def responses(self, responses: Sequence[str]) -> TokenRows:
        """Give the texts of responses without any special token, cut at the end."""
        ids = self._ids(responses)
        cut = [max(0, len(text) - self.max_tokens) for text in ids]
        return _rows([text[: self.max_tokens] for text in ids], cut)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> tuple[TokenRows, TokenRows]:
        """Prompts and responses of (instruction, response) pairs."""
        return (
            self.prompts([instruction for instruction, _ in pairs]),
            self.responses([response for _, response in pairs]),
        )

    def _template(self) -> tuple[str, str]:
        """What the chat template puts before and after an instruction."""
        turn = [{"role": "user", "content": _HERE}]
        try:
            text = self.tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of its own
            raise InputError(
                f"the tokenizer's chat template takes no single user turn ({first_line(error)}). "
                "Use no template."
            ) from error
        before, found, after = text.partition(_HERE)
        if not found or _HERE in after:
            raise InputError(
                "the tokenizer's chat template does not hold the instruction once. Use no template."
            )
        return before, after

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = []
        for first in range(0, len(texts), _CHUNK_TEXTS):
            chunk = list(texts[first : first + _CHUNK_TEXTS])
            found += self.tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]
        return found


def _rows(ids: list[list[int]], cut: list[int]) -> TokenRows:
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(text) for text in ids], out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(ids), np.int32, count=offsets[-1])
    return TokenRows(flat, offsets, np.array(cut, np.int32))
