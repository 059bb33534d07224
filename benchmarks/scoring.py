"""How fast is a pass over the data, beside other ways to score the same candidates and beside the machine's limit?

    python benchmarks/scoring.py --peer sequential,lm-eval     # the 12-layer shape against its peers
    python benchmarks/scoring.py --growth                      # with n, K and the prompt's length; peak memory
    python benchmarks/scoring.py --kill 10                     # kill -9 and go on; reading the store; a flipped byte
    python benchmarks/scoring.py --gpu --n 1000 --peer lm-eval # a 3B shape in bfloat16 on a GPU

Peers get the same model, tokenizer and texts in the same process, one after the other, and the machine's own rate of
matrix products is taken before and after each of our passes: by PyTorch's default library, and by the faster of it and
oneDNN. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.auto import AutoModelForCausalLM

from personalization.backbones.cached import CachedScorer
from personalization.backbones.causal import CausalBackbone
from personalization.scoring.candidates import build_tree
from personalization.scoring.last_block import last_block
from personalization.scoring.packed import Packed
from personalization.scoring.products import fast_products

LAMP_2_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic", "psychology",
    "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip
INSTRUCTION = (
    "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
    f"explanation. tags: [{', '.join(LAMP_2_TAGS)}] description:"
)
SHAPE = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12}
GROWTH_SHAPE = {"vocab_size": 8000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
SHAPE_3B = {
    "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
LM_EVAL_BATCHES = {"cpu": (1, 4, 16), "cuda": (16, 64)}


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


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, seconds: float = 0.3) -> float:
    """FLOP/s of matrix products: 1,024 tokens through [1376, 512] weights on a CPU, 8,192 cubed on a GPU."""
    rows, inner, outer = (1024, 512, 1376) if device == "cpu" else (8192, 8192, 8192)
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    w = torch.randn(outer, inner, device=device, dtype=dtype)
    with torch.inference_mode():
        torch.nn.functional.linear(x, w)
        wait(device)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(10):
                torch.nn.functional.linear(x, w)
            wait(device)
            done += 10
    return 2 * rows * inner * outer * done / (time.perf_counter() - start)


def best_matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    with fast_products(device):
        return matrix_rate(device, dtype)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def unique_work(backbone: CausalBackbone, prompts: list[str], continuations: list[str]) -> tuple[int, float]:
    """(unique tokens, their FLOP): weights, attention over visible pairs; last MLP and LM head where they are read."""
    heads, tails = backbone.encoder.encode(prompts, continuations)
    tree = build_tree(tails[0])
    route = Packed(backbone.model, backbone.router.head, heads, tails[0])
    config = backbone.model.config
    weights = sum(p.numel() for name, p in backbone.model.named_parameters() if "layers" in name and p.ndim == 2)
    pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    tokens, pairs = route.trunk, route.trunk**2 / 2
    for row in route.units:
        stem = route.trunk + row.stem
        tokens += row.width
        pairs += (stem**2 - route.trunk**2) / 2
        for index in row.prompts:
            length = len(heads[index])
            pairs += (length**2 - stem**2) / 2 + int((length + tree.depths).sum())
    places = len(prompts) * (1 + len(tree.tokens))
    last = last_block(backbone.model)
    unread = sum(p.numel() for module in (last.mlp, *last.maps) for p in module.parameters()) * (tokens - places)
    products = weights * tokens - unread + places * config.hidden_size * config.vocab_size
    return tokens, 2 * products + pair * pairs * (1 - (1 - places / tokens) / config.num_hidden_layers)


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


def against_peers(
    peers: list[str], backbone: CausalBackbone, prompts: list[str], labels: list[str], repeats: int
) -> dict[str, object]:
    device, dtype = backbone.model.device.type, backbone.model.dtype
    lengths = [len(ids) for ids in backbone.tokenizer(prompts)["input_ids"]]
    sizes = [len(ids) for ids in backbone.tokenizer(labels)["input_ids"]]
    tokens, work = unique_work(backbone, prompts, labels)
    print(
        f"{len(prompts)} prompts of {np.mean(lengths):.0f} tokens, {len(labels)} labels of {min(sizes)} to {max(sizes)}"
    )
    print(f"{tokens} unique tokens, {work / 1e9:.1f} GFLOP")
    ours, shares, best_shares, scores = [], [], [], np.empty(0)
    for repeat in range(repeats + 1):
        before = matrix_rate(device, dtype), best_matrix_rate(device, dtype)
        seconds, scores = timed(lambda: backbone.label_logprobs(prompts, labels))
        after = matrix_rate(device, dtype), best_matrix_rate(device, dtype)
        rate, best = (statistics.mean(pair) for pair in zip(before, after, strict=True))
        print(
            f"pass {repeat}: {seconds:.2f} s at {backbone.budget.tokens} tokens a batch; matrix products "
            f"{rate / 1e9:.0f} GFLOP/s, at best {best / 1e9:.0f}"
        )
        if repeat:  # the first pass measures the token budget
            ours.append(seconds)
            shares.append(work / rate / seconds)
            best_shares.append(work / best / seconds)
    result: dict[str, object] = {
        "n": len(prompts),
        "unique_tokens": tokens,
        "seconds": round(statistics.median(ours), 3),
        "prompts_per_second": round(len(prompts) / statistics.median(ours), 1),
        "matrix_rate_share": round(statistics.median(shares), 3),
        "best_matrix_rate_share": round(statistics.median(best_shares), 3),
        "token_budget": backbone.budget.tokens,
    }
    for peer in peers:
        if peer == "sequential":
            seconds, theirs = timed(lambda: sequential(backbone, prompts, labels))
        else:
            sizes = LM_EVAL_BATCHES[device]
            runs = [(*timed(lambda b=b: lm_eval(backbone, prompts, labels, b)), b) for b in sizes]
            print("lm-eval:", ", ".join(f"{s:.1f} s at batch {b}" for s, _, b in runs))
            seconds, theirs, _ = min(runs, key=lambda run: run[0])
        again, _ = timed(lambda: backbone.label_logprobs(prompts, labels))
        print(f"{peer}: {seconds:.2f} s; ours just after: {again:.2f} s")
        name = peer.replace("-", "_")
        result[f"seconds_{name}"] = round(seconds, 2)
        result[f"times_{name}"] = round(seconds / statistics.median([*ours, again]), 1)
        result["max_abs_diff"] = max(float(result.get("max_abs_diff", 0)), float(np.abs(scores - theirs).max()))
        result["equal_argmax"] = float((scores.argmax(1) == theirs.argmax(1)).mean())
    return result


def on_cpu(peers: list[str], n: int, repeats: int) -> dict[str, object]:
    prompts = texts(n, 90)
    tokenizer = tokenizer_of([*texts(2000, 90, seed=1), *prompts], SHAPE["vocab_size"])
    labels = [f" {tag}" for tag in LAMP_2_TAGS]
    return against_peers(peers, CausalBackbone(model_of(SHAPE), tokenizer), prompts, labels, repeats)


def model_on_gpu() -> torch.nn.Module:
    """Random weights in the shape of Llama 3.2 3B, bfloat16."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE_3B), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    return model


