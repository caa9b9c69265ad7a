"""Surveys and stores on an object store: a real S3 server on loopback, held against the same work on this machine."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from astropy.io.fits import BinTableHDU, Column, HDUList, PrimaryHDU
from catalog.surveys import Observation, detections, fingerprint, write_survey
from click.testing import CliRunner

from scalable.catalog import published
from scalable.catalog.append import append
from scalable.catalog.collection import open_collection
from scalable.catalog.ingest import find_inputs, ingest
from scalable.catalog.sql import sql
from scalable.cli.console import QUARANTINED
from scalable.cli.main import main
from scalable.errors import InputError, MissingInputError, StoreError, SurveyError
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.io.remote import HEAD_BYTES, Url, states
from scalable.survey.description import Survey
from scalable.survey.read import open_survey

moto = pytest.importorskip("moto.server", reason="needs an S3 server: pip install 'moto[server]'")
pytest.importorskip("s3fs", reason="needs the extra s3")

SECRET = "canary-wJalrXUtnFEMI"
ROWS = 100


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an empty S3 server, to which the environment points."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield s3fs.S3FileSystem(use_listings_cache=False)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"[:20]
    s3.mkdir(name)
    return name


@pytest.fixture(autouse=True)
def _in_this_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def observations(count: int = 6, *, without: int = -1) -> list[Observation]:
    rng = np.random.default_rng(5)
    ra, dec = rng.uniform(10.0, 12.0, ROWS), rng.uniform(-1.0, 1.0, ROWS)
    return [
        Observation(i, "J" if i % 2 else "Ks", 57000.0 + i, None if i == without else detections(np.arange(ROWS), ra, dec))
        for i in range(1, count + 1)
    ]


def moved(survey: Survey, s3: Any, bucket: str, folder: Path) -> Survey:
    """Return the same survey with its files in a bucket."""
    local = Path(survey.root)
    for path in [local / "index.csv", *sorted((local / "tables").glob("*"))]:
        s3.put_file(str(path), f"{bucket}/in/{path.relative_to(local).as_posix()}")
    folder.mkdir()
    text = (local / "survey.yaml").read_text().replace('"root": "."', f'"root": "s3://{bucket}/in/"')
    (folder / "survey.yaml").write_text(text)
    return open_survey(folder / "survey.yaml")


def leaves(version: Path) -> dict[str, str]:
    return {name: digest for name, digest in fingerprint(version).items() if "Npix=" in name}


def test_a_survey_in_a_bucket_gives_the_leaves_that_its_files_on_disk_give(s3: Any, bucket: str, tmp_path: Path) -> None:
    local = write_survey(tmp_path / "local", observations(), leaf_mb=0.03)
    remote = moved(local, s3, bucket, tmp_path / "remote")
    here, there = ingest(local, into=tmp_path / "a"), ingest(remote, into=tmp_path / "b")
    assert len(leaves(here.path)) > 4
    assert leaves(there.path) == leaves(here.path)
    assert there.observations.equals(here.observations)
    assert there.accounting["stored"] == 6 * ROWS


def test_a_missing_object_is_set_aside_and_the_others_are_stored(s3: Any, bucket: str, tmp_path: Path) -> None:
    remote = moved(write_survey(tmp_path / "local", observations(without=3)), s3, bucket, tmp_path / "remote")
    store = ingest(remote, into=tmp_path / "store")
    assert store.accounting["quarantined"] == 1
    assert store.accounting["stored"] == 5 * ROWS
    assert "3,tables/3-J.fits,tables/3-J.fits: no such object" in (store.path / "quarantine.csv").read_text()


def test_a_damaged_object_is_named_by_its_address_and_no_copy_is_left(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = moved(write_survey(tmp_path / "local", observations()), s3, bucket, tmp_path / "remote")
    s3.pipe_file(f"{bucket}/in/tables/2-Ks.fits", s3.cat_file(f"{bucket}/in/tables/2-Ks.fits")[:4000])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store = ingest(remote, into=tmp_path / "store")
    reason = (store.path / "quarantine.csv").read_text()
    assert "2,tables/2-Ks.fits," in reason
    assert "copy" not in reason
    assert not list(temporary.iterdir())
    assert not [path for path in tmp_path.rglob(".tmp-*")]


def test_files_in_a_bucket_are_found_by_a_glob(s3: Any, bucket: str, tmp_path: Path) -> None:
    survey = moved(write_survey(tmp_path / "local", observations()), s3, bucket, tmp_path / "remote")
    for name in ("tables/.hidden.fits", "tables/deep/er/9-J.fits", "tables/notes.txt", "other/7-J.fits"):
        s3.pipe_file(f"{bucket}/in/{name}", b"x")
    known = {"pattern": r"(?P<id>\d+)-(?P<band>\w+)\.", "mjd": {"value": 57000.0}}
    found = {}
    for glob in ("tables/*.fits", "tables/**/*.fits", "**/*-J.fits"):
        text = survey.model_dump(mode="json", by_alias=True) | {"observations": known, "files": {"glob": glob}}
        found[glob] = [source.name for source in find_inputs(Survey.model_validate(text)).sources]
    six = [f"tables/{o.id}-{o.band}.fits" for o in observations()]
    assert found["tables/*.fits"] == six
    assert found["tables/**/*.fits"] == [*six, "tables/deep/er/9-J.fits"]
    assert set(found["**/*-J.fits"]) == {*six[::2], "tables/deep/er/9-J.fits", "other/7-J.fits"}


def test_the_run_is_another_one_when_an_object_changes_and_else_the_same(s3: Any, bucket: str, tmp_path: Path) -> None:
    survey = moved(write_survey(tmp_path / "local", observations()), s3, bucket, tmp_path / "remote")
    first = find_inputs(survey)
    assert find_inputs(survey).run_id == first.run_id
    assert first.sizes == {s.path: (Path(tmp_path) / "local" / s.name).stat().st_size for s in first.sources}
    data = s3.cat_file(f"{bucket}/in/tables/2-Ks.fits")
    s3.pipe_file(f"{bucket}/in/tables/2-Ks.fits", data[:-1] + b"x")
    assert find_inputs(survey).run_id != first.run_id


def test_few_objects_and_many_are_asked_for_alike(s3: Any, bucket: str) -> None:
    urls = [f"s3://{bucket}/a/{number}" for number in range(9)]
    for url in urls[1:]:
        s3.pipe_file(url, url.encode())
    one_by_one = {k: v for url in urls for k, v in states([url]).items()}
    assert states(urls) == one_by_one
    assert list(one_by_one) == urls[1:]


@pytest.mark.parametrize("relative", ["../x.fits", "a/../../x.fits", "%2e%2e/x.fits", "/etc/passwd", "a::file:///etc/passwd"])
def test_nothing_outside_a_remote_root_is_read(relative: str, tmp_path: Path) -> None:
    survey = write_survey(tmp_path, observations(1)).model_copy(update={"root": "s3://bucket/in"})
    with pytest.raises(InputError, match="lies outside the survey's root s3://bucket/in"):
        survey.confined(relative)


@pytest.mark.parametrize(
    ("root", "message"),
    [("s3://key:secret@b/in", "environment"), ("file:///data", "plain path"), ("zip://a::s3://b/c.zip", "without ::")],
)
def test_a_root_with_credentials_or_of_this_machine_is_refused(root: str, message: str, tmp_path: Path) -> None:
    write_survey(tmp_path, observations(1))
    path = tmp_path / "survey.yaml"
    path.write_text(path.read_text().replace('"root": "."', f'"root": "{root}"'))
    with pytest.raises(SurveyError, match=message) as caught:
        open_survey(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"), [("s3://key:secret@b/store", "environment"), ("memory://store", "stores are written to s3://")]
)
def test_a_store_with_credentials_in_its_address_or_without_conditional_writes_is_refused(
    url: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        ingest(write_survey(tmp_path, observations(1)), into=url)
    assert "secret" not in str(caught.value)


def test_an_index_that_is_not_there_is_named_by_its_address(s3: Any, bucket: str, tmp_path: Path) -> None:
    survey = write_survey(tmp_path, observations(1)).model_copy(update={"root": f"s3://{bucket}/nowhere"})
    with pytest.raises(MissingInputError, match=f"s3://{bucket}/nowhere/index.csv: the observation index is not there"):
        find_inputs(survey)


class Cutting(SimpleHTTPRequestHandler):
    """A server that promises the whole of a file and sends the half of one."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        outputfile.write(data[: len(data) // 2] if "2-Ks" in self.path else data)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def test_a_cut_connection_sets_the_file_aside_and_any_server_of_fsspec_will_do(tmp_path: Path) -> None:
    local = write_survey(tmp_path / "local", observations(3))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Cutting, directory=local.root))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        remote = local.model_copy(update={"root": f"http://127.0.0.1:{server.server_port}"})
        store = ingest(remote, into=tmp_path / "store")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (store.accounting["quarantined"], store.accounting["stored"]) == (1, 2 * ROWS)
    reason = (store.folder / "quarantine.csv").read_text()
    assert "2,tables/2-Ks.fits," in reason
    assert "cannot be read" in reason


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, observations(1)).model_copy(update={"root": "http://127.0.0.1:9/in"})
    with pytest.raises(InputError, match="http://127.0.0.1:9/in/index.csv"):
        find_inputs(survey)


