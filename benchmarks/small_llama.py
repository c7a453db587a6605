"""A llama of 12 million parameters, trained on gsm8k (questions and worked answers): the language model of the quantization table.

    python benchmarks/small_llama.py                 train it, or find it in the store, and print its perplexities
    python benchmarks/small_llama.py --steps 40      a short run of the same schedule, to see how fast this machine is

Width 384, six layers, six heads, 2,048 byte pairs trained on the train split, blocks of 256 tokens. The last tenth of train is validation; test is
the data set's own. The weights lie in the store ($LIMBECK_STORE) under a digest of the data, the architecture and the schedule, so
that they are trained once; checkpoints beside them survive an interruption. About 40 minutes of one core in bfloat16; perplexity 16.0 on train text, 20.6 on validation
and 20.7 on test, of a unigram model 520.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time

import torch
from torch import nn

from limbeck.experiments.store import Store
from limbeck.files import digest
from limbeck.folders import store_folder
from limbeck.models import transformer
from limbeck.objectives import CrossEntropy
from limbeck.signals import call
from limbeck.tasks import LanguageModelling
from limbeck.training import Distil, Trainer, TrainingConfig
from limbeck.training.randomness import seed_everything

EPOCHS = 5
SCHEDULE = {
    "batch_size": 16,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "decay_norms_and_biases": False,
    "warmup": 0.05,
}
SCHEDULE |= {"gradient_clipping": 1.0, "precision": "bf16", "checkpoint_every": 200, "evaluate_every": 1.0}


@functools.cache
def task() -> LanguageModelling:
    """gsm8k as running text: question, answer, question, ..."""
    return LanguageModelling("gsm8k", text=("question", "answer"), tokenizer="bpe", vocabulary=2048, length=256)


def untrained() -> nn.Module:
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1024}
    settings = {"vocab_size": task().vocabulary_size, "max_position_embeddings": 256, "tie_word_embeddings": False}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    return transformer("AutoModelForCausalLM", {"model_type": "llama", **sizes, **settings, **tokens})


def trained(steps: int | None = None, progress: bool = False) -> nn.Module:
    """The model in evaluation mode. steps: in place of all the epochs."""
    config = TrainingConfig(**({"steps": steps} if steps else {"epochs": EPOCHS}), **SCHEDULE)
    seed_everything(0)
    model = untrained()
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    key = {
        "benchmark": "small_llama",
        "data": task().digest(),
        "model": shapes,
        "training": config.identity(),
        "version": 1,
    }
    work = store_folder() / f".small-llama-{digest(key)[:12]}"

    def train(made: nn.Module) -> None:
        Trainer(config, work, seed=0, progress=progress).run(Distil(made, None, CrossEntropy()), task())

    model = Store().module(key, lambda: model, train)
    shutil.rmtree(work, ignore_errors=True)
    return model.eval()


def unigram_perplexity(split: str) -> float:
    """Of a model that knows only how often every token is in train."""
    counts = torch.bincount(task()._data["train"].long(), minlength=task().vocabulary_size).double() + 1
    return float((-(counts / counts.sum()).log()[task()._data[split][1:].long()]).mean().exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="train so many steps only")
    steps = parser.parse_args().steps
    begun = time.perf_counter()
    model = trained(steps, progress=True)
    seconds = time.perf_counter() - begun
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(task()._data['train']):,} tokens of train, {seconds:.0f} s"
    )
    for split in ("train", "validation", "test"):
        limit = 300 if split == "train" else None
        found = task().evaluate(lambda batch: call(model, batch), split, batch_size=16, limit=limit)
        print(f"{split}: perplexity {found['perplexity']:.3f}, of a unigram model {unigram_perplexity(split):.1f}")


if __name__ == "__main__":
    main()
