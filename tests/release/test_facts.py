"""What a release says of itself beside its rows is what the input says: coverage, completeness, loss, labels, keywords."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits

from scalable.catalog.collection import Collection
from scalable.io.runs import read_json
from scalable.release.coverage import completeness, depths
from scalable.release.loss import label_bias
from scalable.release.read import open_release
from scalable.sky.healpix import to_pixels


def cells_of(moc: str) -> set[int]:
    """Return the pixels of order 10 of a MOC in JSON."""
    return {
        (pixel << 2 * (10 - int(order))) + child
        for order, pixels in json.loads(moc).items()
        for pixel in pixels
        for child in range(4 ** (10 - int(order)))
    }


def test_the_coverage_of_every_modality_is_that_of_the_rows_that_have_it(released: Path) -> None:
    manifest, found = read_json(released / "release.json"), open_release(released).numpy()
    cells = to_pixels(found["ra"], found["dec"], 10)
    assert cells_of(manifest["coverage"]["rows"]["moc"]) == set(cells.tolist())
    assert set(manifest["coverage"]) == {"rows", "light curves", *(f"band {band}" for band in manifest["bands"])}
    for band in ("J", "Ks"):
        seen = found[f"{band}_Mag1_state"] == 0
        if band == "Ks":
            seen |= found["Ks_Flux1Mean_state"] == 0
        assert cells_of(manifest["coverage"][f"band {band}"]["moc"]) == set(cells[seen].tolist())


def test_completeness_counts_what_was_there_and_what_was_released(collection: Collection, released_detections: Path) -> None:
    manifest = read_json(released_detections / "release.json")
    stored = collection.detections.compute()["Mag1"].to_numpy(zero_copy_only=False)
    kept = open_release(released_detections).numpy(["Mag1"])["Mag1"]
    bins = np.array(manifest["completeness"]["Mag1"])
    assert bins[:, 1].sum() == np.isfinite(stored).sum()
    for low, before, after in bins:
        assert before == np.count_nonzero((stored >= low) & (stored < low + 0.5))
        assert after == np.count_nonzero((kept >= low) & (kept < low + 0.5))
    assert 0 < bins[:, 2].sum() < bins[:, 1].sum()
    peak = bins[np.argmax(bins[:, 1]), 0]
    assert manifest["depth"]["Mag1"] == f"counts peak from {peak:g} to {peak + 0.5:g} mag"


def test_completeness_does_not_depend_on_the_partitioning() -> None:
    parts = [{"M": {"40": [3, 1], "41": [5, 5]}}, {"M": {"-1": [1, 0], "41": [1, 0]}}]
    expected = {"M": [[-0.5, 1, 0], [20.0, 3, 1], [20.5, 6, 5]]}
    assert completeness(parts) == completeness(parts[::-1]) == expected
    assert depths(expected) == {"M": "counts peak from 20.5 to 21 mag"}
    assert depths({"M": []}) == {}


def test_the_report_of_loss_names_every_column_that_is_not_released(released: Path, sources: Path) -> None:
    info = read_json(released / "release.json")["information"]
    with fits.open(sorted((sources / "tables").glob("*.fits"))[0]) as hdus:
        own = set(hdus[1].columns.names)
    assert set(info["columns"]["left_out"]) == own - {"Flux1", "dFlux1"}
    assert info["columns"]["released"] == 2
    assert info["bands"] == {"in": 5, "released": 5}
    assert info["errors"]["Flux1"] == {"max": 0.0, "rms": 0.0}
    assert "J_Mag1" in info["derived"]
    assert info["narrowed"] == []


def test_labels_that_favour_the_bright_are_seen(released_detections: Path) -> None:
    bias = read_json(released_detections / "release.json")["label_bias"]["Class:Mag1"]
    found = open_release(released_detections).numpy(["Mag1", "Class_state"])
    assert bias["rows"] == np.isfinite(found["Mag1"]).sum()
    assert bias["labelled"] == np.count_nonzero(np.isfinite(found["Mag1"]) & (found["Class_state"] == 0))
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    one = label_bias([[[50, 100, 4], [50, 50, 4]], [[50, 100, 0], [50, 50, 0]]], edges)
    assert one["ratio"] == [pytest.approx(100 / 204 / (100 / 304)), pytest.approx(100 / 204 / (200 / 304)), None]
    assert (one["least"], one["greatest"]) == (one["ratio"][1], one["ratio"][0])


def test_keywords_that_differ_between_sources_are_columns(released: Path, sources: Path) -> None:
    with h5py.File(released / "provenance.h5") as file:
        uris = file["sources/uri"].asstr()[()].tolist()
        keywords = {name: dataset.asstr()[()].tolist() for name, dataset in file["keywords"].items()}
    headers = []
    for uri in uris:
        with fits.open(sources / uri) as hdus:
            merged = {}
            for hdu in hdus:
                merged = {**hdu.header, **merged}
            headers.append(merged)
    assert keywords
    for name, texts in keywords.items():
        assert len(set(texts)) > 1
        assert [str(header.get(name, "")) for header in headers] == texts, name
    same = [key for key in headers[0] if key.isalpha() and key not in keywords and len({str(h.get(key)) for h in headers}) > 1]
    assert set(same) <= {"NAXIS", "COMMENT", "HISTORY"}


def test_the_readme_says_what_made_it_and_what_it_costs_to_read(released: Path) -> None:
    manifest, text = read_json(released / "release.json"), (released / "README.txt").read_text()
    assert f"h5py {h5py.__version__}" in text
    assert f"{manifest['bytes_per_row']:.1f} bytes per row" in text
    rate = open_release(released).loader_rate(rows=10**9)
    assert rate["epoch_seconds"] == pytest.approx(manifest["accounting"]["released"] / rate["rows_per_second"])
