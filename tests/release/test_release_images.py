"""Images in a release are those of the cube, object by object, and the cube's pixels are those of the source images."""

from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner
from release.conftest import of_objects
from release.test_verify import seal

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.cli.main import main
from scalable.cube.contract import cutout_wcs, open_cube, raw_headers
from scalable.cube.stack import stack_images
from scalable.cube.write import write_cube
from scalable.errors import ExtraMissingError, SurveyError
from scalable.io.runs import read_json
from scalable.release.images import images_of, load_plugin, write_images
from scalable.release.manifest import write_sums
from scalable.release.read import open_release
from scalable.release.recipe import Recipe
from scalable.release.verify import verify_release
from scalable.release.write import plan_release, write_release
from scalable.survey.read import open_survey
from scalable.synthetic.images import add_images
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads"):
        yield


def with_images(**changes: object) -> Recipe:
    """Return a recipe with statistics, light curves and images."""
    recipe = of_objects()
    columns = {name: meaning.model_dump(exclude_defaults=True) for name, meaning in recipe.columns.items()}
    columns["image"] = {"reason": "shapes are learned from it", "serves": "colour"}
    split = {"order": 9, "guard_arcsec": 30, "folds": 4}
    return of_objects(**({"columns": columns, "images": True, "split": split} | changes))


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release-images")
    made = make_sky(SkySpec(seed=3, fields=1, stars_per_field=80, epochs=2, field_radius_deg=0.03))
    write_tables(made, folder)
    add_images(made, folder)
    return folder


@pytest.fixture(scope="module")
def store(sky: Path) -> Collection:
    survey = open_survey(sky / "survey.yaml")
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.05})})
    with dask.config.set(scheduler="threads"):
        return ingest(small, into=sky / "store")


@pytest.fixture(scope="module")
def cube(sky: Path, store: Collection) -> Path:
    """Cutouts of three objects in four."""
    objects = store.objects.select("object_id", "object_ra", "object_dec").compute()
    with dask.config.set(scheduler="synchronous"):
        lazy = stack_images(open_survey(sky / "survey.yaml"), objects.filter(np.asarray(objects["object_id"]) % 4 > 0), size=12)
        return write_cube(lazy, sky / "cube")


@pytest.fixture(scope="module")
def imaged(sky: Path, store: Collection, cube: Path) -> Path:
    with dask.config.set(scheduler="threads"):
        return write_release(store, with_images(), into=sky / "release", cube=cube)


@pytest.fixture
def spoiled(imaged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(imaged, tmp_path / "spoiled"))


def test_images_are_those_of_the_cube_object_by_object(imaged: Path, cube: Path) -> None:
    release, source = open_release(imaged), open_cube(cube)
    found = release.xarray()
    place = {number: row for row, number in enumerate(source["object_id"].values.tolist())}
    ids = found["object_id"].values.tolist()
    seen = [row for row, number in enumerate(ids) if number in place]
    assert 0 < len(seen) < len(ids)
    mine = source.isel(object=[place[ids[row]] for row in seen])
    for variable in images_of(cube).variables:
        values = found[variable.name].values
        expected = mine[variable.source].values
        assert values.dtype == expected.dtype
        assert np.array_equal(values[seen], expected, equal_nan=values.dtype.kind == "f"), variable.name
    rest = np.setdiff1d(np.arange(len(ids)), seen)
    assert np.all(np.isnan(found["image"].values[rest]))
    assert np.all(found["image_state"].values[rest] == 3)
    about = release.manifest["images"]
    shown = (found["image_exposure"].values >= 0).reshape(len(ids), -1).any(axis=1)
    assert (about["objects_with_image"], about["objects_without_image"]) == (shown.sum(), (~shown).sum())
    assert about["pixels"] == np.bincount(found["image_state"].values.ravel(), minlength=4).tolist()


def test_the_cube_comes_back_with_the_very_attributes_it_had(imaged: Path, cube: Path) -> None:
    back, source = open_release(imaged).cube(), open_cube(cube)
    assert back.attrs == source.attrs
    kept = [name for name in source.variables if name in back.variables]
    assert set(map(str, source.variables)) - set(map(str, kept)) <= {"unreadable"}
    for name in kept:
        assert back[name].attrs == source[name].attrs, name
        assert back[name].dims == source[name].dims, name
        if "object" not in source[name].dims:
            ours, theirs = back[name].values, source[name].values
            assert ours.tolist() == theirs.tolist() if theirs.dtype.kind in "OT" else np.array_equal(ours, theirs), name
    assert set(back.coords) == set(source.coords)
    seen = np.flatnonzero(source["exposure"].values[:, 0, 0] >= 0)
    for n in seen[:5].tolist():
        row = int(np.flatnonzero(back["object_id"].values == source["object_id"].values[n])[0])
        ours, theirs = (cutout_wcs(one, object=at, band=0, epoch=0) for one, at in ((back, row), (source, n)))
        assert ours.to_header() == theirs.to_header()
    assert len(seen) > 20


