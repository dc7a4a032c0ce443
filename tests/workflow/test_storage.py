"""The same DAG with its files in a bucket, and in shards; moto's server on loopback is the storage."""

import csv
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from planted import SECRETS, names_in, told
from shielded_recrl.dialogue import make, prepare
from shielded_recrl.dialogue.settings import DialogueWorldSettings
from shielded_recrl.storage import look_for_folders_anew

pytestmark = pytest.mark.slow

STEAM = {"study": [{"dataset": "steam", "variants": ["shielded"], "seeds": [1]}]}
SHARDS = 2
SHARED = STEAM | {"resources": {"shards": SHARDS}}
KEYS = ("SNAKEMAKE_STORAGE_S3_ACCESS_KEY", "SNAKEMAKE_STORAGE_S3_SECRET_KEY")
PROFILE = ("--profile", "profiles/s3")
DEAD = "http://127.0.0.1:9"
OF_THE_MACHINE = {"seconds", "tokens_per_second", "memory_mb", "peak_memory_mb"}


@dataclass(frozen=True)
class Bucket:
    """A bucket of the server."""

    name: str
    endpoint: str
    client: Any

    def files(self) -> dict[str, bytes]:
        """Key -> bytes of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key: self.read(key) for key in keys}

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """An empty bucket, and the environment in which `profiles/s3` finds it."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        "127.0.0.1", port=0, verbose=False
    )
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    settings = {
        "S3_BUCKET": "study",
        "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": endpoint,
        "SNAKEMAKE_STORAGE_S3_REGION": "us-east-1",
        **{name: SECRETS[name] for name in KEYS},
    }
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=SECRETS[KEYS[0]],
        aws_secret_access_key=SECRETS[KEYS[1]],
    )
    client.create_bucket(Bucket="study")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        # A line for each of thousands of requests.
        environment.setattr(logging.getLogger("werkzeug"), "disabled", True)
        yield Bucket("study", endpoint, client)
    client.close()
    server.stop()


@pytest.fixture(scope="module")
def stored(untouched, bucket, tmp_path_factory):
    """A copy whose results went into the bucket, its long stages in shards, and what Snakemake said.

    Where a byte differs from the local run, the file tells which of the two did it: no job of data,
    ranker and explainer has shards.
    """
    copy = untouched.pristine(tmp_path_factory.mktemp("stored") / "copy")
    done = copy.run(*PROFILE, changes=SHARED)
    return copy, done.stdout + done.stderr


def rows(table: bytes) -> list[dict[str, str]]:
    """The rows of steam, without what was measured of the machine."""
    every = csv.DictReader(io.StringIO(table.decode()))
    return [without_times(row) for row in every if row["dataset"] == "steam"]


