"""One thing is changed at a time: verify finds it and names it, also when the checksums are sealed again after the change."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalable.io.hdf5_probe import why_deadly
from scalable.io.runs import read_json
from scalable.release.drawn import are_drawn
from scalable.release.images import digest_images, read_blocks, step_of
from scalable.release.manifest import file_digest, write_sums
from scalable.release.parts import digest_rows
from scalable.release.provenance import SOURCE_COLUMNS, headers_digest, sources_digest
from scalable.release.recipe import parse_recipe
from scalable.release.summary import split_facts
from scalable.release.verify import Verification, order_arrays, read_shard, verify_release
from scalable.release.version import content_digest
from scalable.release.write import documents


@pytest.fixture(autouse=True)
def _threads() -> None:
    dask.config.set(scheduler="threads")


def first_shard(release: Path) -> Path:
    return release / str(read_json(release / "release.json")["shards"][0]["path"])


def flip_a_byte(release: Path) -> str:
    shard = first_shard(release)
    with h5py.File(shard) as file:
        at = file["ra"].id.get_chunk_info(0).byte_offset + 7
    data = bytearray(shard.read_bytes())
    data[at] ^= 4
    shard.write_bytes(data)
    return shard.relative_to(release).as_posix()


def change_a_value(release: Path) -> str:
    with h5py.File(first_shard(release), "r+") as file:
        file["J_Mag1"][0] += 0.001
    return first_shard(release).relative_to(release).as_posix()


def drop_a_row(release: Path) -> str:
    shard = first_shard(release)
    with h5py.File(shard, "r+") as file:
        for name in list(file):
            values, about = file[name][1:], dict(file[name].attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(about)
    return shard.relative_to(release).as_posix()


def change_a_unit(release: Path) -> str:
    with h5py.File(first_shard(release), "r+") as file:
        file["J_Mag1"].attrs["unit"] = "Jy"
    return "J_Mag1"


def change_a_state(release: Path) -> str:
    with h5py.File(first_shard(release), "r+") as file:
        file["J_Mag1_state"][0] = 3
    return "J_Mag1"


def edit_a_header_card(release: Path) -> str:
    with h5py.File(release / "provenance.h5", "r+") as file:
        blocks = file["headers/blocks"]
        blocks[240:248] = np.frombuffer(b"FORGED  ", np.uint8)
    return "headers"


def rename_a_source(release: Path) -> str:
    with h5py.File(release / "provenance.h5", "r+") as file:
        file["sources/uri"][0] = "tables/another.fits"
    return "sources"


def swap_two_objects(release: Path) -> str:
    """Give two objects the features of each other."""
    with h5py.File(first_shard(release), "r+") as file:
        for name in ("J_Mag1", "J_Mag1_state", "H_Mag1", "H_Mag1_state"):
            file[name][:2] = file[name][:2][::-1].copy()
    return first_shard(release).relative_to(release).as_posix()


def swap_two_rows(release: Path) -> str:
    """Let two objects stand in each other's place, whole."""
    with h5py.File(first_shard(release), "r+") as file:
        for dataset in file.values():
            dataset[:2] = dataset[:2][::-1].copy()
    return first_shard(release).relative_to(release).as_posix()


def lose_a_rejected_row(release: Path) -> str:
    with h5py.File(release / "provenance.h5", "r+") as file:
        for dataset in file["rejected"].values():
            dataset.resize(dataset.shape[0] - 1, axis=0)
    return "rejected"


def edit_the_datasheet(release: Path) -> str:
    sheet = read_json(release / "datasheet.json")
    sheet["composition_instances"]["answer"] = "a million objects"
    (release / "datasheet.json").write_text(json.dumps(sheet, sort_keys=True) + "\n")
    return "datasheet.json"


def raise_the_version(release: Path) -> str:
    manifest = read_json(release / "release.json") | {"version": "3.0.0"}
    (release / "release.json").write_text(json.dumps(manifest))
    return "release.json"


def forget_a_file(release: Path) -> str:
    (release / "code" / "lock.txt").unlink()
    return "code/lock.txt"


CHANGES: list[Callable[[Path], str]] = [
    flip_a_byte, change_a_value, drop_a_row, change_a_unit, change_a_state, edit_a_header_card, rename_a_source, swap_two_objects,
    swap_two_rows, lose_a_rejected_row, edit_the_datasheet, raise_the_version, forget_a_file,
]  # fmt: skip


def named(found: Verification) -> str:
    return "\n".join(map(str, found.findings))


