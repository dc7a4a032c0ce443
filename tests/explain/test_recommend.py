"""`python -m shielded_recrl.explain` as a user runs it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from command_line import here
from shielded_recrl.errors import UserError
from shielded_recrl.explain.recommend import main
from shielded_recrl.explain.runs import CONFIG, DATA_FILES, Runs, read_config

ROOT = Path(__file__).resolve().parents[2]
ASK = "--dataset books --variant shielded --user 4 -k 2"
COMMAND = "python -m shielded_recrl.explain recommend"


def refused(**arguments) -> str:
    """The one line that arguments end with."""
    with pytest.raises(UserError) as caught:
        main(**{"dataset": "books", "user": "4"} | arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_on_stdout(inside, library, capsys):
    main(dataset="books", user="4", k=2)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith("User 4 (source id u4), a ")
    assert "shielded, seed 5, shield nullspace" in lines
    answer = library.recommend("books", "shielded", None, 4, 2)
    titles = [line for line in lines if line[:3] in (" 1.", " 2.")]
    assert len(titles) == 2
    for line, one in zip(titles, answer.recommendations, strict=True):
        categories = ", ".join(one.thing.categories)
        assert line.endswith(f"({categories})")
        score = f"   {one.score:.3f} = {one.ranker_score:.3f} ranker"
        assert lines[lines.index(line) + 1].startswith(score)


def test_json_beside_another_variant(inside, library):
    done = here("explain", *f"{ASK} --json --compare no_proj".split())
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["schema"] == 1
    assert got["user"]["user"] == 4
    assert [(run["variant"], run["seed"], run["shield"]) for run in got["runs"]] == [
        ("shielded", 5, "nullspace"),
        ("no_proj", 5, "none"),
    ]
    for run in got["runs"]:
        expected = library.recommend("books", run["variant"], 5, 4, 2).recommendations
        assert [row["explanation"] for row in run["recommendations"]] == [
            one.explanation for one in expected
        ]
        assert [row["score"] for row in run["recommendations"]] == pytest.approx(
            [one.score for one in expected]
        )


def test_side_by_side(inside, library, capsys):
    main(dataset="books", variant="shielded", user="u4", k=2, compare="activated")
    text = capsys.readouterr().out
    assert "shielded, seed 5, shield nullspace" in text
    assert "│  activated, seed 5, shield activated" in text
    assert "The two lists " in text


def test_a_mistyped_name_is_one_line_and_fast(study):
    start = time.monotonic()
    words = "--dataset books --variant shilded --user 4"
    done = subprocess.run(
        [sys.executable, "-m", "shielded_recrl.explain", *words.split()],
        capture_output=True,
        text=True,
        cwd=study,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{COMMAND}: error: --variant shilded: not in the study of books, which has shielded, "
        "no_proj, separate, activated\n"
    )
    assert time.monotonic() - start < 30


def test_flags_that_stand_alone_take_values_as_well(inside):
    done = here("explain", *f"{ASK} --json maybe".split())
    assert done.returncode != 0
    assert "--json" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_there_is_instead(inside):
    assert refused(dataset="films") == ("--dataset films: not in the study, which has books, steam")
    assert refused(seed=9) == "--seed 9: not in shielded on books, which has 5, 6"
    assert "--variant none: not in the study of books" in refused(compare="none")
    assert refused(user="400").startswith("books has no user '400': expected 1 to 24")
    assert refused(user=None) == (
        "--dataset and --user: expected both, or --serve; datasets: books, steam"
    )


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_there_is_no_such_port(inside, port):
    assert refused(serve=True, port=port) == (
        f"--port {port}: expected 0 to 65535; 0 takes a free one"
    )


def test_the_command_that_makes_a_run(inside):
    """The adapter is made from all else, so that one target is enough."""
    adapter = "results/rl/books/shielded/seed-6/adapter"
    made = f"{adapter}: not made yet; make it with `snakemake --cores all {adapter}`"
    assert refused(seed=6) == made
    assert refused(dataset="steam").startswith("results/rl/steam/shielded/seed-5/adapter: not made")
    mine = inside / "mine.yaml"
    mine.write_text("{}")
    got = refused(seed=6, config=(Path("mine.yaml"),))
    assert got == made.removesuffix("`") + " --configfile mine.yaml`"


@pytest.mark.parametrize(
    "name",
    [
        "results/ranker/books/states.safetensors",
        "results/data/books/stats.json",
        "results/explainer/books/embedded/model",
        "results/shield/books/embedded/prompt-56/readout.safetensors",
    ],
)
def test_the_command_that_makes_a_file(inside, name):
    path = inside / name
    hidden = path.rename(path.with_name("hidden"))
    try:
        assert refused() == f"{name}: not made yet; make it with `snakemake --cores all {name}`"
    finally:
        hidden.rename(path)


def test_rules_make_the_files_that_are_read():
    """What `Study` does not name is named here and in the rules."""
    rules = "".join(path.read_text() for path in sorted(ROOT.glob("rules/*.smk")))
    run = "results/rl/{dataset}/{variant}/seed-{seed}"
    assert f'RUN = "{run}"' in rules
    assert '{RUN}/adapter"' in rules
    for name in (
        "results/ranker/{dataset}/states.safetensors",
        "results/data/{dataset}/stats.json",
    ):
        assert f'"{name}"' in rules
    for name in ("train", "valid", "test", "items", "users"):
        assert f'"{name}"' in rules
        assert f"{name}.parquet" in DATA_FILES


def test_a_base_of_ones_own_is_not_made(inside):
    mine = inside / "mine.yaml"
    mine.write_text("explainer: {base: ./models/nowhere}")
    got = refused(config=(Path("mine.yaml"),))
    assert got == "./models/nowhere: no such folder; explainer.base of the config names it"


def test_configs_are_laid_over_the_default_as_snakemake_does(inside):
    one, two = inside / "one.yaml", inside / "two.yaml"
    one.write_text("{ranking: {gamma: 2.0}, study: [{dataset: ml25m, variants: [x], seeds: [1]}]}")
    two.write_text("{variants: {x: {shield: {kind: separate}}}, ranking: {epochs: 4}}")
    config = read_config([CONFIG, one, two])
    assert (config.ranking.gamma, config.ranking.epochs) == (2.0, 4)
    assert config.ranking.protected_users == 5
    assert Runs(config).study.runs == [("ml25m", "x", 1)]
    assert config.variant("x").shield.kind == "separate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; run in the folder of the study or give --config"),
        ("{", "not valid YAML"),
        ("[]", "expected a mapping of config keys"),
        ("{seeed: 1}", "config: seeed: unknown key"),
    ],
)
def test_a_bad_config_is_one_line(inside, text, message):
    path = inside / "bad.yaml"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    assert message in refused(config=(Path("bad.yaml"),))


def test_results_elsewhere(study, tmp_path, monkeypatch, capsys):
    (tmp_path / "resources").symlink_to(study / "resources")
    monkeypatch.chdir(tmp_path)
    arguments = {"config": (study / "config/config.yaml",), "results": study / "results"}
    main(dataset="books", user="4", k=1, json=True, **arguments)
    assert len(json.loads(capsys.readouterr().out)["runs"][0]["recommendations"]) == 1


def test_serve_says_where_and_answers(study):
    process = subprocess.Popen(
        [sys.executable, "-m", "shielded_recrl.explain", "--serve", "--port", "0"],
        cwd=study,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = process.stdout.readline()
        address = line.split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urlopen(address, timeout=30) as response:
            assert "Recommendations and their reasons" in response.read().decode()
    finally:
        process.terminate()
        process.wait()
