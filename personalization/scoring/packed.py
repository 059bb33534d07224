"""Scoring all candidates of a prompt in one row.

A row holds the prompt once and after it the candidates' tokens as a tree: candidates that begin with the same tokens
share them, and no candidate's last token is fed, because nothing is read after it. So single-token candidates cost
nothing beyond the prompt. A node sees the prompt and its own ancestors (additive float mask) and has the position it
would have if it followed the prompt alone. Only the prompt's last position and the nodes reach the LM head.

`score_rows` is the plain route: each candidate in a row of its own. It serves models that cannot take a tree mask.
This file knows token ids and a model, and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Tokens = Sequence[int]
Progress = Callable[[int, int], None]

LOGIT_BUDGET = 1 << 27
"""How many logits (rows * positions * vocabulary) one batch may make."""


@dataclass(frozen=True)
class CandidateTree:
    """Candidates as a tree of fed tokens.

    `tokens`, `depths`: int [N], the nodes; `sees`: bool [N, N], row attends to column (ancestors and itself).
    Candidate k has `lengths[k]` tokens; its j-th is `targets[k, j]`, predicted at `sources[k, j]`: 0 is the prompt's
    last position, 1 + i is node i.
    """

    tokens: NDArray[np.int64]
    depths: NDArray[np.int64]
    sees: NDArray[np.bool_]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def build_tree(candidates: Sequence[Tokens]) -> CandidateTree:
    """The tree of candidates given as token ids, none of them empty."""
    nodes: dict[tuple[int, ...], int] = {}
    longest = max(map(len, candidates))
    sources = np.zeros((len(candidates), longest), dtype=np.int64)
    targets = np.zeros_like(sources)
    for k, candidate in enumerate(candidates):
        for j, token in enumerate(candidate):
            prefix = tuple(candidate[:j])
            sources[k, j] = 0 if j == 0 else 1 + nodes.setdefault(prefix, len(nodes))
            targets[k, j] = token
    sees = np.zeros((len(nodes), len(nodes)), dtype=np.bool_)
    for prefix, node in nodes.items():
        for end in range(1, len(prefix) + 1):
            sees[node, nodes[prefix[:end]]] = True
    return CandidateTree(
        tokens=np.array([prefix[-1] for prefix in nodes], dtype=np.int64),
        depths=np.array([len(prefix) for prefix in nodes], dtype=np.int64),
        sees=sees,
        sources=sources,
        targets=targets,
        lengths=np.array([len(c) for c in candidates], dtype=np.int64),
    )


def score_packed(model: nn.Module, prompts: Sequence[Tokens], tree: CandidateTree) -> Tensor:
    """One forward pass: float32 [rows, K], the summed log-probability of each candidate after each prompt."""
    device = next(model.parameters()).device
    n, extra = len(prompts), len(tree.tokens)
    longest = max(map(len, prompts))
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.zeros(n, longest + extra, dtype=torch.long)
    positions = torch.zeros_like(ids)
    visible = torch.zeros(n, longest + extra, longest + extra, dtype=torch.bool)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    node_tokens, depths = torch.from_numpy(tree.tokens), torch.from_numpy(tree.depths)
    for row, prompt in enumerate(prompts):
        end = len(prompt)
        ids[row, :end] = torch.tensor(prompt)
        ids[row, longest:] = node_tokens
        positions[row, :end] = torch.arange(end)
        positions[row, longest:] = end - 1 + depths
        visible[row, :end, :end] = causal[:end, :end]
        visible[row, longest:, :end] = True
        visible[row, longest:, longest:] = torch.from_numpy(tree.sees)
    visible |= torch.eye(longest + extra, dtype=torch.bool)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    keep = torch.cat([(lengths - 1)[:, None], torch.arange(longest, longest + extra).expand(n, -1)], dim=1)
    logits = model(
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        attention_mask=mask[:, None].to(device),
        logits_to_keep=keep.to(device),
        use_cache=False,
    ).logits
    return _gather(logits, tree)


def score_rows(model: nn.Module, prompts: Sequence[Tokens], tree: CandidateTree) -> Tensor:
    """One forward pass over rows * K plain rows, right-padded: float32 [rows, K]."""
    device = next(model.parameters()).device
    candidates = [tree.targets[k, :length].tolist() for k, length in enumerate(tree.lengths)]
    rows = [[*prompt, *candidate[:-1]] for prompt in prompts for candidate in candidates]
    longest, width = max(map(len, rows)), tree.targets.shape[1]
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        start = len(prompts[i // len(candidates)]) - 1
        keep[i] = torch.arange(start, start + width).clamp(max=len(row) - 1)
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), logits_to_keep=keep.to(device), use_cache=False
    ).logits
    log_probs = logits.float() - logits.float().logsumexp(dim=-1, keepdim=True)
    targets = torch.from_numpy(tree.targets).repeat(len(prompts), 1).to(device)
    real = torch.arange(width) < torch.from_numpy(tree.lengths)[:, None]
    steps = log_probs.gather(-1, targets[..., None]).squeeze(-1)
    return (steps * real.repeat(len(prompts), 1).to(device)).sum(dim=-1).view(len(prompts), -1).cpu()


def _gather(logits: Tensor, tree: CandidateTree) -> Tensor:
    """Sum each candidate's token log-probabilities from logits [rows, 1 + N, V]."""
    logits = logits.float()
    sources = torch.from_numpy(tree.sources).to(logits.device)
    targets = torch.from_numpy(tree.targets).to(logits.device)
    steps = logits[:, sources, targets] - logits.logsumexp(dim=-1)[:, sources]
    real = torch.arange(sources.shape[1]) < torch.from_numpy(tree.lengths)[:, None]
    return (steps * real.to(logits.device)).sum(dim=-1).cpu()


def score_all(
    model: nn.Module,
    prompts: Sequence[Tokens],
    tree: CandidateTree,
    route: Callable[[nn.Module, Sequence[Tokens], CandidateTree], Tensor],
    token_budget: int,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Score every prompt by `route`, longest first, in batches of at most `token_budget` padded tokens.

    A batch that does not fit in memory is halved, and so is the budget from then on.
    """
    out = np.empty((len(prompts), len(tree.lengths)), dtype=np.float32)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    done = 0
    with torch.inference_mode():
        while done < len(order):
            width = len(prompts[order[done]]) + len(tree.tokens)
            fed = width * (len(tree.lengths) if route is score_rows else 1)
            read = vocabulary * (int(tree.lengths.sum()) if route is score_rows else 1 + len(tree.tokens))
            rows = max(1, min(token_budget // fed, LOGIT_BUDGET // read))
            batch = order[done : done + rows]
            try:
                out[batch] = route(model, [prompts[i] for i in batch], tree).numpy()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(batch) == 1 or not _is_out_of_memory(error):
                    raise
                token_budget = max(1, len(batch) // 2) * fed
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            done += len(batch)
            if progress is not None:
                progress(done, len(order))
    return out


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
