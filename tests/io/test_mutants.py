"""Damaged files of every format: each ends in an error that names the file, or in rows; never in a crash, a hang or a bomb.

Mutants are read in a forked process, which a crash ends and whose memory is limited. What a mutant's rows are is compared with
those of the whole file: only gzip has a checksum over all that it holds. Parquet has one on every page, if its writer wished so,
and HDF5 on a chunk, yet neither on the numbers that say what the pages and chunks are. FITS, text and VOTable have none that is
looked at, so that a flipped bit of a number in them is another number.
"""

from __future__ import annotations

import faulthandler
import gzip
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

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

from scalable.errors import InputError, ScalableError
from scalable.io.drivers import reader_for
from scalable.io.hdf5_child import blocks, limit_time
from scalable.io.hdf5_layout import find_table
from scalable.io.reader import Source

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
    try:
        found = rows(path, name, (100, 1 << 20)[seed % 2])
        found.validate(full=True)
    except ScalableError as error:
        return "refused" if str(path) in str(error) else f"names no file: {error}"
    except Exception as error:
        # Whatever the library raises, the process of the HDF5 reader turns into an error of the file.
        return "refused" if name == "hdf5" else f"{type(error).__name__}: {error}"
    return "same" if found.equals(whole) else "different"


def run(folder: Path, name: str, whole: pa.Table, seeds: range) -> dict[int, str]:
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
                        if name == "hdf5":
                            limit_time(SECONDS / 2)
                        print(" ".join(outcome(path, name, whole, seed).split()), file=said, flush=True)
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
        whole = rows(Path(folder) / "whole", name, 1 << 20)  # also compiles, which is not to be timed
        print(json.dumps(run(Path(folder), name, whole, range(first, stop))), flush=True)


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


def check(server: subprocess.Popen[str], folder: Path, name: str, seeds: range) -> Counter[str]:
    path = folder / "whole"
    FORMATS[name][1](path)
    whole = rows(path, name, 1 << 20)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([str(folder), name, seeds.start, seeds.stop]) + "\n")
    server.stdin.flush()
    found = {int(seed): word for seed, word in json.loads(server.stdout.readline()).items()}
    if name == "hdf5":
        crashed = [seed for seed, word in found.items() if word.startswith("ended with") and word != HANGS or seed % 100 == 0]
        print(f"{name}: {sum(found[seed].startswith('ended') for seed in crashed)} crashes")
        found |= {seed: in_its_process(folder / f"{seed}.h5", damage(path.read_bytes(), seed), whole) for seed in crashed}
    counts = Counter(found.values())
    print(f"{name}: {dict(counts)}")
    wrong = {seed: word for seed, word in found.items() if word not in ("same", "different", "refused")}
    assert not wrong
    assert counts["refused"] > 0
    if name == "fits.gz":
        assert counts["different"] == 0
    return counts


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
