"""From text to tokens: what a continuation is, behind a prompt.

The tokens of a continuation are those that encoding prompt and continuation together adds to the prompt's own. Encoding
every pair costs n * K texts. Prompts with the same last line and last tokens get the same continuations, so one of them
is encoded with all K; every other prompt is encoded with one, in turn, to see that this holds for this tokenizer. Where
it does not, every pair is encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from personalization.errors import DataError
from personalization.scoring.rows import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Tails = tuple[tuple[int, ...], ...]

TAIL = 32
"""Characters that stand for the last line of a prompt without lines."""
CHAT_DATE = "26 Jul 2024"
"""The day that a chat template which asks is told, so that a prompt is the same tomorrow; Llama 3's own default."""
CHUNK = 256
"""Texts that are encoded at once."""


class PairEncoder:
    """Encodes prompts and their continuations for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
        if chat and tokenizer.chat_template is None:
            raise DataError("the model's tokenizer has no chat template; set chat: false")
        self.tokenizer = tokenizer
        self.chat = chat
        begin = [] if tokenizer.bos_token is None else tokenizer(tokenizer.bos_token)["input_ids"]
        self._doubles_bos = not chat and len(begin) > 1 and begin[0] == begin[1] == tokenizer.bos_token_id

    def encode(self, prompts: Sequence[str], continuations: Sequence[str]) -> tuple[list[Tokens], list[Tails]]:
        """Tokens of each prompt, and of each continuation behind it."""
        if "" in continuations:
            raise DataError("a continuation is empty: an empty text has no probability; check the labels")
        if self.chat:
            prompts = [self._templated(prompt) for prompt in prompts]
        heads = list(self._tokens(prompts))
        tails = self._tails_of_last_lines(prompts, continuations, heads)
        if tails is None:
            log.info("the last line of a prompt does not settle its continuations' tokens: every pair is encoded")
            tails = self._tails_of_pairs(prompts, continuations, heads)
        return self._never_empty(heads), tails

    def heads(self, prompts: Sequence[str]) -> list[Tokens]:
        """Tokens of each prompt."""
        if self.chat:
            prompts = [self._templated(prompt) for prompt in prompts]
        return self._never_empty(list(self._tokens(prompts)))

    def _never_empty(self, heads: Sequence[Tokens]) -> list[Tokens]:
        return [head if len(head) else np.array([self._start_token()], np.int32) for head in heads]

    def _tails_of_last_lines(
        self, prompts: Sequence[str], continuations: Sequence[str], heads: Sequence[Tokens]
    ) -> list[Tails] | None:
        """Tails found once for each last line, or None where a prompt disagrees."""
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for i, (prompt, head) in enumerate(zip(prompts, heads, strict=True)):
            line = prompt[prompt.rfind("\n") :] if "\n" in prompt else prompt[-TAIL:]
            groups.setdefault((line, tuple(head[-2:].tolist())), []).append(i)
        first = [rows[0] for rows in groups.values()]
        found = self._tails_of_pairs([prompts[i] for i in first], continuations, [heads[i] for i in first])
        tails: list[Tails] = [()] * len(prompts)
        for rows, tail in zip(groups.values(), found, strict=True):
            for i in rows:
                tails[i] = tail
        turn = [i % len(continuations) for i in range(len(prompts))]
        joint = self._tokens([prompt + continuations[k] for prompt, k in zip(prompts, turn, strict=True)])
        for head, whole, tail, k in zip(heads, joint, tails, turn, strict=True):
            if tuple(whole[len(head) :].tolist()) != tail[k] or (whole[: len(head)] != head).any():
                return None
        return tails

    def _tails_of_pairs(
        self, prompts: Sequence[str], continuations: Sequence[str], heads: Sequence[Tokens]
    ) -> list[Tails]:
        """Tails from encoding every prompt with every continuation."""
        tails = []
        for prompt, head in zip(prompts, heads, strict=True):
            tail = []
            joint = self._tokens([prompt + continuation for continuation in continuations])
            for continuation, whole in zip(continuations, joint, strict=True):
                if len(whole) <= len(head) or (whole[: len(head)] != head).any():
                    raise DataError(
                        f"the tokenizer merges the end of prompt {prompt[-20:]!r} with continuation "
                        f"{continuation!r}; end the prompt without a space and begin the continuation with one"
                    )
                tail.append(tuple(whole[len(head) :].tolist()))
            tails.append(tuple(tail))
        return tails

    def _templated(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                date_string=CHAT_DATE,
            )
        )

    def _tokens(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Token ids, with the special tokens that the tokenizer adds, but never a second BOS before one in the text."""
        if self._doubles_bos:
            texts = [text.removeprefix(self.tokenizer.bos_token) for text in texts]
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            ids: Any = self.tokenizer(chunk, add_special_tokens=not self.chat)["input_ids"]
            yield from (np.array(row, dtype=np.int32) for row in ids)

    def _start_token(self) -> int:
        """What stands before a continuation without a prompt."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise DataError("an empty prompt cannot be scored: the tokenizer has neither a BOS nor an EOS token")