def without_times(value: Any) -> Any:
    """JSON without what a rerun on the same machine may change."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in OF_THE_MACHINE}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def comparable(name: str, content: bytes) -> Any:
    """The bytes of a file; of logs and summaries of training what is not measured."""
    if name.endswith(("train.jsonl", "summary.json")):
        lines = content.splitlines() if name.endswith("jsonl") else [content]
        return [without_times(json.loads(line)) for line in lines]
    return content


def test_table_and_artefacts_are_those_of_the_local_run(stored, bucket, tiny):
    files = bucket.files()
    table = "results/aggregate_results.csv"
    (row,), (own,) = rows(files[table]), rows((tiny.folder / table).read_bytes())
    assert row.keys() == own.keys()
    assert {name: (row[name], own[name]) for name in row if row[name] != own[name]} == {}
    local = {
        path.relative_to(tiny.folder).as_posix(): path.read_bytes()
        for stage in ("data", "ranker", "explainer", "shield", "rl", "audit")
        for path in (tiny.folder / f"results/{stage}/steam").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert len(local) > 30
    assert local.keys() <= files.keys()
    differing = [
        name
        for name, content in local.items()
        if comparable(name, files[name]) != comparable(name, content)
    ]
    assert differing == []


def test_every_shard_had_its_job_and_what_it_left_is_gone(stored, bucket):
    files = bucket.files()
    jobs, worked = defaultdict(set), 0
    for name, content in files.items():
        if match := re.fullmatch(r"results/logs/(\w+)/steam/.+/(.+)/shard-(\d)-of-2\.log", name):
            stage, parts, shard = match.groups()
            jobs[stage, parts.partition("-")[0]].add(int(shard))
            last = content.decode().splitlines()[-1]
            worked += stage == "shield" and int(last.split(": ")[1].split(" of ")[0]) > 0
    stages = [("audit", "answers"), ("rl", "texts"), ("shield", "moments"), ("shield", "states")]
    assert jobs == {key: set(range(SHARDS)) for key in stages}
    assert worked > SHARDS
    kept = {name for name in files if not re.match(r"results/(logs|benchmarks)/", name)}
    assert [name for name in kept if "shard-" in name] == []


def test_no_result_names_the_copy_it_was_made_of(stored, bucket):
    """The copies are gone after the job."""
    files = {k: v for k, v in bucket.files().items() if not k.startswith("results/logs/")}
    assert len(files) > 80
    assert [name for name, content in files.items() if b".snakemake/storage" in content] == []


def test_manifest_lists_the_whole_bucket(stored, bucket, tmp_path):
    files = bucket.files()
    listed = {one["path"] for one in json.loads(files["results/manifest.json"])["artefacts"]}
    artefacts = {
        name.removeprefix("results/")
        for name in files
        if not re.search(r"^results/(logs|benchmarks)/|/\.snakemake_timestamp$", name)
    }
    assert artefacts - {"manifest.json"} == listed
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    verify = [sys.executable, "-m", "shielded_recrl.report", "verify"]
    subprocess.run([*verify, tmp_path / "results"], check=True)


def test_manifest_of_dialogues_reads_every_file_that_the_branch_makes(untouched, bucket):
    """A job of a storage finds its inputs alone, so what it is to list has to be among them."""
    whole = "results/dialogue/report/manifest.json"
    graph = untouched.run("--filegraph", *PROFILE, whole, changes={}).stdout.replace("{seed}", "42")
    nodes = graph.split("<table")[1:]
    (reads,) = [node for node in nodes if ">manifest_dialogue<" in node]
    made, listed = (set(re.findall("results/dialogue/[^<]+", text)) for text in (graph, reads))
    assert len(nodes) == 14
    assert len(listed) > 40
    assert made - listed == set()


def test_local_disk_holds_no_results(stored):
    copy, _ = stored
    copies = copy.folder / ".snakemake/storage/s3/study/results"
    left = {path.relative_to(copies).parts[0] for path in copies.rglob("*") if path.is_file()}
    assert left <= {"logs", "benchmarks"}
    assert {path.name for path in copy.folder.glob("results/*")} <= {"live", "scratch"}


def test_nothing_is_to_be_done_again(stored):
    """Also where the bucket comes over another profile, and no shard for what has been joined."""
    copy, _ = stored
    assert not copy.plan("--workflow-profile", "profiles/s3", changes=SHARED).jobs


def test_no_key_is_in_logs_results_or_records(stored, bucket):
    copy, said = stored
    assert list(copy.folder.glob(".snakemake/log/*"))
    assert told(copy.folder) == []
    assert names_in(said.encode()) == []
    assert [key for key, content in bucket.files().items() if names_in(content)] == []


def test_dead_endpoint_is_one_clear_line(untouched, bucket, monkeypatch):
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_ENDPOINT_URL", DEAD)
    failed = untouched.run("-n", *PROFILE, changes=STEAM, check=False)
    assert failed.returncode != 0
    said = failed.stdout + failed.stderr
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if DEAD in line]
    assert "Could not connect" in line
    assert line.endswith("check endpoint, bucket and keys")


def test_raw_files_may_lie_in_a_bucket_and_on_the_disk(untouched, bucket, tiny, tmp_path):
    raw = tiny.folder / "results/data/steam/raw"
    bucket.write("raw/plays.csv", (raw / "steam-200k.csv").read_bytes())
    games = shutil.copy(raw / "steam_games.json.gz", tmp_path)
    source = {"source": "s3://study/raw/plays.csv", "metadata": str(games)}
    world = tmp_path / "world"
    make.main(out=world, settings=DialogueWorldSettings(dialogues=60, films=40, comments=280))
    for path in (path for path in world.rglob("*") if path.is_file()):
        bucket.write(f"world/{path.relative_to(world).as_posix()}", path.read_bytes())
    dialogues = {
        "data": {
            "source": "s3://study/world",
            "test": [str(world / "test_data.jsonl")],
            "genres": "s3://study/world/movies.csv",
        },
        "emotions": {"goemotions": "s3://study/world/goemotions", "bootstrap": 10},
    }
    copy = untouched.pristine(tmp_path / "copy")
    made = ("data/steam/stats.json", "dialogue/data/stats.json", "dialogue/emotion/report.json")
    copy.run(
        *(*PROFILE, "--default-storage-prefix", "s3://study/own"),
        *(f"results/{name}" for name in made),
        changes=STEAM | {"datasets": {"steam": source}, "dialogue": dialogues},
    )
    for name in ("train.parquet", "items.parquet"):
        assert bucket.read(f"own/results/data/steam/{name}") == (raw.parent / name).read_bytes()
    prepare.main(raw=world, out=tmp_path / "data", genres=world / "movies.csv")
    for path in (tmp_path / "data").iterdir():
        assert bucket.read(f"own/results/dialogue/data/{path.name}") == path.read_bytes(), path
    assert bucket.read("own/results/dialogue/emotion/model.safetensors")


def test_folder_that_another_machine_made_is_found(bucket, tmp_path, monkeypatch):
    """Without the correction, the plugin goes on saying that there is none."""
    plugin = pytest.importorskip("snakemake_storage_plugin_s3")
    keys = {"access_key": SECRETS[KEYS[0]], "secret_key": SECRETS[KEYS[1]]}
    settings = plugin.StorageProviderSettings(endpoint_url=bucket.endpoint, **keys)
    # So that it is put back.
    monkeypatch.setattr(plugin.StorageObject, "is_dir", plugin.StorageObject.is_dir)
    look_for_folders_anew()
    provider = plugin.StorageProvider(tmp_path, logging.getLogger("s3"), settings=settings)
    folder = provider.object("s3://study/elsewhere/adapter")
    assert not folder.exists()
    bucket.write("elsewhere/adapter/adapter_config.json", b"{}")
    assert folder.exists()
    assert folder.size() == 2


class Cluster(ThreadingHTTPServer):
    """What Snakemake asks of the Kubernetes API; every job fails."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.posted: dict[str, list[dict[str, Any]]] = {"secrets": [], "jobs": []}


