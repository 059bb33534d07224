"""Two slower routes, for models that cannot take a tree mask.

`PromptOnce` runs the prompt once, repeats its cache, and runs the candidates behind it in rows of their own. All
prompts of a batch have the same length, so there is no padding, no mask, and every position is where the model expects
it: exact for any model that continues from its own cache, as ALiBi models do.

`RowPerCandidate` is the definition: prompt and candidate in one right-padded row, through the model's own forward pass.
It asks nothing of the model but that it is causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from personalization.scoring.candidates import CandidateTree
from personalization.scoring.head import Head, read_labels
from personalization.scoring.rows import Row, Tokens


class PromptOnce:
    """Route of cached prompts: each prompt once, behind it one row for each chain of the candidates' tree."""

    same_width = True

    def __init__(self, model: PreTrainedModel, head: Head, prompts: Sequence[Tokens], tree: CandidateTree) -> None:
        self.model, self.head, self.prompts, self.tree = model, head, prompts, tree
        steps = list(zip_longest(*tree.chains(), fillvalue=-1))
        self._chains = np.array(steps, dtype=np.int64).T if steps else np.empty((0, 0), dtype=np.int64)
        self.units = [Row((i,), 0, len(prompt) + self._chains.size) for i, prompt in enumerate(prompts)]

    def score(self, rows: Sequence[Row]) -> Tensor:
        """Two forward passes over prompts of one length: float32 [prompts, K]."""
        ids = np.stack([self.prompts[row.prompts[0]] for row in rows]).astype(np.int64)
        nodes, (chains, longest) = len(self.tree.tokens), self._chains.shape
        if nodes == 0:
            states = self.model.base_model(input_ids=self._tensor(ids), use_cache=False)[0]
            return read_labels(self.head, states[:, -1:], self.tree)
        cache = DynamicCache(config=self.model.config.get_text_config())
        states = self.model.base_model(input_ids=self._tensor(ids), past_key_values=cache, use_cache=True)[0]
        places = torch.empty(len(ids), 1 + nodes, states.shape[-1], dtype=states.dtype, device=states.device)
        places[:, 0] = states[:, -1]
        cache.batch_repeat_interleave(chains)
        fed = np.where(self._chains < 0, 0, self.tree.tokens[self._chains])
        states = self.model.base_model(
            input_ids=self._tensor(np.tile(fed, (len(ids), 1))), past_key_values=cache, use_cache=True
        )[0].view(len(ids), chains, longest, -1)
        chain, step = np.nonzero(self._chains >= 0)
        places[:, 1 + self._chains[chain, step]] = states[:, chain, step]
        return read_labels(self.head, places, self.tree)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)


class RowPerCandidate:
    """Route of plain rows: every candidate behind its prompt."""

    same_width = False

    def __init__(
        self, model: PreTrainedModel, head: Head | None, prompts: Sequence[Tokens], tree: CandidateTree
    ) -> None:
        self.model, self.head, self.prompts, self.tree = model, head, prompts, tree
        longest, count = tree.places.shape[1] - 1, len(tree.lengths)
        self.units = [Row((i,), 0, count * (len(prompt) + longest)) for i, prompt in enumerate(prompts)]

    def score(self, rows: Sequence[Row]) -> Tensor:
        """One forward pass: float32 [prompts, K]. Without a known head all positions of a row get logits."""
        candidates = [self.tree.candidate(k) for k in range(len(self.tree.lengths))]
        starts, texts = [], []
        for row in rows:
            prompt = self.prompts[row.prompts[0]].tolist()
            starts += [len(prompt) - 1] * len(candidates)
            texts += [prompt + candidate for candidate in candidates]
        width = max(map(len, texts)) - 1
        ids = torch.tensor([text[:-1] + [0] * (width + 1 - len(text)) for text in texts])
        real = torch.tensor([[1] * (len(text) - 1) + [0] * (width + 1 - len(text)) for text in texts])
        run = self.model if self.head is None else self.model.base_model
        states = run(input_ids=ids.to(self.model.device), attention_mask=real.to(self.model.device), use_cache=False)[0]
        out = torch.empty(len(texts))
        for i, (start, text) in enumerate(zip(starts, texts, strict=True)):
            read = states[i, start : len(text) - 1]
            logits = (read if self.head is None else self.head(read)).float()
            wanted = torch.tensor(text[start + 1 :], device=logits.device)
            out[i] = (logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1)).sum()
        return out.view(len(rows), -1)
