"""A join of five bands loses no row, though positions jitter across leaf borders; placing each detection by itself would."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
from surveys import Observation, detections, nested_pixels, write_survey

from scalable.catalog.bands import join_bands
from scalable.catalog.ingest import ingest

BANDS = ("Z", "Y", "J", "H", "Ks")
STARS = 4000
MARGIN_ARCSEC = 5.0


def test_every_object_keeps_its_five_bands_where_detections_placed_by_themselves_lose_some(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    ra, dec = 10 + rng.uniform(0, 0.3, STARS), -30 + rng.uniform(0, 0.3, STARS)
    # A band's positions lie within half the margin of the star's: the widest pair is within the margin.
    radius, turn = rng.uniform(0, MARGIN_ARCSEC / 2, (5, STARS)) / 3600, rng.uniform(0, 2 * np.pi, (5, STARS))
    places = ra + radius * np.cos(turn) / np.cos(np.deg2rad(dec)), dec + radius * np.sin(turn)
    files = [
        Observation(number, band, float(number), detections(np.arange(STARS), *(angle[number] for angle in places)))
        for number, band in enumerate(BANDS)
    ]
    survey = write_survey(tmp_path, files, margin_arcsec=MARGIN_ARCSEC, leaf_mb=0.05, bands=BANDS)
    with dask.config.set(scheduler="threads"):
        found = ingest(survey, into=tmp_path / "store")
        joined = join_bands(found.detections, values=["Flux"], pick="first", how="inner").compute()
    leaves = np.array([(leaf.pixel.start, leaf.pixel.stop) for leaf in found.detections.leaves])
    assert len(leaves) > 12
    # The same leaves, each detection in the one of its own position: a join inside leaves finds those whom all bands have there.
    homes = [np.searchsorted(leaves[:, 0], nested_pixels(places[0][n], places[1][n], 29), side="right") for n in range(5)]
    by_themselves = int((np.array(homes) == homes[0]).all(axis=0).sum())
    print(f"{joined.num_rows:,} stars in five bands; {by_themselves:,} with detections placed by their own positions")
    assert joined.num_rows == STARS
    assert 0.5 * STARS < by_themselves < STARS - 10
