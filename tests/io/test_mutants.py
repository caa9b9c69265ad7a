"""Damaged files of every format: each ends in an error that names the file, or in rows; never in a crash, a hang or a bomb.

Damaged images, beside a whole one, end in an entry of the quarantine, in a count of what could not be read, or in the pixels that
astropy finds in the same bytes; the whole one's pixels stay as they are.

Mutants are read in a forked process, which a crash ends and whose memory is limited. What a mutant's rows are is compared with
those of the whole file: only gzip has a checksum over all that it holds. Parquet has one on every page, if its writer wished so,
and HDF5 on a chunk, yet neither on the numbers that say what the pages and chunks are. FITS, text and VOTable have none that is
looked at, so that a flipped bit of a number in them is another number.
"""

from __future__ import annotations

import bz2
import faulthandler
import gzip
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_delimited
import test_fits_ascii
import test_fits_table
import test_fits_tiles
import test_hdf5_table
import test_parquet_table
import test_votable
import xarray as xr
from astropy.io import fits
from numpy.typing import NDArray

from scalable.cube.contract import raw_headers
from scalable.cube.stack import stack_images
from scalable.errors import InputError, ScalableError
from scalable.io.bzip2 import BZIP2
from scalable.io.drivers import reader_for
from scalable.io.hdf5_child import blocks, limit_time
from scalable.io.hdf5_layout import find_table
from scalable.io.reader import Source
from scalable.io.stream import GZIP
from scalable.kernels.stack import PixelState
from scalable.survey.read import open_survey
from scalable.synthetic.images import ImageSpec, write_images

Pixels = NDArray[Any]

SECONDS = 10
ROOM = 1 << 30
HANGS = f"ended with -{signal.SIGALRM:d}"
TELLING = b"0123456789PQXADE-+.'\",#[]{}:&*!<>/\n "


def delimited(path: Path, mark: str) -> None:
    path.write_text(f"a{mark}b{mark}c\n" + "".join(f'{n}{mark}"x {n}"{mark}{n / 3}\n' for n in range(30)))


def compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(test_fits_table.many_kinds(path, 20).read_bytes()))


def parquet(path: Path) -> None:
    pq.write_table(test_parquet_table.many_kinds(40), path, compression="snappy", write_page_checksum=True)


FORMATS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "fits": ("fits", lambda path: test_fits_table.many_kinds(path, 20)),
    "ascii-fits": ("fits", lambda path: test_fits_ascii.generated(path, 20)),
    "tiled-fits": ("fits", test_fits_tiles.put),
    "fits.gz": ("fits", compressed),
    "tabledata": ("votable", lambda path: test_votable.write(path, test_votable.many_kinds(), "tabledata")),
    "binary2": ("votable", lambda path: test_votable.write(path, test_votable.many_kinds(), "binary2")),
    "csv": ("csv", lambda path: delimited(path, ",")),
    "text": ("text", lambda path: delimited(path, "  ")),
    "ecsv": ("ecsv", lambda path: test_delimited.many_kinds().write(path, format="ascii.ecsv")),
    "parquet": ("parquet", parquet),
    "hdf5": ("hdf5", lambda path: test_hdf5_table.many_kinds(path, 20)),
}


def source(path: Path, name: str) -> Source:
    return Source(str(path), 2 if name in ("fits", "fits.gz") else 1)


def rows(path: Path, name: str, block_bytes: int) -> pa.Table:
    """Read all there is; HDF5 as the process of its reader does it, without that process, which costs more than the reading."""
    if name == "hdf5":
        with path.open("rb") as raw, h5py.File(raw, "r") as file:
            return pa.Table.from_batches(blocks(find_table(file, ""), block_bytes))
    reader = reader_for(FORMATS[name][0])
    reader.describe(source(path, name))
    return pa.concat_tables(reader.scan(source(path, name), block_bytes=block_bytes, digest=hashlib.sha256()))