def content(s3: Any, url: str) -> dict[str, bytes]:
    """Return every object below a URL."""
    top = url.removeprefix("s3://")
    return {name.removeprefix(f"{top}/"): data for name, data in s3.cat(s3.find(top)).items()}


def test_a_published_version_is_the_local_one_file_by_file_and_the_same_input_again_sends_nothing(
    s3: Any, bucket: str, tmp_path: Path
) -> None:
    survey = write_survey(tmp_path / "in", observations())
    local = ingest(survey, into=tmp_path / "a")
    remote = ingest(survey, into=f"s3://{bucket}/store", work=tmp_path / "work")
    found = content(s3, f"s3://{bucket}/store")
    assert found.pop("current") == b"0001"
    del found["versions/0001.taken"]
    there = {name.removeprefix("versions/0001/"): data for name, data in found.items()}
    here = {path.relative_to(local.path).as_posix(): path.read_bytes() for path in local.path.rglob("*") if path.is_file()}
    assert set(there) == set(here)
    dated = {name for name in here if name.endswith("properties") or name == "manifest.json"}
    assert {n: d for n, d in there.items() if n not in dated} == {n: d for n, d in here.items() if n not in dated}
    for member in ("objects", "detections"):
        assert getattr(remote, member).compute().equals(getattr(local, member).compute())
    assert remote.observations.equals(local.observations)
    assert remote.rejected.equals(local.rejected)
    query = "SELECT band, count(*) AS n, avg(Flux) AS mean FROM detections GROUP BY band ORDER BY band"
    assert sql(remote, query).compute().equals(sql(local, query).compute())
    assert open_collection(f"s3://{bucket}/store/versions/0001").manifest == remote.manifest
    # Another machine, without a folder of its own, finds that nothing is to be done.
    before = content(s3, f"s3://{bucket}/store")
    assert ingest(survey, into=f"s3://{bucket}/store", work=tmp_path / "elsewhere").manifest == remote.manifest
    assert content(s3, f"s3://{bucket}/store") == before
    assert not (tmp_path / "elsewhere").exists()


