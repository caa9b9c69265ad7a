"""How times are taken: ours and the peers in turn in one process, medians, the first (compiling) call apart."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

DATA = Path(os.environ.get("SCALABLE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Measured:
    """One figure: who did what, median seconds with the least and most, and how many times slower than ours it is."""

    workload: str
    who: str
    seconds: float
    least: float
    most: float
    first_seconds: float
    megabytes: float
    ratio: float


def compare(
    workload: str, contenders: Mapping[str, Callable[[], object]], *, megabytes: float, repeats: int = 7
) -> list[Measured]:
    """Time contenders in strict turn; the first named is ours. Their answers were asserted equal before."""
    first, times = {}, {name: [] for name in contenders}  # type: dict[str, float], dict[str, list[float]]
    for name, work in contenders.items():
        first[name] = _time(work)
    for _ in range(repeats):
        for name, work in contenders.items():
            times[name].append(_time(work))
    ours = statistics.median(times[next(iter(contenders))])
    return [
        Measured(workload, name, statistics.median(t), min(t), max(t), first[name], megabytes, statistics.median(t) / ours)
        for name, t in times.items()
    ]


def peak_bytes() -> int:
    """Return the most memory that this process ever held, its program and mapped pages included (Linux).

    What the system tells of resource usage is no good for it: a process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(measured: list[Measured]) -> None:
    """Print the table."""
    table = Table("workload", "who", "median ms", "least to most", "first call", "MB/s", "times ours")
    for m in measured:
        table.add_row(
            m.workload,
            m.who,
            f"{m.seconds * 1e3:,.2f}",
            f"{m.least * 1e3:,.2f} to {m.most * 1e3:,.2f}",
            f"{m.first_seconds * 1e3:,.0f}",
            f"{m.megabytes / m.seconds:,.0f}",
            f"{m.ratio:.2f}",
        )
    Console(width=140).print(table)