def damage(whole: bytes, seed: int) -> bytes:
    """Flip bits, put in characters that mean something, or cut; mostly where there is something to damage."""
    rng = np.random.default_rng(seed)
    raw = bytearray(whole)
    inked = np.flatnonzero(~np.isin(np.frombuffer(whole, np.uint8), (0, 32)))
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.choice(inked)) if rng.random() < 0.7 else int(rng.integers(0, len(raw)))
        raw[at] = TELLING[int(rng.integers(0, len(TELLING)))] if rng.random() < 0.4 else raw[at] ^ 1 << int(rng.integers(0, 8))
    if rng.random() < 0.15:
        del raw[int(rng.integers(0, len(raw))) :]
    return bytes(raw)


def outcome(path: Path, name: str, whole: pa.Table, seed: int) -> str:
    if name == "hdf5":
        limit_time(SECONDS / 2)
    try:
        found = rows(path, name, (100, 1 << 20)[seed % 2])
        found.validate(full=True)
    except ScalableError as error:
        return "refused" if str(path) in str(error) else f"names no file: {error}"
    except Exception as error:
        # Whatever the library raises, the process of the HDF5 reader turns into an error of the file.
        return "refused" if name == "hdf5" else f"{type(error).__name__}: {error}"
    return "same" if found.equals(whole) else "different"


IMAGES: dict[str, Callable[[bytes], bytes]] = {
    "plain-image": lambda raw: raw,
    "scaled-image": lambda raw: rewritten(raw, scaled),
    "rice-image": lambda raw: rewritten(raw, lambda hdu: tiled(hdu, "RICE_1")),
    "gzip2-image": lambda raw: rewritten(raw, lambda hdu: tiled(hdu, "GZIP_2", "f4")),
    "plio-image": lambda raw: rewritten(raw, lambda hdu: tiled(hdu, "PLIO_1", "i2")),
    "quantized-image": lambda raw: rewritten(raw, lambda hdu: tiled(hdu, "RICE_1", "f4")),
    "hcompress-image": lambda raw: rewritten(raw, lambda hdu: tiled(hdu, "HCOMPRESS_1", "f4")),
    "image.gz": gzip.compress,
    "image.bz2": bz2.compress,
}


def rewritten(raw: bytes, change: Callable[[fits.ImageHDU], fits.FitsHDU]) -> bytes:
    """Return a file of images with another one in the place of its first."""
    with fits.HDUList.fromstring(raw) as file:
        changed = io.BytesIO()
        fits.HDUList([file[0].copy(), change(file["SCI"]), file["MASK"].copy()]).writeto(changed)
    return changed.getvalue()


def scaled(hdu: fits.ImageHDU) -> fits.ImageHDU:
    stored = np.clip(np.rint(hdu.data * 8), -20_000, 20_000).astype(np.int16)
    new = fits.ImageHDU(stored, header=hdu.header)
    new.header.update({"BSCALE": 0.125, "BZERO": 3.0, "BLANK": 7})
    return new


def tiled(hdu: fits.ImageHDU, method: str, dtype: str = "i4") -> fits.CompImageHDU:
    pixels = hdu.data if dtype == "f4" else np.rint(hdu.data).clip(0, 9999).astype(dtype)
    return fits.CompImageHDU(pixels, header=hdu.header, compression_type=method, tile_shape=(16, 48))


def put_images(folder: Path, name: str) -> None:
    """Write a whole image, and a survey of it and of the mutant that will lie beside it."""
    spec = ImageSpec(seed=3, bands=("g",), epochs=1, size=48, stars=6, galaxies=2)
    write_images(spec, folder / "plain")
    raw = IMAGES[name]((folder / "plain" / "images" / "g-000.fits").read_bytes())
    (folder / "whole").write_bytes(raw)
    (folder / "index.csv").write_text("name\nwhole\nmutant\n")
    (folder / "images.yaml").write_text(
        "survey: mutants\nroot: .\nbands: [g]\nimages: {index: index.csv, path: '{name}', band: {value: g}, hdu: [SCI], "
        "mask: {hdu: MASK}, mjd: {keyword: MJD-OBS}, psf_fwhm: {keyword: FWHM}}\n"
    )


