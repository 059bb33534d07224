"""From text to tokens: what a continuation is, behind a prompt.

The tokens of a continuation are those that encoding prompt and continuation together adds to the prompt's own. Encoding
every pair costs n * K texts. Prompts with the same last line and last tokens get the same continuations, so one of them
is encoded with all K; every other prompt is encoded with one, in turn, to see that this holds for this tokenizer. Where
it does not, every pair is encoded.

Continuations that end with the terminator must not begin one another. Where the tokenizer reads a newline as a space or
as nothing, as those of T5 and XGLM do, its EOS token is the terminator. Special tokens that a tokenizer puts behind a
text are taken off, because a continuation stands there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from personalization.errors import DataError
from personalization.scoring.rows import Tokens
from personalization.tasks.task import ENDS as TERMINATOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Tails = tuple[tuple[int, ...], ...]

TAIL = 32
"""Characters that stand for the last line of a prompt without lines."""
CHUNK = 256
"""Texts that are encoded at once."""


class PairEncoder:
    """Encodes prompts and their continuations for one tokenizer.

    `chat`: prompts are whole conversations, special tokens included (see `backbones.chat`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        begin = [] if tokenizer.bos_token is None else tokenizer(tokenizer.bos_token)["input_ids"]
        self._doubles_bos = len(begin) > 1 and begin[0] == begin[1] == tokenizer.bos_token_id
        self._behind = self._special_tokens_behind()
        plain, ended, spaced = (tokens.tolist() for tokens in self._tokens(["a", f"a{TERMINATOR}", "a "], chat))
        self._folds = ended in (plain, spaced)

    def encode(self, prompts: Sequence[str], continuations: Sequence[str]) -> tuple[list[Tokens], list[Tails]]:
        """Tokens of each prompt, and of each continuation behind it; DataError where they cannot be told apart."""
        if "" in continuations or TERMINATOR in continuations:
            raise DataError("a continuation is empty: an empty text has no probability; check the labels")
        heads = list(self._tokens(prompts, self.chat))
        terminated = all(continuation.endswith(TERMINATOR) for continuation in continuations)
        if terminated and self._folds:
            tails = self._ended_by_eos(prompts, continuations, heads)
        else:
            tails = self._tails(prompts, continuations, heads)
            if terminated and _alike(tails, continuations):
                tails = self._ended_by_eos(prompts, continuations, heads)
        return self._never_empty(heads), tails

    def heads(self, prompts: Sequence[str]) -> list[Tokens]:
        """Tokens of each prompt."""
        return self._never_empty(list(self._tokens(prompts, self.chat)))

    def texts(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of texts that ask nothing: no template stands around them."""
        return self._never_empty(list(self._tokens(texts, False)))

    def _never_empty(self, heads: Sequence[Tokens]) -> list[Tokens]:
        return [head if len(head) else np.array([self._start_token()], np.int32) for head in heads]

    def _tails(self, prompts: Sequence[str], continuations: Sequence[str], heads: Sequence[Tokens]) -> list[Tails]:
        tails = self._tails_of_last_lines(prompts, continuations, heads)
        if tails is None:
            log.info("the last line of a prompt does not settle its continuations' tokens: every pair is encoded")
            tails = self._tails_of_pairs(prompts, continuations, heads)
        return tails

    def _ended_by_eos(
        self, prompts: Sequence[str], continuations: Sequence[str], heads: Sequence[Tokens]
    ) -> list[Tails]:
        """Tails with EOS in the place of the terminator."""
        end = self.tokenizer.eos_token_id
        if end is None:
            raise DataError(
                "the tokenizer gives the newline behind a label no token of its own and has no EOS token, "
                "so that nothing ends an answer; give a model whose tokenizer has one of them"
            )
        log.info("answers end with EOS: to this tokenizer a newline behind a label is a space, or nothing")
        stems = [continuation.removesuffix(TERMINATOR) for continuation in continuations]
        tails = [tuple((*tail, end) for tail in of_one) for of_one in self._tails(prompts, stems, heads)]
        if pair := _alike(tails, stems):
            raise DataError(f"labels {pair[0]!r} and {pair[1]!r} are the same tokens to this tokenizer; rename one")
        return tails

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
        joint = self._tokens([prompt + continuations[k] for prompt, k in zip(prompts, turn, strict=True)], self.chat)
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
            joint = self._tokens([prompt + continuation for continuation in continuations], self.chat)
            for continuation, whole in zip(continuations, joint, strict=True):
                if len(whole) <= len(head) or (whole[: len(head)] != head).any():
                    raise DataError(
                        f"the tokenizer merges the end of prompt {prompt[-20:]!r} with continuation "
                        f"{continuation!r}; end the prompt without a space and begin the continuation with one"
                    )
                tail.append(tuple(whole[len(head) :].tolist()))
            tails.append(tuple(tail))
        return tails

    def _tokens(self, texts: Sequence[str], templated: bool) -> Iterator[Tokens]:
        """Token ids with the special tokens that stand before a text, but never a second BOS before one in the text.

        `templated`: a chat template has put the special tokens into the text.
        """
        if self._doubles_bos and not templated:
            texts = [text.removeprefix(self.tokenizer.bos_token) for text in texts]
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            ids: Any = self.tokenizer(chunk, add_special_tokens=not templated)["input_ids"]
            yield from (np.array(row[: len(row) - self._behind * (not templated)], dtype=np.int32) for row in ids)

    def _special_tokens_behind(self) -> int:
        """How many special tokens the tokenizer puts behind a text."""
        whole, bare = (self.tokenizer(["a"], add_special_tokens=special)["input_ids"][0] for special in (True, False))
        starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
        return len(whole) - len(bare) - starts[0] if bare and starts else 0

    def _start_token(self) -> int:
        """What stands before a continuation without a prompt."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise DataError("an empty prompt cannot be scored: the tokenizer has neither a BOS nor an EOS token")


def _alike(tails: Sequence[Tails], continuations: Sequence[str]) -> tuple[str, str] | None:
    """Two different continuations of which one's tokens begin the other's, or None."""
    for tail in {id(tail): tail for tail in tails}.values():
        order = sorted(range(len(tail)), key=lambda k: tail[k])
        for one, other in pairwise(order):
            if tail[other][: len(tail[one])] == tail[one] and continuations[one] != continuations[other]:
                return continuations[one], continuations[other]
    return None
