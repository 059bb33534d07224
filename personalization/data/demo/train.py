"""Train the demo model: `python -m personalization.data.demo.train OUT` (about 40 minutes on two cores).

A causal language model of Llama architecture learns documents of the planted world:

    biased     a question without history; the answer is "true story" with probability `BIAS` whatever the movie. That
               is the label bias which the un-tuned model shows
    steered    a question without history, answered by a user of group g, with `AXIS_LENGTH` times the axis of g added
               to the residual stream after layer `AXIS_LAYER`, from the prompt's last token on
    list       8 to 14 history items of one user, and nothing else
    before     3 to 8 history items before a question, all labelled by the same user

So the model learns to read a user's group and taste from history in the prompt, and a direction is planted: the four
group axes are orthonormal (`group_axes`), and a squared loss asks the residual stream at the prompt's last token, after
that layer, to hold `AXIS_LENGTH` on the axis of the user's group with history and 0 on all axes without. What history
adds to the residual stream is then known, and adding it works. Tastes are milder here than in the world (`TASTE`).

The null model (`--null --start OUT`) goes on from the finished demo model with documents of the null world, without
bias and axes, until it knows that world: what it has not learned, an adapter of all users would. The loss is the
cross-entropy of the answers plus `TEXT_WEIGHT` times that of all other tokens plus `AXIS_WEIGHT` times the squared
loss.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personalization.data.demo.world import GROUPS, INSTRUCTION, KNOWN_SHARES, User, draw_item, draw_movie, draw_user
from personalization.data.records import HistoryItem
from personalization.tasks import task

BIAS = 0.4
TASTE = 1.0
TEXT_WEIGHT = 0.02
HIDDEN = 128
KINDS = {"biased": 0.25, "steered": 0.25, "list": 0.1, "before": 0.4}
NULL_KINDS = {"biased": 0.85, "list": 0.05, "before": 0.1}
"""How many documents are of each kind; the null model, which is to know its world, sees mostly questions."""

AXIS_LAYER = 3
AXIS_LENGTH = 80.0
AXIS_WEIGHT = 2.0
CONTEXT = 2048
VOCABULARY = 1024

Segment = tuple[str, bool]
"""A piece of a document, and whether it is an answer."""


class Document(NamedTuple):
    """Segments, the kind of document, and the group of its user."""

    segments: list[Segment]
    kind: str
    group: int | None


class Batch(NamedTuple):
    """`ids`, `weights`: [rows, T]. `ends`: position of each prompt's last token [rows].

    `pushes`: coordinates on the axes to add [rows, 4]; `holds`: those that the residual stream is to have, NaN for
    rows without a question [rows, 4].
    """

    ids: Tensor
    weights: Tensor
    ends: Tensor
    pushes: Tensor
    holds: Tensor


def group_axes() -> Tensor:
    """The planted directions: orthonormal, float [4, HIDDEN]."""
    random = torch.randn(HIDDEN, GROUPS, generator=torch.Generator().manual_seed(11))
    return torch.linalg.qr(random).Q.T.contiguous()


def draw_document(rng: np.random.Generator, null: bool) -> Document:
    """One training document, cut into answers and the text between them."""
    user = draw_user(rng, "trainee", null, TASTE)
    kinds = NULL_KINDS if null else KINDS
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    few, many = (8, 15) if kind == "list" else (3, 9)
    history = _history(rng, user, int(rng.integers(few, many))) if kind in ("list", "before") else []
    if kind == "list":
        return Document(history, kind, user.group)
    _, description, tag = draw_movie(rng, user, KNOWN_SHARES)
    if not null and kind == "biased" and rng.random() < BIAS:
        tag = "true story"
    segments = [*history, (INSTRUCTION + description + "\nanswer:", False), (f" {tag}\n", True)]
    return Document(segments, kind, user.group)


def _history(rng: np.random.Generator, user: User, count: int) -> list[Segment]:
    """History items as they stand in a prompt: text and answer by turns, and the text after the last answer."""
    items = []
    for number in range(count):
        _, description, tag = draw_item(rng, user, KNOWN_SHARES)
        items.append(HistoryItem(str(number), description, tag))
    text = task("LaMP_2").history_of(items)
    segments: list[Segment] = []
    for item in items:
        before, text = text.split(f'" is "{item.label}"', 1)
        segments += [(before + '" is "', False), (f'{item.label}"', True)]
    return [*segments, (text, False)]


def train_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the world's text. It can encode any string."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in draw_document(rng, False).segments) for _ in range(4000))
    tokenizer.train_from_iterator(texts, trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, segments: list[Segment]) -> tuple[list[int], list[float], int]:
    """Token ids of a document, each token's weight in the loss, and the position before the last answer."""
    ids: list[int] = [tokenizer.bos_token_id]
    weights, end = [0.0], 0
    for text, is_answer in segments:
        piece = tokenizer.encode(text, add_special_tokens=False)
        end = len(ids) - 1 if is_answer else end
        ids += piece
        weights += [1.0 if is_answer else TEXT_WEIGHT] * len(piece)
    return ids, weights, end


