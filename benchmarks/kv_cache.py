"""What quantized key/value caches cost in loss and save in bytes: the six-layer character model of the paper xKV reads 448 characters of
unseen Shakespeare, the cache is put on a grid, and the loss on the next 64 characters is compared with the dense cache's.

    python benchmarks/kv_cache.py        a table; the model is trained once (three minutes) and kept in the store
"""

from __future__ import annotations

import itertools
import statistics

import torch
from rich.console import Console
from rich.table import Table

from limbeck.experiments import Run
from limbeck.inference.kv_cache import KeyValueCache, QuantizedEntries
from limbeck.papers.xkv import BED, MODEL, PROMPT
from limbeck.tasks.base import cross_entropy

SEEDS, COUNT = 5, 20


@torch.no_grad()
def losses(run: Run, model, settings: list[QuantizedEntries]) -> list[tuple[float, float]]:
    """(loss above the dense cache's in nats per character, bytes relative to it) of each setting on the blocks of a seed."""
    blocks = BED.task.size("test") - 1
    batch = next(BED.task.batches("test", COUNT, seed=0, limit=blocks, skip=run.seed % (blocks // COUNT)))
    ids, labels = batch["input_ids"], batch["labels"][:, PROMPT:]
    dense = KeyValueCache(len(model.blocks))
    model(ids[:, :PROMPT], cache=dense)
    before, found = dense.nbytes, []
    caches = [made.compress(dense) for made in settings]
    plain = cross_entropy(model(ids[:, PROMPT:], cache=dense), labels).item()
    for cache in caches:
        size = cache.nbytes / before
        found.append((cross_entropy(model(ids[:, PROMPT:], cache=cache), labels).item() - plain, size))
    return found


def main() -> None:
    model = BED.teacher(Run(0), **MODEL)
    settings = [
        QuantizedEntries(bits, keys=keys, values=values)
        for bits, (keys, values) in itertools.product((8, 4, 3, 2), itertools.product(("channel", "token"), repeat=2))
    ]
    by_seed = [losses(Run(seed), model, settings) for seed in range(SEEDS)]
    table = Table("bits", "keys by", "values by", "bytes", "loss above dense", title="Cache of 448 characters")
    for place, made in enumerate(settings):
        above = [found[place][0] for found in by_seed]
        table.add_row(
            str(made.bits),
            made.keys,
            made.values,
            f"{by_seed[0][place][1]:.3f}",
            f"{statistics.fmean(above):+.4f} ± {statistics.stdev(above):.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
