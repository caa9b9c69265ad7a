"""A cube on disk is the cube that was stacked, the same bytes whoever wrote it, whole or not there, and opens elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from astropy.io import fits
from distributed import LocalCluster

from scalable.cube.contract import check_cube, open_cube, raw_headers
from scalable.cube.stack import stack_images
from scalable.cube.write import write_beside, write_cube
from scalable.errors import StoreError
from scalable.survey.read import open_survey
from scalable.synthetic.images import ImageSpec, make_sources, write_images
from scalable.testing import no_compute

SPEC = ImageSpec(seed=8, bands=("g", "r"), epochs=2, size=96, stars=20, galaxies=10)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(SPEC, folder)
    return folder


def lazy(images: Path, monkeypatch: pytest.MonkeyPatch, per_task: int = 7) -> xr.Dataset:
    monkeypatch.setattr("scalable.cube.stack.MOST_OBJECTS", per_task)
    with dask.config.set(scheduler="synchronous"):
        return stack_images(open_survey(images / "images.yaml"), make_sources(SPEC), size=12)


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_written_is_what_was_stacked_and_xarray_alone_opens_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = lazy(images, monkeypatch)
    done: list[tuple[int, int]] = []
    with dask.config.set(scheduler="synchronous"):
        computed = cube.compute()
        path = write_cube(cube, tmp_path / "c.zarr", on_done=lambda *counts: done.append(counts))
    assert done == [(n, 5) for n in range(1, 6)]
    with no_compute():
        opened = open_cube(path)
    assert np.array_equal(opened["band"].values.tolist(), ["g", "r"])
    others = xr.open_zarr(path, consolidated=False)
    for found in (opened, others):
        assert set(map(str, found.variables)) == set(map(str, computed.variables))
        for name in map(str, computed.variables):
            ours, theirs = found[name].values, computed[name].values
            if theirs.dtype.kind == "O":
                assert ours.tolist() == theirs.tolist()
            else:
                assert np.array_equal(ours, theirs, equal_nan=theirs.dtype.kind == "f"), name
            assert found[name].dims == computed[name].dims
    assert set(opened.coords) == set(computed.coords)
    rows = [25, 3, 3, 11]
    assert np.array_equal(opened["image"].isel(object=rows).values, computed["image"].values[rows], equal_nan=True)
    assert sorted(os.listdir(tmp_path)) == ["c.zarr"]


def test_the_bytes_do_not_depend_on_threads(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = lazy(images, monkeypatch)
    digests = []
    for workers in (1, 2, 7):
        with dask.config.set(scheduler="threads", num_workers=workers):
            digests.append(digest(write_cube(cube, tmp_path / f"{workers}.zarr")))
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_bytes_do_not_depend_on_workers(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    cube = lazy(images, monkeypatch)
    with dask.config.set(scheduler="synchronous"):
        expected = digest(write_cube(cube, tmp_path / "here.zarr"))
    with (
        LocalCluster(workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        cluster.get_client(),
    ):
        assert digest(write_cube(cube, tmp_path / "there.zarr")) == expected


CHILD = """
import sys, time, dask
import scalable.cube.stack, scalable.cube.write as write
from scalable.synthetic.images import make_sources
from scalable.survey.read import open_survey
sys.path.insert(0, {tests!r})
from test_write_cube import SPEC
scalable.cube.stack.MOST_OBJECTS = 7
whole = write._write_part
def slow(part, building):
    time.sleep({pause})
    number = whole(part, building)
    print("done", number, flush=True)
    return number
