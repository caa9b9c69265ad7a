"""`write_catalog` killed anywhere and called again: nothing is computed twice, and the files are those of an undisturbed call."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest

from scalable.catalog import write, write_begun
from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.collection import Collection
from scalable.catalog.match import crossmatch
from scalable.catalog.search import cone_search
from scalable.catalog.sql import sql
from scalable.catalog.variability import variability
from scalable.catalog.write import write_catalog
from scalable.errors import StoreError


class Killed(BaseException):
    """Stands for a signal that leaves nobody to clean up."""


RESULTS: dict[str, Callable[[Collection], Catalog]] = {
    "join_bands": lambda c: join_bands(near(c.detections), values=["Mag1"]),
    "variability": lambda c: variability(near(c.detections), ["Mean"], bands=["Ks"]),
    "crossmatch": lambda c: crossmatch(near(c.objects), near(c.objects), radius_arcsec=60, k=2),
    "where": lambda c: near(c.detections).where("Mag1 < 15.2"),
    "nest": lambda c: near(c.detections).select("_healpix_29", "object_id", "object_ra", "object_dec", "band", "Mag1").nest(),
    "sql": lambda c: sql(
        near(c.detections),
        "SELECT object_id, _healpix_29, object_ra, object_dec, avg(Mag1) AS m FROM catalog "
        "GROUP BY object_id, _healpix_29, object_ra, object_dec",
    ),
}


def near(catalog: Catalog) -> Catalog:
    return cone_search(catalog, ra_deg=268.7, dec_deg=-30.0, radius_arcsec=700).repartition(2)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "sql" else pytest.mark.long) for n in RESULTS])
def test_a_call_that_was_killed_at_any_leaf_is_finished_by_the_next(
    synthetic: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    written: list[str] = []
    limit = 0

    def counted(self: Any, table: Any, leaf: Any) -> Any:
        if len(written) >= limit:
            raise Killed
        written.append(leaf.path)
        return begun_write(self, table, leaf)

    begun_write = write_begun.Begun.write
    with dask.config.set(scheduler="sync"):
        lazy = RESULTS[name](synthetic)
        write_catalog(lazy, tmp_path / "whole" / "catalog")
        whole = files(tmp_path / "whole" / "catalog")
        monkeypatch.setattr(write_begun.Begun, "write", counted)
        path = tmp_path / "killed" / "catalog"
        for allowed in (1, 3):
            limit = allowed
            with pytest.raises(Killed):
                write_catalog(lazy, path)
            assert not path.exists()
        limit = len(lazy.leaves)
        # A later call has another time; the date of the first one counts.
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
        found = write_catalog(lazy.repartition(3), path)
    assert sorted(written) == sorted({leaf.path for leaf in lazy.leaves}), "each leaf was made once"
    assert files(path) == whole
    assert [entry.name for entry in path.parent.iterdir()] == ["catalog"]
    assert found.rows == open_catalog(tmp_path / "whole" / "catalog").rows > 0


@pytest.mark.parametrize(
    "where", ["publish", *(pytest.param(n, marks=pytest.mark.long) for n in ("finish_catalog", "write_json"))]
)
def test_a_call_that_was_killed_after_the_leaves_computes_none_again(
    synthetic: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    lazy = near(synthetic.detections).where("Mag1 < 15.2")
    with dask.config.set(scheduler="sync"):
        with monkeypatch.context() as patch:
            patch.setattr(write, where, killed)
            with pytest.raises(Killed):
                write_catalog(lazy, tmp_path / "catalog")
        # Nobody may write leaves now.
        monkeypatch.setattr(write_begun.Begun, "write", killed)
        assert write_catalog(lazy, tmp_path / "catalog").compute().equals(lazy.compute())
    assert [entry.name for entry in tmp_path.iterdir()] == ["catalog"]


def test_what_another_catalogue_left_is_not_gone_on_with(
    synthetic: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    bright, faint = (near(synthetic.detections).where(f"Mag1 {sign} 15.2") for sign in "<>")
    with dask.config.set(scheduler="sync"):
        with monkeypatch.context() as patch:
            patch.setattr(write, "publish", killed)
            with pytest.raises(Killed):
                write_catalog(bright, tmp_path / "catalog")
        assert write_catalog(faint, tmp_path / "catalog").compute().equals(faint.compute())


def test_two_writers_of_one_catalogue_do_not_mix(synthetic: Collection, tmp_path: Path) -> None:
    lazy = near(synthetic.detections)
    with write_begun.working_on(tmp_path / "catalog", lazy), pytest.raises(StoreError, match="another process is writing"):
        write_catalog(lazy, tmp_path / "catalog")


def test_a_query_that_shuffles_rows_is_written_along_the_sky_and_one_that_moves_them_is_refused(
    synthetic: Collection, tmp_path: Path
) -> None:
    keys = "object_id, object_ra, object_dec"
    with dask.config.set(scheduler="threads"):
        query = f"SELECT _healpix_29, {keys}, max(Mag1) OVER (PARTITION BY object_id ORDER BY mjd DESC) AS m FROM catalog"
        shuffled = sql(near(synthetic.detections), query)
        found = write_catalog(shuffled, tmp_path / "shuffled").compute()
        index = found["_healpix_29"].to_numpy()
        assert (index[1:] >= index[:-1]).all()
        assert sorted(found.to_pylist(), key=repr) == sorted(shuffled.compute().to_pylist(), key=repr)
        moved = sql(near(synthetic.detections), f"SELECT _healpix_29 + 1000000000000000 AS _healpix_29, {keys} FROM catalog")
        with pytest.raises(StoreError, match="lies outside of order"):
            write_catalog(moved, tmp_path / "moved")


SCRIPT = """
import sys, dask
from scalable.catalog.collection import open_collection
from scalable.catalog.variability import variability
from scalable.catalog.write import write_catalog
lazy = variability(open_collection(sys.argv[1]).detections)
print("ready", flush=True)
with dask.config.set(scheduler="threads", num_workers=2):
    write_catalog(lazy, sys.argv[2])
"""


@pytest.mark.long
def test_sigkill_at_any_moment_loses_nothing(synthetic: Collection, tmp_path: Path) -> None:
    store = synthetic.path
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(store), str(tmp_path / "whole" / "catalog")], env=environment, check=True)
    path, chance, killed = tmp_path / "killed" / "catalog", random.Random(4), 0
    while not path.exists():
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(store), str(path)], env=environment, stdout=subprocess.PIPE
        ) as run:
            assert run.stdout is not None
            run.stdout.readline()
            time.sleep(chance.uniform(0.05, 0.6))
            if run.poll() is None and killed < 8:
                run.send_signal(signal.SIGKILL)
                killed += 1
            run.wait()
    assert killed > 2
    assert files(path) == files(tmp_path / "whole" / "catalog")