@pytest.mark.parametrize("level", [3, pytest.param(4, marks=pytest.mark.long)])
def test_an_untouched_release_passes_all_levels(released: Path, released_detections: Path, sources: Path, level: int) -> None:
    for release, rows in ((released, "objects"), (released_detections, "detections")):
        found = verify_release(release, level=level, sources=sources)
        assert found.passed, f"{rows}: {found}"
        assert found.exit_code == 0
        assert {level for level, _, _ in found.checked} == set(range(1, level + 1))
        assert all(count > 0 for _, _, count in found.checked)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_found_by_the_checksums(copied: Path, change: Callable[[Path], str]) -> None:
    change(copied)
    found = verify_release(copied, level=1)
    assert found.exit_code == 4
    assert len(found.findings) == 1, found
    assert "SHA256SUMS" in named(found)


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: change.__name__)
def test_a_change_that_was_sealed_again_is_found_and_named_by_level_2(copied: Path, change: Callable[[Path], str]) -> None:
    where = change(copied)
    write_sums(copied)
    assert verify_release(copied, level=1).passed
    found = verify_release(copied, level=2)
    assert found.exit_code == 4
    assert where in named(found)


def seal(release: Path) -> None:
    """Make everything anew that follows from shards, provenance and manifest, as a careful forger would."""
    manifest = read_json(release / "release.json")
    index = pq.read_table(release / "index.parquet")
    pieces = []
    for shard in manifest["shards"]:
        images = [column for column in manifest["columns"] if column["in"] == "images"]
        rows, _, _ = read_shard(release / shard["path"], [column["name"] for column in images])
        curves = read_shard(release / shard["light_curves"])[0] if "light_curves" in shard else {}
        pixels = None
        if images:
            with h5py.File(release / shard["path"]) as file:
                pixels, _ = digest_images(read_blocks(file, images, step_of(images)))
        curves = order_arrays(curves, manifest, "light_curves") if curves else {}
        digests = digest_rows(order_arrays(rows, manifest, "rows"), curves, pixels)
        columns = {name: pa.array(rows[name]) for name in index.column_names if name in rows}
        columns |= {"shard": [shard["path"]] * len(digests), "row": np.arange(len(digests))}
        columns["row_digest"] = pa.array([one.tobytes() for one in digests], pa.binary(32))
        pieces.append(pa.table([columns[name] for name in index.column_names], schema=index.schema))
        shard |= {"rows": len(digests), "digest": hashlib.sha256(digests.tobytes()).hexdigest()}
    index = pa.concat_tables(pieces)
    pq.write_table(index, release / "index.parquet", write_page_checksum=True)
    with h5py.File(release / "provenance.h5") as file:
        sources = {name: read_list(file["sources"][name]) for name in SOURCE_COLUMNS}
        manifest["sources"] |= {"digest": sources_digest(sources), "headers_digest": headers_digest(file["headers"])}
    observed = index.filter(pa.array(~are_drawn(index)))
    released = observed.num_rows
    manifest["content"] = content_digest(index, "objects")
    manifest["accounting"] |= {"released": released, "in": released + manifest["accounting"]["rejected"]}
    manifest["split"] = split_facts(parse_recipe(manifest["recipe"], ""), observed)
    (release / "release.json").write_text(json.dumps(manifest))
    for name, text in documents(manifest, file_digest(release / "index.parquet")).items():
        (release / name).write_text(text)
    write_sums(release)


def read_list(dataset: h5py.Dataset) -> list[object]:
    return list((dataset.asstr() if dataset.dtype.kind == "O" else dataset)[()].tolist())


def forge_a_unit(release: Path) -> str:
    """Change a unit wherever it stands."""
    manifest = read_json(release / "release.json")
    for column in manifest["columns"]:
        if column["name"] == "J_Mag1":
            column["unit"] = "Jy"
    for shard in manifest["shards"]:
        for path in (shard["path"], shard["light_curves"]):
            with h5py.File(release / path, "r+") as file:
                file.attrs.modify("columns", json.dumps(manifest["columns"], sort_keys=True))
                if "J_Mag1" in file:
                    file["J_Mag1"].attrs.modify("unit", "Jy")
    (release / "release.json").write_text(json.dumps(manifest))
    return "J_Mag1: unit is 'Jy', the survey gives 'mag'"


def forge_a_dropped_row(release: Path) -> str:
    """Drop a row and its light curve from a shard."""
    shard = read_json(release / "release.json")["shards"][0]
    with h5py.File(release / shard["path"], "r+") as file, h5py.File(release / shard["light_curves"], "r+") as beside:
        gone, count = int(file["object_id"][0]), int(file["lc_count"][0])
        for group, first in ((file, 1), (beside, count)):
            for name in list(group):
                text, about = h5py.check_string_dtype(group[name].dtype), dict(group[name].attrs)
                values = group[name][first:] - (count if name == "lc_offset" else 0) if text is None else group[name][first:]
                del group[name]
                group.create_dataset(name, data=values, dtype=h5py.string_dtype() if text else values.dtype)
                group[name].attrs.update(about)
    manifest = read_json(release / "release.json")
    manifest["shards"][0]["detections"] -= count
    (release / "release.json").write_text(json.dumps(manifest))
    return f"object_id {gone}: made again from the sources, it is not in the release"


