"""Batches of tasks on a cluster that fails: what can go on goes on, and what cannot says what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client

from scalable.cluster import connect, run_tasks
from scalable.errors import ClusterError
from scalable.sky.pixel import Pixel


@pytest.fixture
def cluster() -> Iterator[Client]:
    """One worker, which is restarted when it dies."""
    with connect(workers=1) as client, dask.config.set({"scheduler": None}):
        yield client


def _die_once(item: int, folder: str, shared: str) -> tuple[int, str]:
    """Kill the worker when ``item`` is first met, as the kernel does where memory is short."""
    try:
        (Path(folder) / str(item)).touch(exist_ok=False)
    except FileExistsError:
        return item, shared
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(item: int, folder: str) -> None:
    (Path(folder) / str(item)).touch()
    time.sleep(0.05 if item == 0 else 30)


def _raise_on_second(item: int, folder: str) -> None:
    (Path(folder) / str(item)).touch()
    if item == 1:
        raise ValueError("the second")
    time.sleep(0.1)


def test_tasks_that_lose_their_only_worker_and_the_shared_values_on_it_are_run_again(cluster: Client, tmp_path: Path) -> None:
    done: list[tuple[int, str]] = []
    assert run_tasks(_die_once, range(2), str(tmp_path), "shared", on_done=done.append) == [(0, "shared"), (1, "shared")]
    assert sorted(done) == [(0, "shared"), (1, "shared")]


def test_a_task_that_no_worker_survives_is_named_with_its_input_and_memory_as_the_likely_cause(cluster: Client) -> None:
    cluster.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    message = r"1 workers died while they ran _die of order 3 pixel 5; .* likely cause is memory: it had .* GB; .* run the same"
    with pytest.raises(ClusterError, match=message):
        run_tasks(_die, [Pixel(3, 5)])


def test_after_a_task_failed_those_that_wait_are_not_begun(cluster: Client, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the second") as caught:
        run_tasks(_raise_on_second, range(50), str(tmp_path))
    begun = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= begun + 1 < 50
    del caught  # its traceback holds the tasks until here


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A scheduler and one worker of its own process each, on loopback."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=here)
    assert process.stderr is not None
    address = next(m[0] for line in process.stderr if (m := re.search(r"tcp://127\.0\.0\.1:\d+", line)))
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nworkers", "1"]
    worker = subprocess.Popen(
        [*command, "--no-nanny", "--no-dashboard", "--death-timeout", "5", "--local-directory", str(tmp_path / "worker")],
        stderr=subprocess.DEVNULL,
        env=here,
    )
    yield address, process
    for one in (process, worker):
        one.kill()
        one.wait(30)
    process.stderr.close()


def test_where_the_scheduler_dies_the_error_says_to_run_again(
    scheduler: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, process = scheduler
    with connect(address) as client, dask.config.set({"scheduler": None}):
        client.wait_for_workers(1, timeout=30)
        folder = tmp_path / "begun"
        folder.mkdir()
        message = rf"(?s){address}: the Dask scheduler is gone.*run the same command again: finished tasks are not done again"
        with pytest.raises(ClusterError, match=message):
            run_tasks(_wait, range(2), str(folder), on_done=lambda _: process.kill())
        assert (folder / "0").exists()