class Answer(BaseHTTPRequestHandler):
    """An answer of `Cluster`."""

    server: Cluster

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.posted[self.path.rpartition("/")[2]].append(body)
        self.answer(body)

    def do_GET(self) -> None:
        pods = self.path.partition("?")[0].endswith("/pods")
        self.answer({"items": []} if pods else {"spec": {"template": {}}, "status": {"failed": 1}})

    def do_DELETE(self) -> None:
        self.answer({"status": "Success"})

    def answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    """A stub of the Kubernetes API, and the environment in which Snakemake finds it."""
    with Cluster() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = {"server": f"http://127.0.0.1:{server.server_port}"}
        settings = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "stub", "cluster": address}],
            "users": [{"name": "stub", "user": {}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
            "current-context": "stub",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(settings))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("POD_IMAGE", "registry.example/shielded-recrl:1")
        yield server
        server.shutdown()
        thread.join()


def test_kubernetes_job_asks_for_its_gpu_as_a_limit_and_holds_no_key(
    stored, bucket, cluster, tmp_path
):
    copy, _ = stored
    once = ("--force", "--retries", "0", "--seconds-between-status-checks", "1")
    log = tmp_path / "said.log"
    # Kubernetes' client asks where its cluster is when it is imported: forks have done so before.
    process = copy.start(
        *("--profile", "profiles/kubernetes", *once, "results/ranker/steam/model.safetensors"),
        changes=STEAM | {"resources": {"gpu": 1, "mem_mb": 900}},
        log=log,
    )
    try:
        assert process.wait(300) != 0
    finally:
        process.kill()
    said = log.read_text()
    (job,), (secret,) = cluster.posted["jobs"], cluster.posted["secrets"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/shielded-recrl:1"
    assert "train_ranker" in " ".join(container["args"])
    limits, requests = (container["resources"][kind] for kind in ("limits", "requests"))
    assert (limits["nvidia.com/gpu"], limits["memory"]) == ("1", "900M")
    assert limits["nvidia.com/gpu"] == requests["nvidia.com/gpu"]
    # The pod reads the keys from a secret that the run makes and removes.
    references = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    for name in KEYS:
        assert references[name]["name"] == secret["metadata"]["name"]
        assert b64decode(secret["data"][references[name]["key"]]).decode() == SECRETS[name]
    assert names_in(json.dumps(job).encode() + said.encode()) == []
