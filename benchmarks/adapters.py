"""How fast is a training step, beside PEFT under the Hugging Face Trainer, and does it learn the same?

    python benchmarks/adapters.py [--items 64] [--epochs 2]
    python benchmarks/adapters.py --gpu    # a 3B shape in bfloat16, prompts of about 500 tokens

The 12-layer shape of benchmarks/scoring.py, LaMP-2-like prompts, one LoRA on all linear maps. Both get the same items
in the same batches, the same first weights, optimiser, schedule and clipping, and the same loss (that of the gold
label's tokens), so the loss of every step must agree. Once with all layers adapted and once with the upper third; there
ours also runs the frozen layers once and stores what leaves them, which its first epoch pays. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from personalization.backbones.causal import CausalBackbone
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.methods.training import loop as training
from personalization.methods.training.loop import Items, train
from personalization.methods.training.recipe import Recipe
from personalization.scoring.edits import Shelf

spec = importlib.util.spec_from_file_location("scoring", Path(__file__).with_name("scoring.py"))
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)

LABELS = [f" {tag}" for tag in scoring.LAMP_2_TAGS]
RANK = 8


class Losses(TrainerCallback):
    """Collects the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, *_, logs=None, **__) -> None:
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))


class Batched(Trainer):
    """The Trainer over batches that are already put together."""

    batches: list

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=1, shuffle=False, collate_fn=lambda found: found[0])


def ours(items: Items, lora: GroupedLora, recipe: Recipe, folder: Path) -> tuple[float, list]:
    """(seconds, loss of each step)."""
    seen: list[float] = []
    real = training.losses

    def noted(*given):
        parts = real(*given)
        seen.append(float(parts["token"].detach()))
        return parts

    training.losses = noted
    seconds, _ = scoring.timed(lambda: train([items], None, lora, recipe, folder / f"{time.time_ns()}.safetensors"))
    training.losses = real
    return seconds, seen


def trainer(model, prompts, gold, items: Items, lora: GroupedLora, recipe: Recipe, folder: Path, tokenizer):
    """The same by PEFT and the Trainer: (seconds, loss of each step)."""
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=list(lora.shape.modules))
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_A." in name:
                parameter.copy_(lora.a[name.split("base_model.model.")[1].split(".lora_A")[0]][0])
    batches, steps = [], recipe.epochs * len(items.rows.rows)
    for epoch in range(recipe.epochs):
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(items.rows.rows))
        for number in order.tolist():
            pairs = [(tokenizer(prompts[i])["input_ids"], tokenizer(prompts[i] + LABELS[gold[i]])["input_ids"])
                     for i in items.rows.members[number]]  # fmt: skip
            width = max(len(whole) for _, whole in pairs)
            ids, labels, mask = (torch.full((len(pairs), width), fill) for fill in (0, -100, 0))
            for row, (head, whole) in enumerate(pairs):
                ids[row, : len(whole)] = torch.tensor(whole)
                mask[row, : len(whole)] = 1
                labels[row, len(head) : len(whole)] = torch.tensor(whole[len(head) :])
            batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    optimiser = torch.optim.AdamW(
        [p for p in wrapped.parameters() if p.requires_grad], lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: training._share_of_rate(step, steps, recipe, [])
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), num_train_epochs=1, logging_steps=1, report_to=[], save_strategy="no",
        max_grad_norm=recipe.clip, disable_tqdm=True, use_cpu=model.device.type == "cpu", dataloader_pin_memory=False,
    )  # fmt: skip
    noted = Losses()
    made = Batched(wrapped, arguments, optimizers=(optimiser, schedule), callbacks=[noted], train_dataset=batches)
    made.batches = batches
    seconds, _ = scoring.timed(made.train)
    wrapped.unload()
    return seconds, noted.losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    words, vocabulary = 310 if options.gpu else 90, scoring.SHAPE["vocab_size"]
    prompts = scoring.texts(options.items, words)
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, words, seed=1), *prompts], vocabulary)
    model = scoring.model_on_gpu() if options.gpu else scoring.model_of(scoring.SHAPE)
    backbone = CausalBackbone(model, tokenizer)
    gold = np.random.default_rng(0).integers(0, len(LABELS), options.items)
    recipe = Recipe(epochs=options.epochs, lr=1e-3, label=0.0, token=1.0)
    result: dict[str, object] = {"items": options.items, "epochs": options.epochs}
    depth = backbone.depth
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, first in (("", 0), ("_upper_third", 2 * depth // 3)):
            edit = AdapterEdit(None, np.zeros(options.items, dtype=np.int64), ["u"] * options.items, first - 1)
            items = Items(backbone.fixed(prompts, LABELS, [edit], Shelf(folder, "x")), gold, edit)
            shape = LoraShape(adapted_modules(backbone.model, backbone.layers[first:], "all"), RANK, 2.0 * RANK, 1)
            lora = GroupedLora(backbone.model, shape)
            start = GroupedLora(backbone.model, shape)
            theirs, their_losses = trainer(backbone.model, prompts, gold, items, start, recipe, folder, tokenizer)
            mine, my_losses = ours(items, lora, recipe, folder)
            stored, _ = ours(items, GroupedLora(backbone.model, shape), recipe, folder)
            difference = float(np.abs(np.array(my_losses) - np.array(their_losses)).max())
            print(
                f"first layer {first}: Trainer {theirs:.1f} s, ours {mine:.1f} s, again {stored:.1f} s, "
                f"{len(my_losses)} steps, losses differ by at most {difference:.1e}"
            )
            print("  ours   ", [round(value, 3) for value in my_losses[:6]])
            print("  Trainer", [round(value, 3) for value in their_losses[:6]])
            result[f"times_trainer{title}"] = round(theirs / mine, 2)
            result[f"times_trainer{title}_again"] = round(theirs / stored, 2)
            result[f"largest_loss_difference{title}"] = difference
    print(json.dumps(result))


if __name__ == "__main__":
    main()
