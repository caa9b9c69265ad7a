"""Where tasks run: connect to a cluster or start one on this machine, and run a batch of tasks on whichever is in use."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import dask
from dask.callbacks import Callback
from distributed import Client, Future, KilledWorker, as_completed, get_client
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from scalable.errors import ClusterError

Item = TypeVar("Item")
Result = TypeVar("Result")


def connect(address: str | None = None, *, workers: int | None = None, threads_per_worker: int = 1) -> Client:
    """Connect to a Dask scheduler, or start a cluster on this machine that listens on loopback only.

    Parameters
    ----------
    address : str, optional
        ``tcp://host:port`` or ``tls://host:port`` of a running scheduler. Without it a local cluster is started; closing the
        client stops it.
    workers, threads_per_worker : int
        Size of the local cluster; by default one worker process per core.

    Returns
    -------
    distributed.Client
        Also the current client, so that every verb uses it.

    Raises
    ------
    OSError
        If no scheduler answers at ``address``.
    """
    if address is not None:
        return Client(address, timeout="15s")
    # After this time Dask drops the slot of a worker that died, if just then it is being started again after another death.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"})
    return Client(
        n_workers=workers,
        threads_per_worker=threads_per_worker,
        processes=True,
        # The defaults listen on every interface; a laptop in a conference network must not.
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None,
    )


def current_client() -> Client | None:
    """Return the client that verbs would use now, or None for a scheduler inside this process."""
    if dask.config.get("scheduler", None) in ("threads", "threading", "processes", "sync", "synchronous", "single-threaded"):
        return None
    try:
        return get_client()
    except ValueError:
        return None


def run_tasks(
    task: Callable[..., Result],
    items: Sequence[Item],
    *shared: Any,
    on_done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run ``task(item, *shared)`` for every item on the scheduler in use and return the results in order.

    Parameters
    ----------
    task : callable
        A module-level function; pure, or writing only files that are its own.
    items : sequence
        One task each: make them coarse.
    shared : Any
        Further arguments, the same for all; sent once to each worker of a cluster.
    on_done : callable, optional
        Called with each result as it arrives.

    Returns
    -------
    list
        Results, in the order of ``items``.

    Raises
    ------
    ClusterError
        If workers die again and again while they run one task, or the scheduler is lost.
    """
    client = current_client()
    if client is None:
        return _run_here(task, items, shared, on_done)
    item_of: dict[str, Item] = {}
    futures: list[Future] = []
    try:
        # As results of tasks, and not scattered: what the last worker that has it takes along is made again.
        arguments = [client.submit(_itself, value, pure=False) for value in shared]
        # A copy on every worker only saves time. Where one dies meanwhile, Dask fails with whatever comes: bare assertions too.
        with contextlib.suppress(Exception):
            client.replicate(arguments)
        for item in items:
            futures.append(client.submit(task, item, *arguments, pure=False))
            item_of[futures[-1].key] = item
        for future in as_completed(futures):
            result = future.result()
            if on_done:
                on_done(result)
        return list(client.gather(futures))
    except KilledWorker as error:
        client.cancel(futures)
        raise ClusterError(_blame(error, task.__name__, item_of.get(error.task))) from error
    except (CancelledError, ClosedClientError, CommClosedError) as error:
        address = client.scheduler.address if client.scheduler else "the scheduler"
        raise ClusterError(
            f"{address}: the Dask scheduler is gone, or dropped our tasks ({error}); "
            "run the same command again: finished tasks are not done again"
        ) from error
    except BaseException:
        # Who held the result of a failed call in a traceback would hold its tasks too, and they would go on.
        client.cancel(futures)
        raise


def _itself(value: Result) -> Result:
    return value


def _blame(error: KilledWorker, task: str, item: object) -> str:
    """Return what to say about a task that no worker survived; Dask's own message names neither the input nor memory."""
    limit = error.last_worker.memory_limit
    return (
        f"{error.allowed_failures + 1} workers died while they ran {task} of {textwrap.shorten(str(item), 500)}; the last was "
        f"{error.last_worker.address}. The likely cause is memory: "
        f"{f'it had {limit / 1e9:.1f} GB' if limit else 'it had no limit of its own'}; start fewer workers with more memory "
        "each, or look at the workers' logs for another cause; then run the same command again: finished tasks are not done again"
    )


def _run_here(
    task: Callable[..., Result], items: Iterable[Item], shared: tuple[Any, ...], on_done: Callable[[Result], None] | None
) -> list[Result]:
    # Each a node of its own: Dask would look for tasks inside of it again for every item.
    arguments = [dask.delayed(value, pure=False, traverse=False) for value in shared]
    delayed = [dask.delayed(task, pure=False)(item, *arguments) for item in items]
    keys = {collection.key for collection in delayed}

    def done(key: Any, result: Any, _dsk: Any, _state: Any, _worker: Any) -> None:
        if on_done and key in keys:
            on_done(result)

    with Callback(posttask=done):
        return list(dask.compute(*delayed, optimize_graph=False))
