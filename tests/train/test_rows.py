"""Rows from anywhere are the same rows: blocks of any kind, a release, large files in parts; and what cannot be gone through."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from scalable.errors import ColumnError, InputError
from scalable.kernels.features import Features
from scalable.survey.tables import ColumnRule, NullRule
from scalable.train import rows as origins
from scalable.train.photoz import evaluate, fit_photoz
from scalable.train.predict import predict, predict_files
from scalable.train.tables import batches_of, left_out

FEATURES = Features(("g", "r"), reference="r")


def table(rows: int = 900) -> pa.Table:
    rng = np.random.default_rng(4)
    z = rng.uniform(0, 0.5, rows)
    noise = 0.02 * rng.normal(size=(2, rows))
    return pa.table({"g": 20 + 3 * z + noise[0], "r": 19 + z + noise[1], "z": z, "id": np.arange(rows)})


@dataclass(frozen=True)
class Again:
    """Something that makes its blocks anew whenever it is gone through."""

    whole: pa.Table
    kind: str

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.whole), 250):
            cut = self.whole.slice(start, 250)
            if self.kind == "tables":
                yield cut
            elif self.kind == "batches":
                yield from cut.combine_chunks().to_batches()
            else:
                yield {
                    name: cut[name].to_numpy().astype(self.kind + cut[name].to_numpy().dtype.str[1:]) for name in cut.column_names
                }


@pytest.mark.parametrize("kind", ["tables", "batches", "<", ">"])
def test_blocks_of_any_kind_are_the_rows_of_the_table(kind: str) -> None:
    whole = table()
    expected = batches_of(whole, FEATURES, target="z", key="id")
    again = Again(whole, kind)
    for source in (again, list(again)):
        found = batches_of(source, FEATURES, target="z", key="id")
        assert found.digest() == expected.digest()
    assert len(found.parts) == 4
    ours, theirs = (fit_photoz(data, FEATURES, target="z", estimator="linear", folds=2, key="id") for data in (again, whole))
    np.testing.assert_allclose(ours.estimator.coef_, theirs.estimator.coef_, rtol=1e-9)
    assert ours.about["metrics"]["train"] == pytest.approx(theirs.about["metrics"]["train"], rel=1e-8, abs=1e-12)


def test_blocks_have_null_rules_too() -> None:
    columns = {name: table()[name].to_numpy().copy() for name in "grz"}
    columns["g"][:5] = 99.0
    rules = {"g": ColumnRule(nulls=(NullRule(at_least=90, state="non_detection"),))}
    assert left_out(batches_of([columns], FEATURES, target="z", rules=rules)) == {"used": 895, "non_detection": 5}


def test_what_cannot_be_gone_through_is_refused() -> None:
    whole = table()
    with pytest.raises(InputError, match="an iterator gives its blocks once"):
        batches_of(iter(Again(whole, "tables")), FEATURES)
    with pytest.raises(InputError, match="a block is a str: give tables of Arrow"):
        batches_of(["a", 3.0], FEATURES)
    with pytest.raises(InputError, match="no block to learn from"):
        batches_of(Again(whole.slice(0, 0), "tables"), FEATURES)
    with pytest.raises(InputError, match="no rows in a int"):
        batches_of(7, FEATURES)
    with pytest.raises(ColumnError, match="no column 'q'"):
        batches_of([whole], Features(("g", "q")))
    with pytest.raises(InputError, match="a block has no column 'r' that the first one had"):
        batches_of([whole, whole.drop_columns("r")], FEATURES).count()
    with pytest.raises(InputError, match="only a release has splits"):
        batches_of(whole, FEATURES, split="train")


class FakeRelease:
    """What is asked of a release, over a table in memory: five shards, and the first two thirds of the rows to train with."""

    def __init__(self, whole: pa.Table) -> None:
        self.whole = whole
        self.shards = [range(start, len(whole), 5) for start in range(5)]
        units = {"g": "mag", "r": "mag"}
        about = [
            {
                "name": name,
                "in": "rows",
                "dtype": "double",
                "unit": units.get(name, ""),
                "role": "value",
                "description": "",
                "states": name == "g",
            }
            for name in ("g", "r", "z")
        ]
        self.manifest = {"columns": about, "shards": [{"rows": len(shard)} for shard in self.shards]}

    def blocks(
        self, columns: Sequence[str], *, split: str | None = None, seed: int = 0, worker: int = 0, workers: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        every = {name: self.whole[name].to_numpy() for name in self.whole.column_names}
        every |= {"object_id": every.pop("id"), "g_state": np.where(every["g"] > 90, 1, 0).astype(np.uint8)}
        border = 2 * len(self.whole) // 3
        for number in np.random.default_rng(seed).permutation(5)[worker::workers]:
            for start in range(0, len(self.shards[number]), 40):
                rows = np.array(self.shards[number][start : start + 40])
                if split:
                    rows = rows[(rows < border) == (split == "train")]
                if len(rows):
                    yield {name: every[name][rows] for name in columns}


def test_a_release_teaches_with_one_split_and_judges_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: table()[name].to_numpy().copy() for name in table().column_names}
    columns["g"][[3, 800]] = 99.0
    whole = pa.table(columns)
    monkeypatch.setattr(origins, "PART_ROWS", 400)
    release = FakeRelease(whole)
    found = batches_of(release, FEATURES, target="z", key="object_id")
    assert len(found.parts) == 3
    assert left_out(found) == {"used": 898, "non_detection": 2}
    assert found.units == ("mag", "mag")
    good = whole.filter(pa.compute.less(whole["g"], 90))
    assert found.digest() == batches_of(good, FEATURES, target="z").digest()
    model = fit_photoz(release, FEATURES, target="z", estimator="linear", folds=0, split="train")
    assert model.about["rows"] == 599
    assert evaluate(model, release, split="test")["rows"][0].as_py() == 299
    with pytest.raises(ColumnError, match="g is without unit, the model was taught with a column in mag"):
        predict(whole, model)


@pytest.mark.parametrize("ending", ["parquet", "fits", "fits.gz", "csv"])
def test_a_large_file_is_read_in_parts_where_its_format_allows(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = table(5000), tmp_path / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(whole, path, row_group_size=700)
    else:
        plain = tmp_path / f"t.{ending.removesuffix('.gz')}"
        Table({name: whole[name].to_numpy() for name in whole.column_names}).write(plain)
        if path != plain:
            path.write_bytes(gzip.compress(plain.read_bytes()))
    one = batches_of(path, FEATURES, target="z", key="id")
    assert len(one.parts) == 1
    monkeypatch.setattr(origins, "PART_BYTES", 20_000)
    monkeypatch.setattr(origins, "BLOCK_ROWS", 500)
    many = batches_of([path, path], FEATURES, target="z", key="id")
    assert len(many.parts) == {"parquet": 16, "fits": 18, "fits.gz": 2, "csv": 2}[ending]
    first = [block for part in many.parts[: len(many.parts) // 2] for block in part.blocks()]
    for name in ("columns", "target", "keys"):
        joined = np.concatenate([getattr(block, name) for block in first], axis=-1)
        assert np.array_equal(joined, np.concatenate([getattr(block, name) for block in one.blocks()], axis=-1))
    assert many.count() == 10_000


@pytest.mark.parametrize("ending", ["fits", "vot", "parquet"])
def test_files_in_other_units_than_the_first_are_refused(ending: str, tmp_path: Path) -> None:
    paths = []
    for name, unit in (("a", "mag"), ("b", "mmag"), ("c", "")):
        own = Table({column: table()[column].to_numpy() for column in "grz"})
        for column in "gr":
            own[column].unit = unit or None
        own.write(tmp_path / f"{name}.{ending}", **({"format": "votable"} if ending == "vot" else {}))
        paths.append(tmp_path / f"{name}.{ending}")
    with pytest.raises(ColumnError, match=rf"b.{ending}: g is in mmag, but in mag in the first: convert .* a rule of the column"):
        fit_photoz(paths[:2], FEATURES, target="z", estimator="linear", folds=0)
    with pytest.raises(ColumnError, match=rf"c.{ending}: g is without unit, but in mag in the first"):
        batches_of(paths[::2], FEATURES, target="z").count()
    model = fit_photoz(paths[0], FEATURES, target="z", estimator="linear", folds=0)
    with pytest.raises(ColumnError, match="g is in mmag"):
        predict_files(paths[:2], model, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    rules = {column: ColumnRule(unit="mag") for column in "gr"}
    assert batches_of(paths, FEATURES, target="z", rules=rules).count() == 2700


def test_blocks_in_other_units_than_the_first_are_refused() -> None:
    fields = [pa.field(name, pa.float64(), metadata={"unit": "mmag"}) for name in "gr"]
    other = pa.table([table()["g"], table()["r"], table()["z"]], schema=pa.schema([*fields, pa.field("z", pa.float64())]))
    assert batches_of([other, other], FEATURES, target="z").count() == 1800
    with pytest.raises(ColumnError, match="a block: g is without unit, but in mmag in the first"):
        batches_of([other, table()], FEATURES, target="z").count()