def test_append_to_a_store_in_a_bucket_is_the_ingest_of_everything(s3: Any, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/store"
    ingest(write_survey(tmp_path / "in", observations(4)), into=url, work=tmp_path / "work")
    reader = open_collection(url)
    before = reader.detections.compute()
    survey = write_survey(tmp_path / "in", observations(6))
    # A machine that has not built the version before must fetch it.
    added = append(survey, into=url, work=tmp_path / "elsewhere")
    assert (added.path.name, added.accounting["stored"]) == ("0002", 6 * ROWS)
    assert append(survey, into=url, work=tmp_path / "work").manifest == added.manifest
    assert added.detections.compute().equals(ingest(survey, into=tmp_path / "all").detections.compute())
    assert reader.detections.compute().equals(before)


def check_whole(s3: Any, collection: Any) -> None:
    """Hold every object of a version against its manifest."""
    there = content(s3, str(collection.path))
    for entry in collection.manifest["files"]:
        assert hashlib.sha256(there[entry["path"]]).hexdigest() == entry["sha256"], entry["path"]


def test_of_two_writers_one_wins_and_the_other_is_told_and_can_run_again(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/store"
    ours, theirs = (write_survey(tmp_path / name, observations(count)) for name, count in (("ours", 2), ("theirs", 3)))
    original = published.send_files

    def overtaken(*arguments: Any) -> None:
        original(*arguments)
        monkeypatch.setattr(published, "send_files", original)
        ingest(theirs, into=url, work=tmp_path / "b")

    monkeypatch.setattr(published, "send_files", overtaken)
    with pytest.raises(StoreError, match=f"{url}: another writer has committed .* run again"):
        ingest(ours, into=url, work=tmp_path / "a")
    assert open_collection(url).accounting["files"] == 3
    check_whole(s3, open_collection(url))
    assert ingest(ours, into=url, work=tmp_path / "a").path.name == "0003"
    assert open_collection(url).accounting["files"] == 2


def test_a_process_that_was_overtaken_in_its_own_folder_writes_nothing(s3: Any, bucket: str, tmp_path: Path) -> None:
    url, work = f"s3://{bucket}/store", tmp_path / "work"
    late = published.published_store(Url(url), work)
    ingest(write_survey(tmp_path / "in", observations(2)), into=url, work=work)
    other = ingest(write_survey(tmp_path / "other", observations(3)), into=tmp_path / "local")
    before = content(s3, url)
    with pytest.raises(StoreError, match="another writer has committed"):
        late.commit(other.folder, lambda *_: None)
    assert content(s3, url) == before


@pytest.mark.parametrize("last", ["current", "observations.parquet"])
def test_a_writer_killed_before_the_pointer_disturbs_nobody_and_its_rerun_sends_what_is_missing(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    url = f"s3://{bucket}/store"
    ingest(write_survey(tmp_path / "in", observations(2)), into=url, work=tmp_path / "work")
    before = open_collection(url)
    survey = write_survey(tmp_path / "in", observations(3))
    sent: list[str] = []
    originals = {name: getattr(published, name) for name in ("send", "replace_pointer")}

    def counted(file: Path, there: Any) -> None:
        if there.name == last:
            raise KeyboardInterrupt
        originals["send"](file, there)
        sent.append(str(there))

    def pointed(there: Any, *rest: Any) -> bool:
        if there.name == last:
            raise KeyboardInterrupt
        return bool(originals["replace_pointer"](there, *rest))

    monkeypatch.setattr(published, "send", counted)
    monkeypatch.setattr(published, "replace_pointer", pointed)
    with pytest.raises(KeyboardInterrupt):
        append(survey, into=url, work=tmp_path / "work")
    assert open_collection(url) == before
    first, sent[:] = list(sent), []
    last = "nothing"
    after = append(survey, into=url, work=tmp_path / "work")
    assert (after.path.name, after.accounting["files"]) == ("0002", 3)
    assert set(first) & set(sent) <= {f"{after.path}/manifest.json"}
    assert {*first, *sent} == {
        f"{after.path}/{name}" for name in ["manifest.json", *(f["path"] for f in after.manifest["files"])]
    }


def counted_bytes(s3: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the size of every answer."""
    fetched: list[int] = []
    call = type(s3)._call_s3

    async def counting(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        answer = await call(self, method, *arguments, **named)
        if method == "get_object":
            fetched.append(answer["ContentLength"])
        return answer

    monkeypatch.setattr(type(s3), "_call_s3", counting)
    return fetched


@pytest.mark.parametrize("empty_bytes", [0, 600_000], ids=["headers in front", "headers behind an image"])
def test_headers_are_read_without_the_data_where_they_stand_in_front(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_bytes: int
) -> None:
    table = BinTableHDU.from_columns([Column("Flux", "D", array=np.arange(200_000.0))])
    HDUList([PrimaryHDU(np.zeros(empty_bytes, np.uint8) if empty_bytes else None), table]).writeto(tmp_path / "x.fits")
    s3.put_file(str(tmp_path / "x.fits"), f"{bucket}/x.fits")
    size, fetched = (tmp_path / "x.fits").stat().st_size, counted_bytes(s3, monkeypatch)
    reader = reader_for("fits")
    here, there = reader.describe(Source(str(tmp_path / "x.fits"))), reader.describe(Source(f"s3://{bucket}/x.fits"))
    assert here == there
    assert here.keywords == there.keywords
    assert sum(fetched) == (HEAD_BYTES + size if empty_bytes else HEAD_BYTES)


def test_a_projection_fetches_only_its_columns(s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    n = 20_000
    wide = {f"noise{i}": rng.normal(size=n) for i in range(10)}
    table = detections(np.arange(n), rng.uniform(10, 11, n), rng.uniform(0, 1, n), **wide)
    survey = write_survey(tmp_path / "in", [Observation(1, "J", 57000.0, table)])
    ingest(survey, into=f"s3://{bucket}/store", work=tmp_path / "work")
    fetched = counted_bytes(s3, monkeypatch)
    catalog = open_collection(f"s3://{bucket}/store").detections
    fetched.clear()
    everything = catalog.compute()
    whole = sum(fetched)
    fetched.clear()
    flux = catalog.select("Flux").compute()
    assert flux["Flux"].equals(everything["Flux"])
    assert whole > 10 * n * 7
    assert sum(fetched) < whole / 8
    assert len(fetched) <= 4 * len(catalog.leaves)


def test_the_command_line_runs_into_a_bucket_and_asks_there_and_no_secret_is_anywhere(
    s3: Any, bucket: str, tmp_path: Path
) -> None:
    remote = moved(write_survey(tmp_path / "local", observations(4, without=2)), s3, bucket, tmp_path / "remote")
    url, work = f"s3://{bucket}/store", tmp_path / "work"
    survey, terminal = str(tmp_path / "remote" / "survey.yaml"), CliRunner()
    ran = terminal.invoke(main, ["run", survey, "--into", url, "--work", str(work), "--scheduler", "threads"])
    assert ran.exit_code == QUARANTINED, ran.output
    asked = terminal.invoke(main, ["query", "SELECT count(*) AS n FROM detections", "--store", url])
    assert str(3 * ROWS) in asked.output
    again = terminal.invoke(main, ["run", survey, "--into", url, "--work", str(tmp_path / "elsewhere"), "--only", "products"])
    assert again.exit_code == QUARANTINED, again.output
    refused = terminal.invoke(main, ["clean", "--store", url])
    assert "lies on a server" in refused.output
    there = content(s3, url)
    assert "products/0001/objects_preview.fits" in there
    page = there["report.html"].decode()
    assert f'scalable.open_collection("{url}")' in page.replace("&quot;", '"')
    assert str(work) not in page
    everything = [*there.values(), ran.output, asked.output, again.output, refused.output]
    everything += [path.read_bytes() for folder in (work, tmp_path / "elsewhere") for path in folder.rglob("*") if path.is_file()]
    store = open_collection(url)
    lazy = store.detections.where("Flux > 3").select("Flux")
    everything += [pickle.dumps(dict(lazy.__dask_graph__())), pickle.dumps(remote), pickle.dumps(find_inputs(remote))]
    with pytest.raises(StoreError, match=f"{url}-nowhere: no committed version") as caught:
        open_collection(f"{url}-nowhere")
    everything += [str(caught.value), repr(store), repr(lazy)]
    assert len(everything) > 60
    assert not [data for data in everything if SECRET in (data if isinstance(data, str) else data.decode("latin-1"))]
