"""How fast is a pass over the data, beside other ways to score the same candidates and beside the machine's limit?

    python benchmarks/scoring.py --peer sequential,lm-eval     # the 12-layer shape against its peers
    python benchmarks/scoring.py --growth                      # growth with n, K and length; memory

Peers get the same model, tokenizer and texts in the same process, one after the other, and the machine's own rate of
matrix products is taken before and after each of our passes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.auto import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from personalization.backbones.causal import CausalBackbone
from personalization.scoring.candidates import build_tree
from personalization.scoring.packed import Packed

LAMP_2_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic", "psychology",
    "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip
INSTRUCTION = (
    "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
    f"explanation. tags: [{', '.join(LAMP_2_TAGS)}] description:"
)
SHAPE = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12}
LM_EVAL_BATCHES = (1, 4, 16)


def texts(n: int, words: int, seed: int = 0) -> list[str]:
    """Prompts in the manner of LaMP-2: an instruction with its tags, and a description of about so many words."""
    random = np.random.default_rng(seed)
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    lexicon = ["".join(random.choice(syllables, size)) for size in random.integers(1, 4, 9000)]
    weights = 1 / np.arange(10, len(lexicon) + 10)
    weights /= weights.sum()
    lengths = random.integers(int(0.7 * words), int(1.3 * words) + 1, n)
    return [f"{INSTRUCTION} {' '.join(random.choice(lexicon, size, p=weights))}.\nanswer:" for size in lengths.tolist()]


def tokenizer_of(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )


def model_of(shape: dict[str, int], heads: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)  # confident and varied predictions
    return model


def matrix_rate(device: str = "cpu", seconds: float = 0.5) -> float:
    """FLOP/s of the matrix products of the 12-layer shape: 1,024 tokens through [512, 1376] weights."""
    x, w = torch.randn(1024, 512, device=device), torch.randn(1376, 512, device=device)
    torch.nn.functional.linear(x, w)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            torch.nn.functional.linear(x, w)
        done += 10
    return 2 * x.shape[0] * w.numel() * done / (time.perf_counter() - start)


def unique_work(backbone: CausalBackbone, prompts: list[str], continuations: list[str]) -> tuple[int, float]:
    """(unique tokens, their FLOP): weights, attention over visible pairs, and the LM head where a label is read."""
    heads, tails = backbone.encoder.encode(prompts, continuations)
    tree = build_tree(tails[0])
    route = Packed(backbone.model, backbone.router.head, heads, tree)
    config = backbone.model.config
    weights = sum(p.numel() for name, p in backbone.model.named_parameters() if "layers" in name and p.ndim == 2)
    pair = 4 * config.num_hidden_layers * config.hidden_size
    tokens, pairs = route.trunk, route.trunk**2 / 2
    for row in route.units:
        stem = route.trunk + row.stem
        tokens += row.width
        pairs += (stem**2 - route.trunk**2) / 2
        for index in row.prompts:
            length = len(heads[index])
            pairs += (length**2 - stem**2) / 2 + int((length + tree.depths).sum())
    places = len(prompts) * (1 + len(tree.tokens))
    return tokens, 2 * weights * tokens + pair * pairs + 2 * places * config.hidden_size * config.vocab_size


def sequential(backbone: CausalBackbone, prompts: list[str], continuations: list[str]) -> np.ndarray:
    """One candidate at a time, as a script does it."""
    out = np.empty((len(prompts), len(continuations)))
    for i, prompt in enumerate(prompts):
        start = len(backbone.tokenizer(prompt)["input_ids"])
        for k, continuation in enumerate(continuations):
            ids = torch.tensor([backbone.tokenizer(prompt + continuation)["input_ids"]])
            with torch.inference_mode():
                steps = backbone.model(ids).logits[0, start - 1 : -1].log_softmax(dim=-1)
            out[i, k] = steps.gather(1, ids[0, start:, None]).sum()
    return out


def lm_eval(backbone: CausalBackbone, prompts: list[str], continuations: list[str], batch: int) -> np.ndarray:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    device = backbone.model.device.type
    harness = HFLM(
        pretrained=backbone.model, tokenizer=backbone.tokenizer, batch_size=batch, device=device, max_length=2048
    )
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(p, c), idx=0) for p in prompts for c in continuations
    ]
    scores = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    return np.array(scores).reshape(len(prompts), len(continuations))


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    scores = run()
    return time.perf_counter() - start, scores


def against_peers(peers: list[str], n: int, repeats: int) -> dict[str, object]:
    prompts = texts(n, 90)
    tokenizer = tokenizer_of([*texts(2000, 100, seed=1), *prompts], SHAPE["vocab_size"])
    continuations = [f" {tag}" for tag in LAMP_2_TAGS]
    backbone = CausalBackbone(model_of(SHAPE), tokenizer)
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    labels = [len(ids) for ids in tokenizer(continuations)["input_ids"]]
    tokens, work = unique_work(backbone, prompts, continuations)
    print(
        f"{n} prompts of {np.mean(lengths):.0f} tokens, {len(labels)} labels of {min(labels)} to {max(labels)} tokens"
    )
    print(f"{tokens} unique tokens, {work / 1e9:.1f} GFLOP")
    ours, shares, scores = [], [], np.empty(0)
    for repeat in range(repeats + 1):
        before = matrix_rate()
        seconds, scores = timed(lambda: backbone.label_logprobs(prompts, continuations))
        rate = statistics.mean([before, matrix_rate()])
        print(f"pass {repeat}: {seconds:.2f} s at {backbone.budget.tokens} tokens; {rate / 1e9:.0f} GFLOP/s")
        if repeat:  # the first pass measures the token budget
            ours.append(seconds)
            shares.append(work / rate / seconds)
    result: dict[str, object] = {
        "n": n,
        "unique_tokens": tokens,
        "seconds": round(statistics.median(ours), 3),
        "matrix_rate_share": round(statistics.median(shares), 3),
    }
    for peer in peers:
        if peer == "sequential":
            seconds, theirs = timed(lambda: sequential(backbone, prompts, continuations))
        else:
            runs = [(*timed(lambda b=b: lm_eval(backbone, prompts, continuations, b)), b) for b in LM_EVAL_BATCHES]
            print("lm-eval:", ", ".join(f"{s:.1f} s at batch {b}" for s, _, b in runs))
            seconds, theirs, _ = min(runs, key=lambda run: run[0])
        again, _ = timed(lambda: backbone.label_logprobs(prompts, continuations))
        name = peer.replace("-", "_")
        print(f"{peer}: {seconds:.2f} s; ours just after: {again:.2f} s")
        result[f"seconds_{name}"] = round(seconds, 2)
        result[f"times_{name}"] = round(seconds / statistics.median([*ours, again]), 1)
        result["max_abs_diff"] = max(float(result.get("max_abs_diff", 0)), float(np.abs(scores - theirs).max()))
        result["equal_argmax"] = bool((scores.argmax(1) == theirs.argmax(1)).all())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="sequential, lm-eval, or both with a comma")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(against_peers([p for p in options.peer.split(",") if p], options.n, options.repeats)))


if __name__ == "__main__":
    main()
