"""The command on a whole study: what it writes, prints and refuses."""

import shutil
import subprocess
import sys
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from figure_checks import check_layout
from shielded_recrl.config import Config
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report import explanations
from shielded_recrl.report.aggregate import draw, main, overview
from shielded_recrl.report.columns import TIMINGS, row
from shielded_recrl.report.figures import ablation, over_steps
from shielded_recrl.report.figures import style as figures
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings
from shielded_recrl.report.study import cells
from shielded_recrl.settings import flags

FIGURES = (
    *("ablation", "audits", "calibration", "ctr_over_steps", "frontier", "ndcg_over_steps"),
    *("overoptimisation", "quality_weight", "texts"),
)


def written(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*")}


def aggregate(study, out):
    main(
        runs=tuple(study.runs),
        audits=tuple(study.audits),
        summary=study.summary,
        stats=tuple(study.stats),
        out=out / "aggregate_results.csv",
        figures=out / "figures",
        tables_folder=out / "tables",
        texts=out / "explanations.md",
        certificates_page=out / "certificates.md",
        datasets_page=out / "datasets.md",
        settings=TableSettings(),
    )
    return written(out)


def command(study, out):
    """The same as `aggregate`, in a process that says what it imports."""
    return subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "shielded_recrl.report", "aggregate"),
            *("--runs", *study.runs, "--audits", *study.audits, "--stats", *study.stats),
            *("--summary", study.summary, "--datasets", out / "datasets.md"),
            *("--out", out / "aggregate_results.csv", "--figures", out / "figures"),
            *("--texts", out / "explanations.md", "--certificates", out / "certificates.md"),
            *("--tables", out / "tables", *flags(TableSettings()).split()),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def drawn(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return runs, [row(one, TableSettings()) for one in runs]


def test_everything_is_written_without_torch_and_bytes_depend_on_contents_alone(study, tmp_path):
    # Each figure is drawn for the whole study, or many variants, by a test of its own.
    study = study._replace(runs=study.runs[:2])
    first = aggregate(study, tmp_path / "first")
    assert set(first) == {
        "aggregate_results.csv",
        "explanations.md",
        "certificates.md",
        "datasets.md",
        "tables/results.tex",
        "tables/drift.tex",
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")),
    }
    for folder in study.runs:
        text = (folder / "summary.json").read_text().replace('"seconds": ', '"seconds": 1')
        (folder / "summary.json").write_text(text)
    done = command(study, tmp_path / "second")
    assert done.returncode == 0, done.stderr
    table = tmp_path / "second" / "aggregate_results.csv"
    assert done.stdout.splitlines()[-1].startswith(f"{table}: 2 runs")
    second = written(tmp_path / "second")
    tables = [
        [line.split(",")[: -len(TIMINGS)] for line in files.pop("aggregate_results.csv").decode().splitlines()]
        for files in (first, second)
    ]  # fmt: skip
    assert tables[0] == tables[1]
    assert first == second
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "seaborn" in imported
    assert "torch" not in imported


def test_the_overview_has_a_line_for_each_dataset_and_variant(drawn):
    _, rows = drawn
    head, *lines = overview(cells(rows)).splitlines()
    assert head.split() == (
        "dataset variant seeds relative CTR lift share NDCG@10 change held-out top 10 same".split()
    )
    assert len(lines) == 9
    assert lines[0].startswith("books    no_proj        3")


@pytest.mark.parametrize("key", ["ctr", "ndcg@10"])
def test_curves_have_the_colours_of_their_variants(drawn, tmp_path, key):
    figures.save(over_steps.figure(*drawn, key, "y"), tmp_path / "curve.v2", ("png",))
    image = imread(tmp_path / "curve.v2.png")[..., :3]
    for colour, _ in figures.styles(["shielded", "no_proj"]).values():
        distance = np.abs(image - np.array(to_rgb(colour))).max(axis=-1)
        assert (distance < 0.02).sum() > 100


def test_panels_say_what_the_data_are(drawn):
    figure = over_steps.figure(*drawn, "ctr", "Simulated CTR")
    assert [axes.get_title() for axes in figure.axes] == [
        "Amazon reviews, 400 users\n(synthetic data)",
        "MovieLens, 601 users\n(synthetic data)",
        "Steam, 3,726 users\n(synthetic data, unordered)",
    ]


def test_curves_show_every_seed_and_the_mean(drawn):
    runs, _ = drawn
    steam = over_steps.figure(*drawn, "ctr", "Simulated CTR").axes[1]
    assert steam.get_title().startswith("MovieLens")
    thin = [line for line in steam.lines if line.get_linewidth() < 1]
    thick = [line for line in steam.lines if line.get_linewidth() > 1]
    assert (len(thin), len(thick)) == (4, 2)
    seeds = [
        [point["ctr"] for point in run.evaluation["curve"]]
        for run in runs
        if (run.dataset, run.variant) == ("ml25m", "shielded")
    ]
    means = [line.get_ydata() for line in thick]
    assert any(np.allclose(mean, np.mean(seeds, axis=0)) for mean in means)


def test_sasrec_alone_is_drawn_in_every_ndcg_panel(drawn):
    runs, rows = drawn
    figure = over_steps.figure(runs, rows, "ndcg@10", "NDCG@10", least_span=0.04)
    for axes in figure.axes:
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert len(dashed) == 1
        low, high = axes.get_ylim()
        assert high - low >= 0.04 - 1e-12
    levels = {axes.lines[-1].get_ydata()[0] for axes in figure.axes}
    assert levels == {0.142, 0.081, 0.203}


def test_bars_are_changes_and_dots_are_seeds(drawn):
    _, rows = drawn
    clicks, ndcg = ablation.figure(rows, 0.01).axes[:2]
    names = [label.get_text() for label in clicks.get_yticklabels()]
    assert names == ["no_proj", "shielded", "kl0", "lora4", "long_expl"]
    own = [r for r in rows if (r["dataset"], r["variant"]) == ("books", "shielded")]
    bars = sorted(patch.get_width() for patch in clicks.patches)
    expected = np.mean([r["ctr_relative"] for r in own]) - 1
    assert any(np.isclose(width, expected) for width in bars)
    assert sum(len(line.get_xdata()) for line in ndcg.lines if line.get_marker() == "o") == 9


def test_a_variant_keeps_its_style_in_every_study():
    alone = figures.styles(["kl0"])
    assert figures.styles(["mine", "shielded", "kl0"])["kl0"] == alone["kl0"]
    names = [*figures.KNOWN, *(f"mine {number}" for number in range(289))]
    assert len(set(figures.styles(names).values())) == 306


def test_styles_of_the_default_study_are_those_of_wong():
    assert list(figures.styles(["shielded", "no_proj", "kl0", "lora4", "long_expl"]).values()) == [
        ("#0072B2", "o"),
        ("#D55E00", "s"),
        ("#CC79A7", "D"),
        ("#E69F00", "v"),
        ("#56B4E9", "<"),
    ]


def test_every_variant_of_the_config_has_a_style_of_its_own():
    assert set(Config().variants) <= set(figures.KNOWN)
    known = figures.styles(figures.KNOWN)
    for values in zip(*known.values(), strict=True):
        assert len(set(values)) == len(figures.KNOWN)


# From linear RGB to what is seen without long, middle or short cones (Machado et al. 2009).
VISION = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour, vision):
    """CIELAB (D65) of a colour as seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ seen
        / np.array([0.9505, 1.0, 1.089])
    )
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_differ_for_the_colour_blind(vision):
    known = figures.styles(figures.KNOWN)
    seen = [lab(colour, VISION[vision]) for colour, _ in known.values()]
    gaps = [np.linalg.norm(one - other) for one, other in combinations(seen, 2)]
    # A just noticeable difference is 2.3.
    assert min(gaps) > 14


def test_drawing_leaves_the_defaults_of_matplotlib_alone(drawn):
    before = dict(mpl.rcParams)
    over_steps.figure(*drawn, "ctr", "y")
    ablation.figure(drawn[1], 0.01)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("more", [0, 14])
def test_no_figure_is_cut_off_or_illegible(extended, more):
    study = extended(*(("books", f"variant_{number}", 42) for number in range(more)))
    check_figures(load_runs(study.runs, study.audits, study.stats), study.summary)


def check_figures(runs, summary):
    rows = [row(one, TableSettings()) for one in runs]
    drawn = draw(runs, rows, read_json(summary), 0.01)
    assert set(drawn) == set(FIGURES)
    for figure in drawn.values():
        check_layout(figure)


def test_one_run_is_enough(study, tmp_path, monkeypatch):
    check_figures(load_runs(study.runs, study.audits, study.stats)[-1:], study.summary)
    # Which files a figure makes does not depend on the runs.
    monkeypatch.setattr(figures, "save", lambda figure, path: None)
    aggregate(study._replace(runs=study.runs[:1]), tmp_path / "out")
    assert len((tmp_path / "out" / "aggregate_results.csv").read_text().splitlines()) == 2


def test_an_undefined_ratio_is_drawn_and_written(study, tmp_path, monkeypatch, capsys):
    path = study.runs[0] / "evaluation.json"
    document = read_json(path)
    document["ctr"].update(dict.fromkeys(("relative", "relative_low", "relative_high")))
    write_json(path, document)
    # To write two formats is most of the work, and the matter of the first test.
    monkeypatch.setattr(figures, "save", lambda figure, path: figure.draw_without_rendering())
    files = aggregate(study._replace(runs=study.runs[:1]), tmp_path / "out")
    assert b"no click before training" in files["aggregate_results.csv"]
    assert b"& -- &" in files["tables/results.tex"]
    assert "undefined" in capsys.readouterr().out


def test_a_broken_run_is_one_line_and_nothing_is_written(study, tmp_path):
    shutil.rmtree(study.runs[2])
    done = command(study, tmp_path / "out")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 1
    assert len(lines) == 1
    assert str(study.runs[2] / "evaluation.json") in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_summary_is_one_line_and_nothing_is_written(study, tmp_path):
    study.summary.write_text("{}")
    with pytest.raises(UserError, match="no summary of audits"):
        aggregate(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_explanations_are_shown_as_they_are_and_stay_in_their_cells(study):
    page = explanations.page(load_runs(study.runs, study.audits, study.stats))
    sections = page.split("\n## ")[1:]
    # Variants in a fixed order, whatever the study's; the smallest of three seeds.
    assert [
        section.split("`")[0].split()[0] + " " + section.split("`")[1] for section in sections
    ] == [
        f"{dataset} {variant}"
        for dataset in ("books", "ml25m", "steam")
        for variant in ("shielded", "no_proj")
    ]
    assert all(", seed 42, 24 steps)" in section for section in sections)
    for section in sections:
        table = [line for line in section.splitlines() if line.startswith("|")][2:]
        assert len(table) == explanations.SHOWN
        assert all(line.count("|") == 7 for line in table)
        assert "Past &#124; one; &lt;b>Past&lt;/b> two" in table[0]
        assert [line.split(" | ")[1] for line in table[:2]] == [
            "Title 0 (Drama, War)",
            "Title 1 (Drama, War)",
        ]
        # Before and after stand side by side: the texts of steps 0 and 24, in the order of the slate.
        cells = [line.split(" | ") for line in table]
        for place, cell in enumerate(cells):
            assert (cell[2].split()[1], cell[2].split()[-1]) == (str(place), "0.")
            assert (cell[4].split()[1], cell[4].split()[-1]) == (str(place), "24.")


def test_an_item_without_categories_has_no_brackets():
    assert explanations.item("Portal", ["Action", "Puzzle"]) == "Portal (Action, Puzzle)"
    assert explanations.item("Ricochet", []) == "Ricochet"


def test_without_those_variants_the_first_of_the_study_is_shown(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    others = [run for run in runs if run.variant not in explanations.VARIANTS]
    assert [run.variant for run in explanations.shown(others)] == ["kl0"]
    only = [run for run in runs if (run.dataset, run.variant) == ("books", "no_proj")]
    assert [(run.variant, run.seed) for run in explanations.shown(only)] == [("no_proj", 42)]
