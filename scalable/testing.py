"""For tests of ours and of others: proof that a verb is lazy, and the contracts that every table reader and statistic keep."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import dask
import numpy as np
import pyarrow as pa

from scalable.io.reader import Source, TableReader
from scalable.kernels.statistic import Float, Offsets, Statistic, evaluate


class Computed(AssertionError):
    """Something computed although nothing should."""


@contextmanager
def no_compute() -> Iterator[None]:
    """Fail as soon as any Dask graph is run inside the block."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise Computed("a Dask graph was run although the verb must be lazy")

    with dask.config.set(scheduler=refuse):
        yield


def check_reader(reader: TableReader, source: Source) -> pa.Table:
    """Check what every `TableReader` must keep, and return the whole table.

    Raises
    ------
    AssertionError
        If blocks, projection, schema or digest disagree with each other or with the file.
    """
    info = reader.describe(source)
    whole = pa.concat_tables(reader.scan(source))
    assert whole.num_rows == info.rows
    assert whole.schema.equals(info.schema.to_arrow(), check_metadata=True)
    small = pa.concat_tables(reader.scan(source, block_bytes=1000))
    assert small.equals(whole)
    names = info.schema.names[::-2]
    assert pa.concat_tables(reader.scan(source, columns=names)).equals(whole.select(names))
    digest = hashlib.sha256()
    for _ in reader.scan(source, columns=names, digest=digest):
        pass
    if Path(source.path).exists():
        assert digest.hexdigest() == hashlib.sha256(Path(source.path).read_bytes()).hexdigest()
    return whole


def check_statistic(statistic: Statistic, *, rtol: float = 1e-9, seed: int = 0) -> None:
    """Check what every `Statistic` must keep, on random light curves of 0 to 40 points.

    That is: a number for each curve, whatever the others are; none for a curve without points, or a count of 0; points that do
    not count change nothing, and where time is not needed, nor does their order; flux and error in another unit scale the result
    as the declared unit says; parts merged in any way give what the whole gives; it survives the way to a worker.

    Parameters
    ----------
    statistic : Statistic
        To be checked.
    rtol : float
        What rounding may change, of the largest absolute result.
    seed : int
        Of the random light curves.

    Raises
    ------
    AssertionError
        Naming the statistic and the promise that it breaks.
    """
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[0, 1, 1, 2, 2, 3], rng.integers(0, 40, 30), [0]])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    points = int(offsets[-1])
    curve = np.repeat(np.arange(len(lengths)), lengths)
    flux, err = rng.normal(100.0, 10.0, points), rng.uniform(1.0, 20.0, points)
    # Steps of whole days: some points share their time.
    mjd = 56000.0 + np.concatenate([np.sort(rng.integers(0, 60, n)) for n in lengths])

    def of(flux: Float, err: Float, mjd: Float, offsets: Offsets, statistic: Statistic = statistic) -> Float:
        return evaluate((statistic,), flux, err, mjd, offsets)[statistic.name]

    def agree(found: Float, promise: str, factor: float = 1.0) -> None:
        size = np.nanmax(np.abs(whole), initial=0.0) * factor
        message = f"{statistic.name}: {promise}"
        np.testing.assert_allclose(found, whole * factor, rtol=rtol, atol=rtol * size, equal_nan=True, err_msg=message)

    name, whole = statistic.name, of(flux, err, mjd, offsets)
    assert whole.shape == (len(lengths),), f"{name}: must give one number for each curve, not {whole.shape}"
    nothing = whole[lengths == 0]
    assert (nothing == 0 if statistic.integer else np.isnan(nothing)).all(), f"{name}: a curve without points has no value"
    assert np.isfinite(whole[lengths > 9]).any(), f"{name}: gives no number for curves of ten points and more"
    parts = [slice(*offsets[g : g + 2]) for g in range(len(lengths))]
    alone = [of(flux[part], err[part], mjd[part], np.array([0, part.stop - part.start])) for part in parts]
    agree(np.concatenate(alone), "a curve must not depend on the others")
    agree(of(*_with_gaps(flux, err, mjd, lengths, rng, statistic.needs)), "points that do not count must change nothing")
    if "mjd" not in statistic.needs:
        order = np.lexsort((rng.random(points), curve))
        agree(of(flux[order], err[order], mjd, offsets), "the order of points must not matter where time is not needed")
    power = re.search(r"value(?:\*\*(\d+))?", statistic.unit)
    factor = 4.0 ** int(power[1] or 1) if power else 1.0
    agree(of(flux * 4, err * 4, mjd, offsets), f"must scale as its unit {statistic.unit or '(none)'} does", factor)
    agree(of(flux, err, mjd, offsets, cloudpickle.loads(cloudpickle.dumps(statistic))), "must survive pickling")
    if statistic.combine:
        assert statistic.chunk, f"{name}: combine merges what chunk returns, and there is no chunk"
        part_of = rng.integers(0, 3, points)
        sums = []
        for part in range(3):
            mine = part_of == part
            ends = np.concatenate([[0], np.cumsum(np.bincount(curve[mine], minlength=len(lengths)))])
            sums.append(statistic.chunk(flux[mine], err[mine], mjd[mine], ends))
        for first, second, third in ((0, 1, 2), (2, 0, 1)):
            merged = statistic.combine(statistic.combine(sums[first], sums[second]), sums[third])
            agree(statistic.finalize(merged), "parts merged must give what the whole gives")


def _with_gaps(
    flux: Float, err: Float, mjd: Float, lengths: Any, rng: np.random.Generator, needs: tuple[str, ...]
) -> tuple[Float, Float, Float, Any]:
    """Return the same light curves with points between theirs that do not count."""
    missing = rng.random(len(flux)) < 0.3
    rows = np.repeat(np.arange(len(flux)), 1 + missing)
    extra = np.concatenate([[False], rows[1:] == rows[:-1]])
    columns = {"flux": flux[rows], "err": err[rows], "mjd": mjd[rows]}
    for role, values in columns.items():
        if role in needs:
            values[extra & (rng.random(len(rows)) < 0.5)] = np.nan
    last = columns[needs[0]]
    last[extra & np.isfinite(last)] = np.inf
    curve = np.repeat(np.arange(len(lengths)), lengths)[rows]
    ends = np.concatenate([[0], np.cumsum(np.bincount(curve, minlength=len(lengths)))])
    return columns["flux"], columns["err"], columns["mjd"], ends