def astropys(path: Path, hdu: int, window: tuple[slice, slice]) -> Pixels | None:
    """Return what astropy makes of a window of an image, or None where it raises."""
    try:
        with fits.open(path, memmap=False) as file:
            section = file[hdu].section
            return np.asarray(section[(*[0] * (len(section.shape) - 2), *window)])
    except Exception:
        return None


def image_judge(folder: Path) -> Callable[[Path, int], str]:
    """Return what stacks the whole image and a mutant, and says what became of the mutant."""
    survey = open_survey(folder / "images.yaml")
    # The second leaves the image.
    objects = pa.table({"object_id": [1, 2], "ra": [150.0, 150.0 + 6 / 3600], "dec": [2.2, 2.2 - 3 / 3600]})

    def whole(window: tuple[slice, slice]) -> Pixels | None:
        return astropys(folder / "whole", 1, window)

    def judge(path: Path, seed: int) -> str:
        try:
            with dask.config.set(scheduler="synchronous"):
                cube = stack_images(survey, objects, size=14).compute()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        names = [str(name) for name in cube["exposure_name"].values]
        if "whole" not in names or len(windows(cube, names.index("whole"), whole)) != 2:
            return "the whole image suffers"
        for entry in json.loads(cube.attrs["quarantine"]):
            held = "mutant" in entry["reason"] and "memory" not in entry["reason"] and "allocate" not in entry["reason"]
            return "refused" if held else f"refused in vain: {entry}"
        if cube["unreadable"].values.any():
            return "unreadable"
        number = names.index("mutant")
        source = int(cube["exposure_source"][number])
        raw = path.read_bytes()
        if not raw.startswith((GZIP, BZIP2)) and not all(header in raw for header in raw_headers(cube, source)):
            return "other headers"
        if all(windows(cube, number, whole)):
            return "same"
        hdu = int(cube["exposure_hdu"][number])
        found = windows(cube, number, lambda window: astropys(path, hdu, window))
        return "different" if all(found) else "pixels that astropy does not find"

    return judge


def windows(cube: xr.Dataset, number: int, read: Callable[[tuple[slice, slice]], Pixels | None]) -> list[bool]:
    """Return of each window of an exposure whether it holds the pixels that are read from an image, and NaN beside it."""
    found = []
    for place in map(tuple, np.argwhere(cube["exposure"].values == number)):
        image, state = cube["image"].values[place], cube["state"].values[place]
        inside = state != PixelState.OUTSIDE
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        if len(rows) == 0:
            found.append(bool(np.isnan(image).all()))
            continue
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        y0, x0 = (int(cube[name].values[place]) for name in ("y0", "x0"))
        theirs = read((slice(window[0].start + y0, window[0].stop + y0), slice(window[1].start + x0, window[1].stop + x0)))
        same = theirs is not None and np.array_equal(image[window], theirs, equal_nan=True)
        found.append(same and bool(np.isnan(image[~inside]).all()))
    return found


def judge_of(folder: Path, name: str) -> Callable[[Path, int], str]:
    """Return what says what became of a mutant of a format; also compiles, which is not to be timed."""
    if name in IMAGES:
        judge = image_judge(folder)
        (folder / "mutant").write_bytes((folder / "whole").read_bytes())
        assert judge(folder / "mutant", 0) == "same"
        return judge
    whole = rows(folder / "whole", name, 1 << 20)
    return lambda path, seed: outcome(path, name, whole, seed)


def run(folder: Path, judge: Callable[[Path, int], str], seeds: range) -> dict[int, str]:
    """Return the outcome of each mutant, read in a process that is forked again after a crash."""
    raw, log, path = (folder / "whole").read_bytes(), folder / "log", folder / "mutant"
    found: dict[int, str] = {}
    while len(found) < len(seeds):
        todo = seeds[len(found) :]
        if (process := os.fork()) == 0:
            with log.open("w") as said:
                try:
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    faulthandler.disable()  # A crash is an outcome here, which the parent tells.
                    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
                    for seed in todo:
                        path.write_bytes(damage(raw, seed))
                        print(seed, end=" ", file=said, flush=True)
                        signal.setitimer(signal.ITIMER_REAL, SECONDS)
                        print(" ".join(judge(path, seed).split()), file=said, flush=True)
                    os._exit(0)
                except BaseException as error:
                    print(todo[0], repr(error), file=said, flush=True)
                finally:
                    os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        for line in log.read_text().splitlines():
            seed, _, word = line.partition(" ")
            found[int(seed)] = word or f"ended with {status}"
    return found