def test_every_header_of_every_source_image_is_kept(imaged: Path, sky: Path) -> None:
    back = open_release(imaged).cube()
    assert back.sizes["source"] > 0
    for source, name in enumerate(back["source_uri"].values.tolist()):
        whole = (sky / name).read_bytes()
        headers = raw_headers(back, source)
        assert headers[0] == whole[: len(headers[0])]
        assert all(header in whole for header in headers)
    with h5py.File(imaged / "provenance.h5") as file:
        kinds = file["sources/kind"].asstr()[()].tolist()
        assert kinds.count("image") == back.sizes["source"]
        group = file["headers"]
        base = int(file["cube"].attrs["first_source"])
        at = np.cumsum(group["length"][()]) - group["length"][()]
        for n in np.flatnonzero(group["source_id"][()] >= base).tolist():
            whole = (sky / str(back["source_uri"].values[group["source_id"][n] - base])).read_bytes()
            raw = group["blocks"][at[n] : at[n] + group["length"][n]].tobytes()
            assert whole[group["start"][n] : group["data_start"][n]] == raw


@pytest.mark.parametrize("level", [3, pytest.param(4, marks=pytest.mark.long)])
def test_a_release_with_images_passes(imaged: Path, sky: Path, level: int) -> None:
    found = verify_release(imaged, level=level, sources=sky)
    assert found.passed, found
    assert {(3, "sampled images")} < {(level, name) for level, name, _ in found.checked}
    assert dict((name, count) for _, name, count in found.checked)["sampled images"] > 30


def swap_images(release: Path) -> str:
    """Give two objects each other's images."""
    path = release / str(read_json(release / "release.json")["shards"][0]["path"])
    with h5py.File(path, "r+") as file:
        seen = np.flatnonzero((file["image_exposure"][()] >= 0).all(axis=(1, 2)))[:2].tolist()
        for name in ("image", "image_ivar", "image_mask", "image_state"):
            values = file[name][seen]
            file[name][seen] = values[::-1].copy()
        return f"object {file['object_id'][seen[0]]}"


def change_an_attribute(release: Path) -> str:
    path = release / str(read_json(release / "release.json")["shards"][0]["path"])
    with h5py.File(path, "r+") as file:
        file["image"].attrs.modify("cube.units", "Jy")
    return "image: attribute cube.units"


def change_a_pixel(release: Path) -> str:
    path = release / str(read_json(release / "release.json")["shards"][0]["path"])
    with h5py.File(path, "r+") as file:
        file["image"][1, 0, 0, 2, 3] += 1.0 if np.isfinite(file["image"][1, 0, 0, 2, 3]) else 0.0
        file["image_mask"][1, 0, 0, 2, 3] ^= 1
        return f"object {file['object_id'][1]}"


@pytest.mark.parametrize("change", [swap_images, change_an_attribute, change_a_pixel], ids=lambda change: change.__name__)
def test_a_change_of_the_images_is_found_and_named(spoiled: Path, change: Callable[[Path], str]) -> None:
    named = change(spoiled)
    assert {finding.level for finding in verify_release(spoiled, level=1).findings} == {1}
    write_sums(spoiled)
    assert verify_release(spoiled, level=1).passed
    found = verify_release(spoiled, level=2)
    assert any(named in f"{finding.where}: {finding.problem}" for finding in found.findings), found


@pytest.mark.long
@pytest.mark.parametrize("level", [3, 4])
def test_images_that_were_swapped_and_sealed_again_are_found_in_the_source_images(spoiled: Path, sky: Path, level: int) -> None:
    named = swap_images(spoiled)
    seal(spoiled)
    assert verify_release(spoiled, level=2).passed
    found = verify_release(spoiled, level=level, sources=sky, samples=1000 if level == 3 else 1)
    problems = [finding.problem for finding in found.findings if finding.level == level]
    assert any(problem.startswith(f"{named}: image") for problem in problems), found
    assert {finding.level for finding in found.findings} <= {3, level}


def test_a_narrow_guard_band_a_missing_cube_and_a_missing_reason_are_refused(
    store: Collection, cube: Path, tmp_path: Path
) -> None:
    narrow = with_images(split={"order": 11, "guard_arcsec": 1})
    with pytest.raises(SurveyError, match=r"guard_arcsec: 1.0 arcsec let cutouts .* share pixels; take \d"):
        write_release(store, narrow, into=tmp_path / "r", cube=cube)
    with pytest.raises(SurveyError, match="give the cube that write_cube wrote"):
        write_release(store, with_images(), into=tmp_path / "r")
    columns = {name: m for name, m in with_images().columns.items() if name != "image"}
    with pytest.raises(SurveyError, match=r'image: \{reason: "…", serves: "…"\}'):
        write_release(store, with_images().model_copy(update={"columns": columns}), into=tmp_path / "r", cube=cube)
    assert not list(tmp_path.iterdir())


