"""Statistics as lazy verbs: what is asked is computed and no more, across bands too, with units, classes and one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from astropy import units as u
from astropy.table import Table

from scalable.catalog.bands import PICKS, join_bands
from scalable.catalog.catalog import Catalog
from scalable.catalog.classes import where_class
from scalable.catalog.collection import Collection
from scalable.catalog.compare import compare_bands
from scalable.catalog.steps import columns_needed
from scalable.catalog.variability import unit_of, variability
from scalable.catalog.write import write_catalog
from scalable.errors import ColumnError
from scalable.kernels.cross_band import CROSS_BAND
from scalable.kernels.period import multiband_periodogram, periodogram
from scalable.kernels.statistic import Float, Statistic
from scalable.kernels.structure import structure_function
from scalable.kernels.variability import ALL
from scalable.testing import no_compute

VERBS: dict[str, Callable[[Catalog], Catalog]] = {
    "every statistic": lambda d: variability(d, list(ALL), values=["Flux1", "Mag1"]),
    "across bands": lambda d: compare_bands(d, values=["Flux1", "Mag1"], within_days=30),
    "structure": lambda d: variability(d, structure_function([0, 10, 1000]), bands=["Ks"]),
    "class": lambda d: where_class(join_bands(d, values=["Mag1", "Class"], pick="first"), -1, rule="majority"),
}


@pytest.fixture(scope="module")
def rows(synthetic: Collection) -> pa.Table:
    return synthetic.detections.compute(scheduler="threads")


def curve(rows: pa.Table, star: int, band: str, value: str) -> pa.Table:
    """Return the points of one light curve that count, with the value as flux and its error as err."""
    mine = rows.filter(pc.and_(pc.equal(rows["object_id"], star), pc.equal(rows["band"], band)))
    table = pa.table({"flux": mine[value], "err": mine[f"d{value}"], "mjd": mine["mjd"]})
    return table.drop_null().filter(pc.greater(pc.field("err"), 0))


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_nothing_is_computed_before_and_partitions_do_not_show(synthetic: Collection, verb: Callable[[Catalog], Catalog]) -> None:
    with no_compute():
        lazy = [verb(synthetic.detections.repartition(partitions)) for partitions in (1, 7)]
        assert all(len(one.__dask_graph__()) == one.npartitions for one in lazy)
        assert "pending" in repr(lazy[0])
    answers = [one.compute(scheduler="threads") for one in lazy]
    assert answers[0].num_rows > 0
    assert answers[1].equals(answers[0])


def test_statistics_of_a_catalogue_are_those_of_its_light_curves(synthetic: Collection, rows: pa.Table) -> None:
    names = ["Ndata", "Mean", "MAD", "MaxSlope", "StetsonJ"]
    found = variability(synthetic.detections, names, values=["Flux1"]).compute(scheduler="threads").to_pylist()
    some = found[:: len(found) // 12]
    for row in some:
        for band in synthetic.bands:
            points = curve(rows, row["object_id"], band, "Flux1")
            flux, err = (np.asarray(points[name], dtype=float) for name in ("flux", "err"))
            assert row[f"{band}_Flux1Ndata"] == len(flux)
            mean, mad = row[f"{band}_Flux1Mean"], row[f"{band}_Flux1MAD"]
            if len(flux) == 0:
                assert mean is None
                assert mad is None
                continue
            assert mean == pytest.approx(np.average(flux, weights=err**-2), rel=1e-9)
            assert mad == pytest.approx(np.median(np.abs(flux - np.median(flux))), rel=1e-9, abs=1e-9)
            slopes = np.diff(flux) / np.diff(points["mjd"].to_numpy())
            assert row[f"{band}_Flux1MaxSlope"] == (pytest.approx(slopes.max(), rel=1e-9) if len(slopes) else None)


def test_only_wanted_statistics_run_and_read(synthetic: Collection) -> None:
    def forbidden(flux: Float, err: Float, mjd: Float, offsets: Float) -> Float:
        raise AssertionError("nobody wants this")

    never = Statistic("Never", "never", forbidden)
    lazy = variability(synthetic.detections, ["Mean", never, "MaxSlope"], values=["Flux1", "Mag1"])
    wanted = lazy.select("object_id", "J_Mag1Mean")
    assert set(columns_needed(wanted.chain.steps, wanted.schema.names)) == {"object_id", "band", "Mag1", "dMag1"}
    whole = variability(synthetic.detections, ["Mean"], values=["Mag1"]).compute(scheduler="threads")
    assert wanted.compute(scheduler="threads")["J_Mag1Mean"].equals(whole["J_Mag1Mean"])
    timed = lazy.where("Ks_Flux1MaxSlope > 0").select("object_id")
    assert set(columns_needed(timed.chain.steps, timed.schema.names)) == {"object_id", "band", "mjd", "Flux1", "dFlux1"}
    assert 0 < timed.compute(scheduler="threads").num_rows < whole.num_rows
    with pytest.raises(AssertionError, match="nobody wants this"):
        lazy.compute(scheduler="sync")


def test_units_ucds_and_definitions_are_written_and_astropy_reads_them(synthetic: Collection, tmp_path: object) -> None:
    lazy = variability(
        synthetic.detections, ["Mean", "MaxSlope", "ExcessVariance", "TimeSpan", "Chi2"], values=["Mag1"], bands=["Ks"]
    )
    units = {column.name: column.unit for column in lazy.columns}
    assert (units["Ks_Mag1Mean"], units["Ks_Mag1TimeSpan"], units["Ks_Mag1Chi2"]) == ("mag", "d", "")
    with dask.config.set(scheduler="threads"):
        written = write_catalog(lazy, tmp_path / "statistics")
    assert written.columns == lazy.columns
    assert written.columns["Ks_Mag1MaxSlope"].description.endswith("signed; pairs at one time do not count")
    assert written.columns["Ks_Mag1Mean"].ucd == "stat.mean"
    table = Table.read(tmp_path / "statistics" / "dataset" / "_common_metadata", format="parquet.votable")
    assert table["Ks_Mag1MaxSlope"].unit == u.mag / u.d
    assert table["Ks_Mag1ExcessVariance"].unit == u.mag**2
    assert table["Ks_Mag1Mean"].meta["ucd"] == "stat.mean"


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("value", "odd one", "odd one"),
        ("", "mag", ""),
        ("d", "mag", "d"),
        ("value/d", "", "d**-1"),
        ("value**2", "adu", "adu**2"),
        ("value/d", "ct/s", "count.d**-1.s**-1"),
    ],
)
def test_a_unit_is_that_of_the_value_where_it_says_so(text: str, unit: str, expected: str) -> None:
    assert unit_of(text, unit) == expected


def rooted(sums: Float) -> Float:
    return np.sqrt(np.divide(sums[:, 1], sums[:, 0], out=np.full(len(sums), np.nan), where=sums[:, 0] > 0))


def power_sums(flux: Float, err: Float, mjd: Float, offsets: Float) -> Float:
    total = np.add.reduceat(np.append(flux**2, 0.0), offsets[:-1]) * (np.diff(offsets) > 0)
    return np.column_stack([np.diff(offsets), total])


RMS = Statistic("Rms", "root of the mean square", rooted, "value", power_sums, np.add, ucd="stat.value")


def test_a_statistic_of_ones_own_comes_with_unit_and_definition(synthetic: Collection, rows: pa.Table) -> None:
    lazy = variability(synthetic.detections.repartition(3), [RMS, "Mean"], bands=["Ks"], values=["Mag1"])
    column = lazy.columns["Ks_Mag1Rms"]
    assert (column.unit, column.ucd, column.description) == ("mag", "stat.value", "Mag1 in Ks: root of the mean square")
    found = lazy.compute(scheduler="threads")
    star = found["object_id"][5].as_py()
    flux = np.asarray(curve(rows, star, "Ks", "Mag1")["flux"], dtype=float)
    assert found["Ks_Mag1Rms"][5].as_py() == pytest.approx(np.sqrt((flux**2).mean()))
    assert lazy.history[-1]["statistics"] == ["Rms", "Mean"]


def test_a_product_is_taken_over_only_from_the_same_statistic(synthetic: Collection, tmp_path: object) -> None:
    def own(scale: float) -> Catalog:
        return variability(synthetic.detections, [Statistic("Own", "own", partial(scaled, scale))], bands=["Ks"])

    with dask.config.set(scheduler="threads"):
        write_catalog(own(1.0), tmp_path / "first")
        same = write_catalog(own(1.0), tmp_path / "same", reuse=tmp_path / "first")
        other = write_catalog(own(2.0), tmp_path / "other", reuse=tmp_path / "first")
        twice = pc.multiply(same.compute()["Ks_Flux1Own"], 2)
        assert other.compute()["Ks_Flux1Own"].equals(twice)
    leaf = same.leaves[0].path
    assert (tmp_path / "same" / leaf).samefile(tmp_path / "first" / leaf)
    assert not (tmp_path / "other" / leaf).samefile(tmp_path / "first" / leaf)


def scaled(scale: float, flux: Float, err: Float, mjd: Float, offsets: Float) -> Float:
    return scale * np.diff(offsets).astype(float)


def test_colours_of_bands_are_those_of_their_means(synthetic: Collection) -> None:
    found = compare_bands(synthetic.detections, pairs=[("J", "Ks"), ("H", "Ks")], values=["Mag1"]).compute(scheduler="threads")
    means = variability(synthetic.detections, ["Mean", "Chi2", "Ndata"], values=["Mag1"]).compute(scheduler="threads")
    difference = pc.subtract(means["H_Mag1Mean"], means["Ks_Mag1Mean"])
    np.testing.assert_allclose(floats(found["H_Ks_Mag1MeanColour"]), floats(difference), rtol=0, atol=1e-12)
    chi2 = np.array([floats(means[f"{band}_Mag1Chi2"]) for band in synthetic.bands])
    np.testing.assert_allclose(floats(found["Mag1SummedChi2"]), np.nansum(chi2, axis=0), rtol=1e-12)
    n = np.array([floats(means[f"{band}_Mag1Ndata"]) for band in synthetic.bands])
    assert found["Mag1SummedDof"].to_pylist() == np.maximum(n - 1, 0).sum(axis=0).tolist()


def floats(column: pa.ChunkedArray) -> Float:
    return pc.cast(column, pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)


def test_columns_across_bands_say_what_they_are(synthetic: Collection) -> None:
    lazy = compare_bands(synthetic.detections, values=["Mag1"], within_days=0.5)
    named = [column.name for column in lazy.columns if column.name.endswith(("StetsonL", "SummedChi2"))]
    bands = synthetic.bands
    assert named == ["Mag1SummedChi2", *(f"{a}_{b}_Mag1StetsonL" for a, b in zip(bands[:-1], bands[1:], strict=True))]
    column = lazy.columns[f"{bands[0]}_{bands[1]}_Mag1StetsonL"]
    assert "within 0.5 d" in column.description
    assert lazy.columns[f"{bands[0]}_{bands[1]}_Mag1MeanColour"].unit == "mag"
    assert lazy.history[-1]["within_days"] == 0.5
    one = lazy.select("Mag1SummedChi2")
    assert set(columns_needed(one.chain.steps, one.schema.names)) == {"object_id", "band", "mjd", "Mag1", "dMag1"}
    assert one.compute(scheduler="threads")["Mag1SummedChi2"].null_count < lazy.compute(scheduler="threads").num_rows
    alone = compare_bands(synthetic.detections, bands=["J"], values=["Mag1"])
    assert alone.schema.names[4:] == ["Mag1SummedChi2", "Mag1SummedDof"]
    assert alone.compute(scheduler="threads")["Mag1SummedDof"].null_count == 0


def test_periods_are_statistics_like_others_and_lazy(synthetic: Collection) -> None:
    detections = synthetic.detections
    few = detections.on_leaves(detections.leaves[:1])
    with no_compute():
        one = variability(few, periodogram(shortest_days=5, longest_days=500), bands=["Ks"])
        all_bands = compare_bands(few, multiband_periodogram(shortest_days=5, longest_days=500))
    assert one.columns["Ks_Flux1Period"].unit == all_bands.columns["Flux1Period"].unit == "d"
    # Four epochs are too few for any period.
    assert one.compute(scheduler="sync")["Ks_Flux1Period"].null_count == one.compute(scheduler="sync").num_rows
    assert all_bands.compute(scheduler="sync")["Flux1Period"].null_count == one.compute(scheduler="sync").num_rows


def test_a_wrong_name_names_the_nearest(synthetic: Collection) -> None:
    detections = synthetic.detections
    with pytest.raises(ColumnError, match="did you mean 'Percentile50'"):
        variability(detections, ["Percentil50"])
    with pytest.raises(ColumnError, match="2 statistics are called 'Mean'"):
        variability(detections, ["Mean", Statistic("Mean", "own", np.mean)])
    with pytest.raises(ColumnError, match="2 statistics are called 'MeanColour'"):
        compare_bands(detections, ["MeanColour", "MeanColour"])
    with pytest.raises(ColumnError, match="no statistic 'StetsonK' across bands; did you mean 'StetsonL'"):
        compare_bands(detections, ["StetsonK"])
    with pytest.raises(ColumnError, match="no band 'L' among those compared"):
        compare_bands(detections, pairs=[("J", "L")])
    with pytest.raises(ColumnError, match="names no error column"):
        compare_bands(detections, values=["Class"])
    with pytest.raises(ValueError, match="0 d or more"):
        compare_bands(detections, within_days=-1)
    joined = join_bands(detections, values=["Mag1", "Class"], pick="first")
    with pytest.raises(ValueError, match="did you mean 'majority'"):
        where_class(joined, -1, rule="majorty")
    with pytest.raises(ColumnError, match="no class of band 'Q'"):
        where_class(joined, -1, rule="any", bands=["Q"])
    with pytest.raises(ColumnError, match="among the values of join_bands"):
        where_class(join_bands(detections, values=["Mag1"], pick="first"), -1, rule="any")
    assert list(CROSS_BAND) == ["MeanColour", "MedianColour", "SummedChi2", "SummedDof", "WelchStetsonI", "StetsonJ", "StetsonL"]


def test_class_rules_on_a_join_are_what_counting_gives(synthetic: Collection) -> None:
    joined = join_bands(synthetic.detections, values=["Class"], pick="first")
    table = joined.compute(scheduler="threads")
    classes = [table[f"{band}_Class"].to_pylist() for band in synthetic.bands]
    votes = [[vote for vote in one if vote is not None] for one in zip(*classes, strict=True)]
    expected = {
        "any": sum(-1 in one for one in votes),
        "all": sum(bool(one) and set(one) == {-1} for one in votes),
        "majority": sum(2 * one.count(-1) > len(one) for one in votes),
        "Ks": sum(vote == -1 for vote in classes[synthetic.bands.index("Ks")]),
    }
    for rule, count in expected.items():
        found = where_class(joined, -1, rule=rule)
        assert found.compute(scheduler="threads").num_rows == count, rule
        assert found.schema.names == joined.schema.names
    assert where_class(joined, -1, rule="any", bands=["J"]).compute(scheduler="threads").num_rows == classes[
        synthetic.bands.index("J")
    ].count(-1)


@pytest.mark.parametrize("pick", [*PICKS[:-1], "nearest_in_time(57000.5)"])
@pytest.mark.parametrize("how", ["inner", "outer"])
def test_every_choice_of_epoch_is_what_plain_python_chooses(synthetic: Collection, rows: pa.Table, pick: str, how: str) -> None:
    bands = ["J", "Ks"]
    found = join_bands(synthetic.detections, bands, values=["Mag1", "dMag1"], pick=pick, how=how).compute(scheduler="threads")
    table = {(row["object_id"]): row for row in found.to_pylist()}
    curves: dict[int, dict[str, list[dict[str, float]]]] = {}
    for row in rows.select(["object_id", "band", "mjd", "Mag1", "dMag1"]).to_pylist():
        curves.setdefault(row["object_id"], {}).setdefault(row["band"], []).append(row)
    kept = {star for star, of in curves.items() if how == "outer" or all(band in of for band in bands)}
    assert set(table) == kept
    for star in sorted(kept)[::7]:
        for band in bands:
            expected = chosen(curves[star].get(band, []), pick)
            got = table[star][f"{band}_Mag1"]
            assert got is None if expected is None else got == pytest.approx(expected, rel=1e-9), (star, band)


def chosen(points: list[dict[str, float]], pick: str) -> float | None:
    known = [p for p in points if p["Mag1"] is not None]
    if pick in ("first", "last"):
        return points[0 if pick == "first" else -1]["Mag1"] if points else None
    if pick == "brightest":
        return min((p["Mag1"] for p in known), default=None)
    if pick.startswith("nearest"):
        return min(points, key=lambda p: abs(p["mjd"] - 57000.5))["Mag1"] if points else None
    if pick == "weighted_mean":
        known = [p for p in known if p["dMag1"] is not None and p["dMag1"] > 0]
    if not known:
        return None
    values = np.array([p["Mag1"] for p in known])
    if pick == "weighted_mean":
        return float(np.average(values, weights=np.array([p["dMag1"] for p in known]) ** -2))
    return float(np.mean(values) if pick == "mean" else np.median(values))