write._write_part = slow
dask.config.set(scheduler="synchronous")
cube = scalable.cube.stack.stack_images(open_survey({survey!r}), make_sources(SPEC), size=12)
print("start", flush=True)
write.write_cube(cube, {path!r})
print("end", flush=True)
"""


def child(images: Path, path: Path, pause: float) -> subprocess.Popen[str]:
    code = CHILD.format(tests=str(Path(__file__).parent), survey=str(images / "images.yaml"), path=str(path), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def killed_after(images: Path, path: Path, lines: int, wait: float) -> list[str]:
    """Run a writer and kill it some time after it said so many lines."""
    process = child(images, path, 0.02)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(lines)]
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return said


def test_killed_and_run_again_the_bytes_are_the_same_and_what_was_done_stays(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.zarr"
    assert killed_after(images, path, 3, 0.0)[0] == "start"
    assert not path.exists()
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / ".building-c.zarr" / "parts").iterdir()}
    assert len(written) >= 2
    cube = lazy(images, monkeypatch)
    done: list[tuple[int, int]] = []
    with dask.config.set(scheduler="synchronous"):
        write_cube(cube, path, on_done=lambda *counts: done.append(counts))
        expected = digest(write_cube(cube, tmp_path / "d.zarr"))
    assert len(done) == 5 - len(written)
    assert digest(path) == expected
    assert sorted(os.listdir(tmp_path)) == ["c.zarr", "d.zarr"]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_many_moments_the_bytes_are_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    with dask.config.set(scheduler="synchronous"):
        expected = digest(write_cube(lazy(images, monkeypatch), tmp_path / "here.zarr"))
    for number in range(4):
        path = tmp_path / f"{number}.zarr"
        for _ in range(2):
            if not path.exists():
                killed_after(images, path, int(rng.integers(1, 5)), float(rng.uniform(0, 0.1)))
        if not path.exists():
            process = child(images, path, 0)
            assert process.communicate()[0].endswith("end\n")
        assert digest(path) == expected


@pytest.mark.long
def test_a_part_that_a_broken_machine_left_is_made_again_and_another_cube_starts_anew(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube, path, other = lazy(images, monkeypatch), tmp_path / "c.zarr", tmp_path / "e.zarr"

    def stop(*_: Any) -> None:
        raise InterruptedError

    with dask.config.set(scheduler="synchronous"):
        expected = digest(write_cube(cube, tmp_path / "d.zarr"))
        with monkeypatch.context() as patch:
            patch.setattr("scalable.cube.write._finish", stop)
            for place in (path, other):
                with pytest.raises(StoreError):
                    write_cube(cube, place)
        shard = tmp_path / ".building-c.zarr" / "cube" / "image" / "c" / "2" / "0" / "0" / "0" / "0"
        shard.write_bytes(bytes(shard.stat().st_size))
        done: list[tuple[int, int]] = []
        assert digest(write_cube(cube, path, on_done=lambda *counts: done.append(counts))) == expected
        assert done == [(5, 5)], "one shard of five is made again"
        write_cube(lazy(images, monkeypatch, per_task=10), other)
    assert len(list((other / "image" / "c").iterdir())) == 3


def test_a_writer_that_fails_leaves_nothing_at_the_path(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = lazy(images, monkeypatch)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with dask.config.set(scheduler="synchronous"), monkeypatch.context() as patch:
        patch.setattr("scalable.cube.write._write", full)
        with pytest.raises(StoreError, match=r"c\.zarr: cannot be written .*No space left.*run again"):
            write_cube(cube, tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_what_the_system_does_not_take_at_once_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, pieces: whole(descriptor, [b"".join(pieces)[:7]]))
    pieces = [bytes([n]) * (n % 5) for n in range(200)]
    assert write_beside(tmp_path / "a", iter(pieces)) == 400
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


def test_what_is_no_cube_or_is_there_already_is_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = lazy(images, monkeypatch)
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="is there already"):
        write_cube(cube, tmp_path / "there")
    with pytest.raises(StoreError, match="no cube is there"):
        open_cube(tmp_path / "nothing")
    with pytest.raises(StoreError, match="are no shards"):
        write_cube(cube.isel(object=slice(3, None)), tmp_path / "c")
    for broken, message in [
        (cube.drop_vars("state"), "no 'state'"),
        (cube.assign(image=cube["image"].transpose("band", ...)), "image has the dimensions"),
        (cube.assign(state=cube["state"].astype("float32")), "state holds float32"),
        (cube.assign_attrs(cube="{}"), "no cube of ours"),
        (cube.assign_attrs(cube=json.dumps({"format": 99})), "format 99, this version reads up to 1"),
        (cube.assign_attrs(number=3), "attribute number of the cube is int; attributes are text"),
        (cube.assign_coords(band=["g", "g"]), "must differ"),
        (cube.assign(psf_fwhm=cube["psf_fwhm"].assign_attrs(units="pix")), "psf_fwhm has the unit 'pix', 'arcsec' is needed"),
    ]:
        with pytest.raises(StoreError, match=message):
            check_cube(broken)
    assert check_cube(cube) is cube


def test_thirty_bands_go_from_fits_to_zarr_and_back_each_with_its_label(tmp_path: Path) -> None:
    bands = tuple(f"B{n:02d}" for n in range(30))
    spec = ImageSpec(
        seed=4, bands=bands, epochs=1, size=48, stars=6, galaxies=0, noise=0, defects=False, dither_pixels=0, rotation_deg=0
    )
    survey = open_survey(write_images(spec, tmp_path))
    sources = make_sources(spec)
    middle = pa.table({"object_id": [1], "ra": [spec.ra_deg], "dec": [spec.dec_deg]})
    with dask.config.set(scheduler="synchronous"):
        cube = open_cube(write_cube(stack_images(survey, middle, size=40), tmp_path / "c.zarr"))
    assert cube["band"].values.tolist() == list(bands)
    assert (np.diff(cube["wavelength"].values) > 0).all()
    light = cube["image"].isel(object=0, epoch=0).sum(("y", "x"))
    for n, band in enumerate(bands):
        name = cube["exposure_name"].values[int(cube["exposure"].values[0, n, 0])]
        assert name == f"images/{band}-000.fits"
        assert float(light[n]) <= sum(sources[f"flux_{band}"].to_pylist()) * 1.001
        y0, x0 = (int(cube[key].values[0, n, 0]) for key in ("y0", "x0"))
        pixels = fits.getdata(tmp_path / name, "SCI")[y0 : y0 + 40, x0 : x0 + 40]
        assert np.array_equal(cube["image"].values[0, n, 0], pixels)
        assert fits.Header.fromstring(raw_headers(cube, int(cube["exposure_source"][n]))[0])["FILTER"] == band


MEMORY = """
import sys, dask, numpy as np, pyarrow as pa
from pathlib import Path
from scalable.survey.read import open_survey
from scalable.cube.stack import stack_images
from scalable.cube.write import write_cube
count = int(sys.argv[2])
rng = np.random.default_rng(1)
ra, dec = 150 + rng.uniform(-.03, .03, count), 2.2 + rng.uniform(-.03, .03, count)
objects = pa.table({"object_id": np.arange(count), "ra": ra, "dec": dec})
with dask.config.set(scheduler="synchronous"):
    write_cube(stack_images(open_survey(sys.argv[1]), objects, size=48), sys.argv[3])
# Not the resource usage: that begins with the peak of the process that started this one.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_objects(tmp_path: Path) -> None:
    survey = write_images(ImageSpec(seed=1, bands=("g", "r", "z"), epochs=2, size=900, stars=50, galaxies=0), tmp_path)
    peaks = []
    for count in (2_000, 20_000):
        command = [sys.executable, "-c", MEMORY, str(survey), str(count), str(tmp_path / f"{count}.zarr")]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(found.stdout) / 1024)
    size = sum(path.stat().st_size for path in (tmp_path / "20000.zarr").rglob("*") if path.is_file()) / 2**20
    assert size > 500
    assert peaks[1] - peaks[0] < 60, peaks