def test_the_datasheet_says_what_the_images_are(imaged: Path) -> None:
    answer = read_json(imaged / "datasheet.json")["composition_instances"]["answer"]
    about = read_json(imaged / "release.json")["images"]
    assert f"images of {about['objects_with_image']} of them in 5 bands, 12 x 12 pixels" in answer
    assert "every pixel is the very one of the source" in answer
    measured = about["pixels"][0] / sum(about["pixels"])
    assert f"{measured:.1%} measured" in answer


def test_images_alone_can_be_released(store: Collection, cube: Path, tmp_path: Path) -> None:
    values = with_images().model_dump(mode="json", exclude_defaults=True)
    for name in ("join", "statistics", "light_curves", "flags", "select", "outliers"):
        values.pop(name, None)
    recipe = Recipe.model_validate(values)
    assert "image_mask" in plan_release(store, recipe, cube=cube)["images"]
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True)))
    command = ["release", store.folder, tmp_path / "release.yaml", "--cube", cube, "--into", tmp_path / "r"]
    command += ["--scheduler", "threads"]
    made = CliRunner().invoke(main, [str(word) for word in command])
    assert made.exit_code == 0, made.output
    release = open_release(tmp_path / "r")
    assert release.rows == store.accounting["objects"]
    found = CliRunner().invoke(main, ["verify", str(tmp_path / "r"), "--scheduler", "threads"])
    assert found.exit_code == 0, found.output
    assert release.columns == []
    assert set(json.loads(json.dumps(release.manifest["coverage"]))) == {"rows", "light curves", "images"}


def test_readers_give_images(imaged: Path) -> None:
    release = open_release(imaged)
    assert "image" not in release.numpy()
    images = release.numpy(["object_id", "image"])
    blocks = list(release.blocks(["object_id", "image"], seed=2))
    ids = np.concatenate([block["object_id"] for block in blocks])
    order = np.argsort(images["object_id"])
    again = np.concatenate([block["image"] for block in blocks])[np.argsort(ids)]
    np.testing.assert_array_equal(again, images["image"][order])
    shard = imaged / release.manifest["shards"][0]["path"]
    with h5py.File(shard) as file:
        assert len({dataset.shape[0] for dataset in file.values()}) == 1
        rows = len(file["object_id"])
    with xr.open_dataset(shard, engine="h5netcdf", phony_dims="access") as opened:
        np.testing.assert_array_equal(opened["image"].values, release.xarray()["image"].values[:rows])


def test_pixels_that_were_carried_over_are_the_same_pixels(
    store: Collection, cube: Path, imaged: Path, sky: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hdf5plugin")
    write_release(store, with_images(codec="carry"), into=tmp_path / "r", cube=cube)
    carried, packed = (open_release(path).xarray() for path in (tmp_path / "r", imaged))
    for name in ("image", "image_ivar", "image_mask", "image_state"):
        np.testing.assert_array_equal(carried[name].values, packed[name].values)
    found = verify_release(tmp_path / "r", level=3, sources=sky)
    assert found.passed, found
    with h5py.File(tmp_path / "r" / str(read_json(tmp_path / "r" / "release.json")["shards"][0]["path"])) as file:
        assert file["image"].id.get_create_plist().get_filter(0)[0] == 32001


def test_without_the_plugin_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin({"recipe": {"codec": "deflate"}})
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(ExtraMissingError, match=r"pip install 'scalable-sky\[hdf5\]'"):
        load_plugin({"recipe": {"codec": "carry"}})


@pytest.mark.long
def test_a_task_holds_a_few_blocks_of_pixels_however_many_objects_there_are(
    sky: Path, store: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = store.objects.select("object_id", "object_ra", "object_dec").compute()
    path = write_cube(stack_images(open_survey(sky / "survey.yaml"), objects, size=64), tmp_path / "cube")
    monkeypatch.setattr("scalable.release.images.BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr("scalable.release.images.CHUNK_BYTES", 1 << 18)
    images, ids = images_of(path), objects["object_id"].to_numpy()
    whole = sum(one.row_bytes for one in images.variables) * len(ids)
    peaks = []
    for some in (ids[:20], ids):
        with h5py.File(tmp_path / f"{len(some)}.h5", "w") as file:
            tracemalloc.start()
            write_images(file, images, some, {})
            images.digest(some)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert whole > 16 << 20
    assert max(peaks) < 6 << 20
    assert peaks[1] < 1.3 * peaks[0]
