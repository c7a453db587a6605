"""Where units run: in this process, in processes of this machine, or on a Ray cluster. All give the same numbers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol

from limbeck.errors import UsageError, require
from limbeck.experiments.units import THREADS, Unit, execute
from limbeck.parallel import processes

Done = Iterator[tuple[Any, dict[str, Any]]]
BACKENDS = ("processes", "ray")


class Backend(Protocol):
    """Runs units and yields (key, result) as they end. A failed unit raises, after the finished ones were yielded."""

    def run(self, units: Mapping[Hashable, Unit]) -> Done: ...


@contextlib.contextmanager
def pool(backend: str = "processes", jobs: int = 1) -> Iterator[Backend]:
    """A backend with room for `jobs` units at a time. Raises UsageError for a backend or a number that cannot be."""
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r}: must be {' or '.join(BACKENDS)}")
    if jobs < 1:
        raise UsageError(f"jobs={jobs}: must be at least 1")
    if backend == "ray":
        with _ray(jobs) as made:
            yield made
    elif jobs == 1:
        yield Here()
    else:
        with _processes(jobs) as made:
            yield made


class Here:
    """One unit after another in this process."""

    def run(self, units: Mapping[Hashable, Unit]) -> Done:
        for key, unit in units.items():
            yield key, execute(unit)


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[Backend]:
    with processes(jobs, THREADS) as run:

        class Processes:
            def run(self, units: Mapping[Hashable, Unit]) -> Done:
                return run(execute, {key: (unit,) for key, unit in units.items()})

        yield Processes()


def _same_path() -> dict[str, str]:
    """What lets workers of this machine import what the driver can."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@contextlib.contextmanager
def _ray(jobs: int) -> Iterator[Backend]:
    """A Ray cluster: that of RAY_ADDRESS when it is set, else one started here. Store entries and data travel through an
    actor that is kept on the driver's machine."""
    ray = require("ray", "ray")
    from limbeck.datasets.load import data_folder
    from limbeck.experiments.exchange import Desk, RayDesk
    from limbeck.experiments.store import Store

    started = not ray.is_initialized()
    if started:
        local = {"num_cpus": jobs, "include_dashboard": False, "runtime_env": {"env_vars": _same_path()}}
        address = {} if os.environ.get("RAY_ADDRESS") else local
        ray.init(log_to_driver=False, **address)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    desk = (
        ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote(str(Store().folder), str(data_folder()))
    )

    @ray.remote(num_cpus=1, max_retries=1)
    def remote(unit: Unit, actor: Any) -> dict[str, Any]:
        return execute(unit, RayDesk(actor))

    class Cluster:
        def run(self, units: Mapping[Hashable, Unit]) -> Done:
            waiting = {remote.remote(unit, desk): key for key, unit in units.items()}
            failed = None
            while waiting:
                for reference in ray.wait(list(waiting), num_returns=1)[0]:
                    key = waiting.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        failed = failed or error.as_instanceof_cause()
                        for other in waiting:
                            ray.cancel(other)
                        waiting.clear()
                        break
                    yield key, result
            if failed is not None:
                raise failed

    try:
        yield Cluster()
    finally:
        ray.kill(desk)
        if started:
            ray.shutdown()