def in_its_process(path: Path, raw: bytes, whole: pa.Table) -> str:
    """Read a mutant as a user does: where the library crashes, it must be an error of the file."""
    path.write_bytes(raw)
    try:
        found = pa.concat_tables(reader_for("hdf5").scan(Source(str(path))))
    except InputError as error:
        return "refused" if str(error).startswith(f"{path}: ") else f"names no file: {error}"
    return "same" if found.equals(whole) else "different"


def serve() -> None:
    """Answer each line on standard input: a folder with the whole file, its format, the first seed and the one after the last."""
    for line in sys.stdin:
        folder, name, first, stop = json.loads(line)
        print(json.dumps(run(Path(folder), judge_of(Path(folder), name), range(first, stop))), flush=True)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A fresh process to fork from: one in which a cluster has run may not survive a fork."""
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", "import test_mutants; test_mutants.serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=here,
    ) as process:
        yield process


def ask(server: subprocess.Popen[str], folder: Path, name: str, seeds: range) -> dict[int, str]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([str(folder), name, seeds.start, seeds.stop]) + "\n")
    server.stdin.flush()
    return {int(seed): word for seed, word in json.loads(server.stdout.readline()).items()}


def counted(name: str, found: dict[int, str], known: tuple[str, ...]) -> Counter[str]:
    counts = Counter(found.values())
    print(f"{name}: {dict(counts)}")
    assert not {seed: word for seed, word in found.items() if word not in known}
    return counts


def check_images(server: subprocess.Popen[str], folder: Path, name: str, seeds: range) -> Counter[str]:
    put_images(folder, name)
    counts = counted(name, ask(server, folder, name, seeds), ("same", "different", "refused", "unreadable"))
    if name in ("image.gz", "image.bz2"):
        assert counts["different"] == 0
    return counts


def check(server: subprocess.Popen[str], folder: Path, name: str, seeds: range) -> None:
    path = folder / "whole"
    FORMATS[name][1](path)
    whole = rows(path, name, 1 << 20)
    found = ask(server, folder, name, seeds)
    if name == "hdf5":
        crashed = [seed for seed, word in found.items() if word.startswith("ended with") and word != HANGS or seed % 100 == 0]
        print(f"{name}: {sum(found[seed].startswith('ended') for seed in crashed)} crashes")
        found |= {seed: in_its_process(folder / f"{seed}.h5", damage(path.read_bytes(), seed), whole) for seed in crashed}
    counts = counted(name, found, ("same", "different", "refused"))
    assert counts["refused"] > 0
    if name == "fits.gz":
        assert counts["different"] == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_ends_in_rows_or_in_an_error_that_names_it(
    server: subprocess.Popen[str], tmp_path: Path, name: str
) -> None:
    check(server, tmp_path, name, range(60))


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files_end_in_rows_or_in_an_error_that_names_them(
    server: subprocess.Popen[str], tmp_path: Path, name: str
) -> None:
    check(server, tmp_path, name, range(60, 310))


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "hcompress-image"])  # that has a process for every file
def test_a_damaged_image_is_set_aside_or_gives_the_pixels_that_its_bytes_hold(
    server: subprocess.Popen[str], tmp_path: Path, name: str
) -> None:
    check_images(server, tmp_path, name, range(4))


@pytest.mark.long
@pytest.mark.parametrize("name", IMAGES)
def test_many_damaged_images_are_set_aside_or_give_the_pixels_that_their_bytes_hold(
    server: subprocess.Popen[str], tmp_path: Path, name: str
) -> None:
    counts = check_images(server, tmp_path, name, range(4, 104 if name == "hcompress-image" else 504))
    assert counts["refused"] > 0
