"""The sections of a release say what its manifest says, and the map colours every row by its split."""

from __future__ import annotations

import numpy as np
import pytest

from scalable.report.release import split_map
from scalable.report.style import DARK, LIGHT, Theme


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_every_row_is_on_the_map_in_the_colour_of_its_split(theme: Theme) -> None:
    ra, dec = np.array([359.9, 0.1, 0.2, 0.3, 0.0]), np.array([-1.0, -1.1, -1.2, -1.0, -0.9])
    parts = np.array([0, 1, 2, 3, 0], np.int8)
    axes = split_map(ra, dec, parts, theme=theme).axes[0]
    points = {dots.get_label(): np.asarray(dots.get_offsets()) for dots in axes.collections}
    assert set(points) == {"train: 2", "validation: 1", "test: 1", "guard: 1"}
    drawn = np.concatenate(list(points.values()))
    assert len(drawn) == 5
    # A field on either side of 0 h is one field.
    assert np.ptp(drawn[:, 0]) == pytest.approx(0.4)
    np.testing.assert_allclose(points["train: 2"][:, 1], dec[parts == 0])
    assert axes.xaxis_inverted()


def test_a_map_of_many_rows_draws_some_and_counts_all() -> None:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(10, 11, 120_000), rng.uniform(0, 1, 120_000)
    axes = split_map(ra, dec, np.zeros(120_000, np.int8)).axes[0]
    shown = {dots.get_label(): len(dots.get_offsets()) for dots in axes.collections}
    assert shown["train: 120,000"] == 40_000
