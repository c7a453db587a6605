"""Processes of this machine that work side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

Calls = Callable[[Callable[..., Any], Mapping[Hashable, tuple]], Iterator[tuple[Any, Any]]]


def _ready(threads: int) -> None:
    """What every worker does first: keep numeric libraries to the threads it may use."""
    import torch

    torch.set_num_threads(threads)


@contextlib.contextmanager
def processes(jobs: int, threads: int = 1) -> Iterator[Calls]:
    """Workers for `jobs` calls at a time, each with `threads` threads.

    Yields `run(function, {key: arguments})`, which yields (key, result) as the calls end. function: importable by name; arguments and
    results are pickled between this process and its own children. After a call failed the others that run are finished and yielded, those
    that wait are dropped, and the first failure is raised.
    """
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update({name: str(threads) for name in before})  # read by the children when they start

    def run(function: Callable[..., Any], calls: Mapping[Hashable, tuple]) -> Iterator[tuple[Any, Any]]:
        futures = {executor.submit(function, *arguments): key for key, arguments in calls.items()}
        failed = None
        for future in as_completed(futures):
            try:
                result = future.result()
            except Exception as error:
                failed = failed or error
                for other in futures:
                    other.cancel()
                continue
            yield futures[future], result
        if failed is not None:
            raise failed

    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=_ready, initargs=(threads,)) as executor:
            yield run
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