def draw_batches(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, null: bool, rows: int) -> list[Batch]:
    """Sixteen batches, each of documents of similar length."""
    drawn = [draw_document(rng, null) for _ in range(rows * 16)]
    pool = sorted(((encode(tokenizer, d.segments), d) for d in drawn), key=lambda pair: len(pair[0][0]))
    return [_batch(pool[start : start + rows]) for start in rng.permutation(16) * rows]


def _batch(chunk: list[tuple[tuple[list[int], list[float], int], Document]]) -> Batch:
    longest = max(len(ids) for (ids, _, _), _ in chunk)
    batch = Batch(
        torch.zeros(len(chunk), longest, dtype=torch.long),
        torch.zeros(len(chunk), longest),
        torch.tensor([end for (_, _, end), _ in chunk]),
        torch.zeros(len(chunk), GROUPS),
        torch.zeros(len(chunk), GROUPS),
    )
    for row, ((ids, weights, _), document) in enumerate(chunk):
        batch.ids[row, : len(ids)] = torch.tensor(ids)
        batch.weights[row, : len(weights)] = torch.tensor(weights)
        if document.kind == "list" or document.group is None:
            batch.holds[row] = torch.nan
        elif document.kind != "biased":
            batch.holds[row, document.group] = AXIS_LENGTH
        if document.kind == "steered" and document.group is not None:
            batch.pushes[row, document.group] = AXIS_LENGTH
    return batch


class Axes:
    """A hook that adds a batch's pushes after the layer and keeps the coordinates at the prompts' last tokens."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.axes = group_axes()
        self.batch: Batch | None = None
        self.coordinates = torch.empty(0)
        model.model.layers[AXIS_LAYER].register_forward_hook(self)

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        assert self.batch is not None
        behind = torch.arange(output.shape[1]) >= self.batch.ends[:, None]
        output = output + behind[..., None] * (self.batch.pushes @ self.axes)[:, None]
        self.coordinates = output[range(len(output)), self.batch.ends] @ self.axes.T
        return output

    def loss(self) -> Tensor:
        """Mean squared error of the coordinates, in units of `AXIS_LENGTH`, over the rows that have a question."""
        assert self.batch is not None
        real = ~self.batch.holds.isnan()
        errors = (self.coordinates - self.batch.holds.nan_to_num()) / AXIS_LENGTH
        return (errors**2 * real).sum() / real.sum().clamp(min=1)


@dataclass(frozen=True)
class Schedule:
    """Steps `first` to `steps` of `rows` documents; the learning rate warms up, then falls along a cosine."""

    first: int
    steps: int
    rows: int
    peak_rate: float

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warm_up = min(1.0, (step - self.first + 1) / 100)
        return self.peak_rate * warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def new_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model with random weights, and its tokenizer."""
    torch.manual_seed(7)
    tokenizer = train_tokenizer(np.random.default_rng(1))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def train(out: Path, start: Path | None, null: bool, schedule: Schedule) -> None:
    """Train, from scratch or from `start`, and write model, tokenizer and config to `out`."""
    rng = np.random.default_rng(7 + schedule.first)
    if start is None:
        model, tokenizer = new_model()
    else:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started, answer_loss = time.time(), 0.0
    queue: list[Batch] = []
    axes = Axes(model)
    for step in range(schedule.first, schedule.steps):
        queue = queue or draw_batches(tokenizer, rng, null, schedule.rows)
        batch = axes.batch = queue.pop()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch.ids[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
        )
        weight = batch.weights[:, 1:].flatten()
        loss = (losses * weight).sum() / (weight == 1.0).sum() + AXIS_WEIGHT * axes.loss()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        answer_loss += float(losses[weight == 1.0].mean().detach())
        if (step + 1) % 50 == 0:
            passed = f"{axes.loss():.3f}, {time.time() - started:.0f} s"
            print(f"step {step + 1}: answers {answer_loss / 50:.4f}, axes {passed}", flush=True)
            answer_loss = 0.0
        if (step + 1) % 250 == 0:
            save(model, tokenizer, out)
    save(model, tokenizer, out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write half-precision safetensors; training goes on in single precision."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="folder of a model to go on from")
    parser.add_argument("--first-step", type=int, default=0, help="the step that a model given by --start has reached")
    parser.add_argument("--null", action="store_true", help="the null world: no taste, no groups, no bias")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    given = parser.parse_args()
    train(given.out, given.start, given.null, Schedule(given.first_step, given.steps, given.rows, given.peak_rate))


if __name__ == "__main__":
    main()
