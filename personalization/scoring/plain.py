"""Two slower routes, for models that cannot take a tree mask.

`PromptOnce` runs the prompt once, repeats its cache, and runs the candidates behind it in rows of their own. All
prompts of a batch have the same length, so there is no padding, no mask, and every position is where the model expects
it: exact for any model that continues from its own cache, as ALiBi models do.

`RowPerCandidate` is the definition: prompt and candidate in one row, through the model's own forward pass. It asks
nothing of the model but that it is causal. With `alone`, rows are neither padded nor batched, and the model forgets
between them how long the last one was; that serves rotary positions that depend on the length of the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from personalization.scoring.candidates import build_tree
from personalization.scoring.head import Head, read_labels
from personalization.scoring.rows import Row, Tokens

AT_ONCE = 64
"""Rows of candidates in one forward pass."""

Candidates = Sequence[Sequence[int]]


class PromptOnce:
    """Route of cached prompts: each prompt once, behind it one row for each chain of the candidates' tree."""

    same_width = True

    def __init__(self, model: PreTrainedModel, head: Head, prompts: Sequence[Tokens], candidates: Candidates) -> None:
        self.model, self.head, self.prompts, self.tree = model, head, prompts, build_tree(candidates)
        steps = list(zip_longest(*self.tree.chains(), fillvalue=-1))
        self._chains = np.array(steps, dtype=np.int64).T if steps else np.empty((0, 0), dtype=np.int64)
        self.units = [Row((i,), 0, len(prompt) + self._chains.size) for i, prompt in enumerate(prompts)]

    def score(self, rows: Sequence[Row]) -> Tensor:
        """Prompts of one length, then their candidates: float32 [prompts, K]."""
        ids = np.stack([self.prompts[row.prompts[0]] for row in rows]).astype(np.int64)
        if not len(self._chains):
            states = self.model.base_model(input_ids=self._tensor(ids), use_cache=False)[0]
            return read_labels(self.head, states[:, -1:], self.tree)
        cache = DynamicCache(config=self.model.config.get_text_config())
        states = self.model.base_model(input_ids=self._tensor(ids), past_key_values=cache, use_cache=True)[0]
        places = states.new_empty(len(ids), 1 + len(self.tree.tokens), states.shape[-1])
        places[:, 0] = states[:, -1]
        size = max(1, AT_ONCE // len(ids))
        for start in range(0, len(self._chains), size):
            chains = self._chains[start : start + size]
            own = cache if start + size >= len(self._chains) else copy.deepcopy(cache)
            own.batch_repeat_interleave(len(chains))
            fed = np.where(chains < 0, 0, self.tree.tokens[chains])
            states = self.model.base_model(
                input_ids=self._tensor(np.tile(fed, (len(ids), 1))), past_key_values=own, use_cache=True
            )[0].view(len(ids), *chains.shape, -1)
            chain, step = np.nonzero(chains >= 0)
            places[:, 1 + chains[chain, step]] = states[:, chain, step]
        return read_labels(self.head, places, self.tree)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)


class RowPerCandidate:
    """Route of plain rows: every candidate behind its prompt."""

    same_width = False

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head | None,
        prompts: Sequence[Tokens],
        candidates: Candidates,
        alone: bool = False,
    ) -> None:
        self.model, self.head, self.prompts, self.candidates = model, head, prompts, [list(c) for c in candidates]
        self.alone = alone
        longest = max(map(len, candidates)) - 1
        self.units = [Row((i,), 0, len(candidates) * (len(prompt) + longest)) for i, prompt in enumerate(prompts)]

    def score(self, rows: Sequence[Row]) -> Tensor:
        """float32 [prompts, K]. Without a known head all positions of a row get logits."""
        prompts = [self.prompts[row.prompts[0]].tolist() for row in rows]
        pairs = [(prompt, candidate) for prompt in prompts for candidate in self.candidates]
        size = 1 if self.alone else AT_ONCE
        parts = [self._forward(pairs[start : start + size]) for start in range(0, len(pairs), size)]
        return torch.cat(parts).view(len(rows), -1)

    def _forward(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """The scores of one batch of right-padded rows."""
        width = max(len(prompt) + len(candidate) for prompt, candidate in pairs) - 1
        ids = torch.zeros(len(pairs), width, dtype=torch.long)
        real = torch.zeros_like(ids)
        for i, (prompt, candidate) in enumerate(pairs):
            text = torch.tensor(prompt + candidate[:-1])
            ids[i, : len(text)] = text
            real[i, : len(text)] = 1
        ids, run = ids.to(self.model.device), self.model if self.head is None else self.model.base_model
        if self.alone:
            run(input_ids=ids[:, :1], use_cache=False)  # dynamic rotary positions start anew after a short row
            states = run(input_ids=ids, use_cache=False)[0]
        else:
            states = run(input_ids=ids, attention_mask=real.to(ids.device), use_cache=False)[0]
        out = torch.empty(len(pairs))
        for i, (prompt, candidate) in enumerate(pairs):
            read = states[i, len(prompt) - 1 : len(prompt) + len(candidate) - 1]
            logits = (read if self.head is None else self.head(read)).float()
            wanted = torch.tensor(candidate, device=logits.device)
            out[i] = (logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1)).sum()
        return out
