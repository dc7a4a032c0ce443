"""Write the comparison report.

In: folders of evaluated runs. Out: `comparison.md`, `comparison.html` (the same and the samples as one
page that works offline) and `samples.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shielded_recrl import markdown
from shielded_recrl.dialogue.comparison.side_by_side import (
    Row,
    as_markdown,
    first_dialogues,
    load_responses,
)
from shielded_recrl.dialogue.comparison.text import (
    ECR,
    JUDGES,
    STANDARD,
    Run,
    best_of,
    columns,
    cost_rows,
    head_rows,
    load_run,
    log_rows,
    named_row,
    over_seeds,
    statement,
    text_rows,
    verdicts,
)
from shielded_recrl.errors import UserError
from shielded_recrl.files import write_text
from shielded_recrl.report.pages import document

TITLE = "Responses: supervised, best of N, RL"
INTRO = """\
The response LM before and after reinforcement learning, on test turns that no model was trained on.
`supervised` is the LM that RL began with, and `best of N` picks of N of its samples the one that the
critic likes best. The critic was the reward, and `rules` taught the critic: both favour what was
trained on them. `unseen` goes by other evidence, what the person said above all, and settles it; both
count which slots are filled. `person` is what the recommender of the dialogue said; it is scored by
`unseen` without a reference.

All numbers are means with 95% bootstrap intervals in which whole dialogues are drawn, and not training
runs: another seed may differ by more. Differences are paired, and none is left out for how it came out."""
SAMPLES = (
    "The first test dialogues by number, chosen by nobody. Each response follows what was truly said "
    "before; its slots are filled with the recommended films."
)


def main(*, runs: tuple[Path, ...], out: Path, dialogues: int = 10) -> None:
    """Write the comparison report.

    Args:
        runs: folders of runs of `train` that `evaluate` has compared.
        out: folder to write comparison.md, comparison.html and samples.md to.
        dialogues: dialogues shown, the first ones.
    """
    if not runs or dialogues < 1:
        raise UserError("--runs, --dialogues: expected one run and one dialogue at least")
    found = [load_run(folder) for folder in runs]
    responses = [load_responses(folder) for folder in runs]
    comparison = page(found)
    samples = sample_page(found, responses, dialogues)
    write_text(out / "comparison.md", "\n".join([f"# {TITLE}", "", *comparison]) + "\n")
    write_text(out / "samples.md", "\n".join(["# Sample dialogues", "", *samples]) + "\n")
    whole = [f"# {TITLE}", "", *comparison, "## Sample dialogues", "", *samples]
    write_text(out / "comparison.html", document("\n".join(whole) + "\n", out))
    print(f"{out}: comparison of {len(found)} runs, {dialogues} dialogues side by side")


def page(runs: Sequence[Run]) -> list[str]:
    """Lines of comparison.md below its title."""
    lines = [INTRO, ""]
    if counts := over_seeds(runs):
        lines += ["## Over runs", "", *(f"- {line}" for line in counts), ""]
    for run in runs:
        lines += section(run)
    return lines


def section(run: Run) -> list[str]:
    """Lines about one run."""
    about = run.evaluation
    header = columns(about)
    moved = about["distance"]
    lines = [
        f"## Seed {about['seed']}",
        "",
        f"One training run. {about['turns']} turns of {about['dialogues']} "
        f"{'generated ' if about['synthetic'] else ''}test dialogues, sampled at temperature "
        f"{about['temperature']:g}.",
        "",
        "### Verdict",
        "",
        *(f"- {line}" for line in verdicts(about)),
        f"- {statement(about)}",
        "",
    ]
    for judge, name in JUDGES.items():
        title = name[0].upper() + name[1:]
        lines += [f"### {title}", "", *markdown.table(header, head_rows(about, judge)), ""]
    lines += ["### Texts", "", *markdown.table(header, text_rows(about, STANDARD)), ""]
    lines += [
        "In the form of the ECR code, to compare with numbers in its form only:",
        "",
        *markdown.table(header, text_rows(about, ECR)),
        "",
        "### Films",
        "",
        *markdown.table(header, [named_row(about)]),
        "",
        "### Cost and distance",
        "",
        *markdown.table(
            ("", "samples a turn", "KL, nats a token", "KL, nats a response"), cost_rows(about)
        ),
        "",
        f"The policy's weights differ from the supervised ones in {moved['moved']} of "
        f"{moved['layers']} adapted layers, by a norm of {moved['norm']:.4g}"
        + (f", {moved['relative']:.2%} of theirs." if moved["relative"] is not None else "."),
        "",
        "### Training",
        "",
    ]
    names, *steps = log_rows(run.log)
    return [*lines, *markdown.table(names, steps), ""]


def sample_page(
    runs: Sequence[Run], responses: Sequence[Sequence[Row]], dialogues: int
) -> list[str]:
    """Lines of samples.md below its title."""
    lines = [SAMPLES, ""]
    for run, rows in zip(runs, responses, strict=True):
        if len(runs) > 1:
            lines += [f"## Seed {run.evaluation['seed']}", ""]
        lines += as_markdown(first_dialogues(rows, dialogues), best_of(run.evaluation))
    return lines