def forge_limits(release: Path) -> str:
    """Claim another depth."""
    manifest = read_json(release / "release.json")
    manifest["limits"] |= {"TELESCOP": "a better one"}
    (release / "release.json").write_text(json.dumps(manifest))
    return "release.json: limits"


def forge_a_source(release: Path) -> str:
    rename_a_source(release)
    return "tables/another.fits"


def forge_a_card(release: Path) -> str:
    edit_a_header_card(release)
    return "card 'FORGED"


def forge_a_value(release: Path) -> str:
    change_a_value(release)
    return "J_Mag1 not as the source gives"


def forge_swapped_objects(release: Path) -> str:
    swap_two_objects(release)
    return "not as the source gives"


LONG = [(forge_swapped_objects, 3), (forge_a_source, 3), (forge_a_card, 3), (forge_a_dropped_row, 4), (forge_limits, 4)]
FORGERIES = [(forge_a_value, 3), (forge_a_unit, 3), *(pytest.param(*forgery, marks=pytest.mark.long) for forgery in LONG)]


@pytest.mark.parametrize(("change", "level"), FORGERIES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_what_is_forged_throughout_is_found_in_the_sources(
    copied: Path, sources: Path, change: Callable[[Path], str], level: int
) -> None:
    named_as = change(copied)
    seal(copied)
    below = verify_release(copied, level=level - 1, sources=sources, samples=20)
    assert below.passed, below
    found = verify_release(copied, level=level, sources=sources, samples=1000)
    assert named_as in named(found)
    assert {finding.level for finding in found.findings} == {level}


@pytest.mark.long
def test_a_forged_value_is_found_by_a_rebuild_too(copied: Path, sources: Path) -> None:
    change_a_value(copied)
    seal(copied)
    rebuilt = verify_release(copied, level=4, sources=sources, samples=1)
    assert any(finding.level == 4 and "comes out otherwise" in finding.problem for finding in rebuilt.findings)


def test_a_source_that_changed_is_named(released: Path, sources: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(sources, tmp_path / "input"))
    changed = sorted((elsewhere / "tables").glob("*.fits"))[0]
    data = bytearray(changed.read_bytes())
    data[240:248] = b"FORGED  "
    changed.write_bytes(data)
    found = verify_release(released, level=3, sources=elsewhere)
    assert changed.name in named(found)
    assert "FORGED" in named(found)
    gone = sorted((elsewhere / "tables").glob("*.fits"))[1]
    gone.unlink()
    assert gone.name in named(verify_release(released, level=3, sources=elsewhere))


def test_a_file_that_crashes_its_reader_is_named_and_the_others_are_checked(
    copied: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, shards = flip_a_byte(copied), read_json(copied / "release.json")["shards"]
    monkeypatch.setattr(sys, "executable", str(copied.parent / "python"))
    Path(sys.executable).write_text("#!/bin/sh\nkill -SEGV $$\n")
    Path(sys.executable).chmod(0o755)
    found = verify_release(copied, level=3, sources=sources)
    assert f"level 2: {where}: cannot be read: the HDF5 library crashed (SIGSEGV)" in named(found)
    rows = {name: count for _, name, count in found.checked}["rows: schema, states, digests"]
    assert rows == sum(shard["rows"] for shard in shards[1:])
    assert {level for level, _, _ in found.checked} == {1, 2}


def test_a_damaged_file_that_harms_nobody_is_read_all_the_same(copied: Path) -> None:
    shard = first_shard(copied)
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(data)
    assert why_deadly(shard) == ""
    found = verify_release(copied, level=2)
    assert f"level 2: {shard.relative_to(copied)}: cannot be read" in named(found)


@pytest.mark.long
def test_verify_outlives_damage_anywhere_in_a_shard(copied: Path) -> None:
    shard, rng = first_shard(copied), np.random.default_rng(1)
    whole = shard.read_bytes()
    for number in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        # Half of them where the tables of the format lie, at its beginning.
        end = len(data) if number % 2 else 1 << 13
        at = rng.integers(0, end, rng.integers(1, 20))
        data[at] ^= rng.integers(1, 256, len(at)).astype(np.uint8)
        shard.write_bytes(data[: rng.integers(100, len(data))].tobytes() if number % 5 == 0 else data.tobytes())
        found = verify_release(copied, level=2)
        assert found.exit_code == 4
        assert f"level 1: {shard.relative_to(copied)}" in named(found)