def on_gpu(peers: list[str], n: int, repeats: int) -> dict[str, object]:
    """A model of the shape of Llama 3.2 3B with random weights, prompts of about 500 tokens, 15 labels."""
    prompts = texts(n, 310)
    tokenizer = tokenizer_of([*texts(2000, 310, seed=1), *prompts], 8000)
    labels = [f" {tag}" for tag in LAMP_2_TAGS]
    model = model_on_gpu()
    backbone = CausalBackbone(model, tokenizer)
    result = against_peers(peers, backbone, prompts, labels, repeats)
    result["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    half = backbone.label_logprobs(prompts, labels)
    full = CausalBackbone(model.float(), tokenizer).label_logprobs(prompts, labels)
    result["bf16_flip_rate"] = float((half.argmax(1) != full.argmax(1)).mean())
    result["bf16_max_abs_diff"] = float(np.abs(half - full).max())
    return result


def grow(n: int, k: int, words: int) -> dict[str, float]:
    """One pass in a fresh process: seconds, unique tokens, peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_one_pass, (n, k, words))


def _one_pass(n: int, k: int, words: int) -> dict[str, float]:
    torch.set_num_threads(os.cpu_count() or 1)
    prompts = texts(n, words)
    tokenizer = tokenizer_of(texts(2000, 90, seed=1), GROWTH_SHAPE["vocab_size"])
    random = np.random.default_rng(0)
    words_of = sorted({word for text in prompts[:50] for word in text.split()[40:-2]})
    labels = [f" {' '.join(random.choice(words_of, 1 + i % 3))} {i}" for i in range(k)]
    backbone = CausalBackbone(model_of(GROWTH_SHAPE, heads=4), tokenizer)
    backbone.label_logprobs(prompts[:100], labels)
    seconds = min(timed(lambda: backbone.label_logprobs(prompts, labels))[0] for _ in range(3 if n <= 1000 else 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens, _ = unique_work(backbone, prompts[:1000], labels)
    return {
        "n": n, "k": k, "seconds": round(seconds, 2), "ms_per_prompt": round(1000 * seconds / n, 2),
        "unique_tokens_per_prompt": round(tokens / min(n, 1000), 1), "peak_mb": round(peak),
    }  # fmt: skip


def growth() -> dict[str, list[dict[str, float]]]:
    result = {
        "n": [grow(n, 15, 90) for n in (100, 1000, 10_000)],
        "k": [grow(200, k, 90) for k in (2, 15, 100)],
        "words": [{"words": words, **grow(200, 15, words)} for words in (30, 90, 300, 900)],
    }
    for name, rows in result.items():
        print(f"growth with {name}")
        for row in rows:
            print("  ", row)
    return result


def _pass_in_child(model: str, folder: str, n: int, log: str) -> None:
    """One cached pass, which logs what it found in the journal and, after every batch, how many prompts it has."""
    logging.basicConfig(filename=log, level=logging.INFO, format="%(message)s", force=True)
    scorer = CachedScorer(model, Path(folder))
    labels = [f" {tag}" for tag in LAMP_2_TAGS]
    scorer.label_logprobs(texts(n, 90), labels, lambda done, _: logging.info("done %d", done))


def _logged(log: str, pattern: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, Path(log).read_text())]


def killed(kills: int, n: int) -> dict[str, object]:
    """kill -9 a pass again and again; then read it from the store, and flip a byte of what is stored."""
    context, random = multiprocessing.get_context("spawn"), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        model, folder, log = (str(Path(name) / part) for part in ("model", "scores", "log"))
        model_of(SHAPE).save_pretrained(model)
        tokenizer_of(texts(2000, 90, seed=1), SHAPE["vocab_size"]).save_pretrained(model)
        found, done, batches = [], [0], []
        for run in range(kills + 1):
            Path(log).write_text("")
            child = context.Process(target=_pass_in_child, args=(model, folder, n, log))
            child.start()
            patience = int(random.integers(1, 4)) if run < kills else n
            while child.is_alive() and len(_logged(log, r"done (\d+)")) < patience:
                time.sleep(0.01)
            if run < kills:
                time.sleep(float(random.uniform(0, 0.3)))
                os.kill(child.pid, signal.SIGKILL)
            child.join()
            found.append(sum(_logged(log, r"(\d+) of \d+ prompts were scored")))
            steps = [found[-1], *_logged(log, r"done (\d+)")]
            batches += np.diff(steps).tolist()
            done.append(steps[-1])
            print(f"run {run + 1}: from {steps[0]} to {steps[-1]} of {n} prompts, exit {child.exitcode}")
        lost = [max(0, before - start) for before, start in zip(done, found, strict=False)]
        scorer = CachedScorer(model, Path(folder))
        labels = [f" {tag}" for tag in LAMP_2_TAGS]
        prompts = texts(n, 90)
        second, table = timed(lambda: scorer.label_logprobs(prompts, labels))
        fresh = CachedScorer(model, Path(name) / "fresh")
        fresh.backbone.label_logprobs(prompts[:20], labels)
        first, expected = timed(lambda: fresh.label_logprobs(prompts, labels))
        stored = next(Path(folder).glob("*.safetensors"))
        data = bytearray(stored.read_bytes())
        data[len(data) // 2] ^= 1
        stored.write_bytes(data)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            mended = CachedScorer(model, Path(folder)).label_logprobs(prompts, labels)
    return {
        "n": n, "kills": kills, "last_exit": child.exitcode,
        "finished_prompts_lost": sum(lost), "largest_batch": max(batches),
        "max_abs_diff": float(np.abs(table - expected).max()), "first_pass_s": round(first, 2),
        "second_pass_s": round(second, 4), "second_over_first": round(second / first, 5),
        "flipped_byte": str(seen[0].message).replace(name, "") if seen else "not seen",
        "mended_diff": float(np.abs(mended - expected).max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="sequential, lm-eval, or both with a comma")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    peers = [peer for peer in options.peer.split(",") if peer]
    if options.growth:
        result: object = growth()
    elif options.kill:
        result = killed(options.kill, max(options.n, 400))
    elif options.gpu:
        result = on_gpu(peers, options.n, options.repeats)
    else:
        result = on_cpu(peers, options.n, options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
