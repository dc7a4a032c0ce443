"""Write the comparison report.

In: folders of evaluated runs, `evaluation.json` of the recommender, `report.json` of the critic. Out:
`comparison.md` and its figures (`.svg`), `samples.md`, and `comparison.html`, all of it as one page
that works offline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shielded_recrl import markdown
from shielded_recrl.dialogue.comparison.finding import (
    headline,
    meaning,
    pairs,
    points,
    table_header,
    table_rows,
)
from shielded_recrl.dialogue.comparison.runs import (
    Run,
    load_critic,
    load_recommender,
    load_responses,
    load_study,
)
from shielded_recrl.dialogue.comparison.side_by_side import (
    Turn,
    answered,
    as_markdown,
    drawn_dialogues,
    extreme_as_markdown,
    extremes,
)
from shielded_recrl.dialogue.comparison.text import (
    ECR,
    STANDARD,
    UNSEEN,
    best_of,
    capital,
    columns,
    cost_rows,
    critic_rows,
    head_rows,
    judge_name,
    log_rows,
    named_row,
    recommender_rows,
    statement,
    text_rows,
    verdicts,
)
from shielded_recrl.errors import UserError
from shielded_recrl.files import write_text
from shielded_recrl.report.pages import anchor, document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Responses: supervised, best of N, RL"
READING = """\
`supervised` is the response LM that RL began with. `best of N` picks of N of its samples the one that
the critic likes best. `RL` is the LM after PPO with the critic as reward. `person` is what the
recommender of the dialogue said. All answer the same test turns, on which no model was trained.

The critic was the reward, and it learned from judges: both favour what was trained on them. `unseen`
settles the comparison: it goes by what people said in the train dialogues, and is not told what the
person answered. `rules` counts the films that a response names; `unseen` asks whether a person would have
named one there. The reward penalises repetition, copying and broken form as well, and `unseen` multiplies
every head by how natural and how new a text is, so that a gain may be that clean-up alone.

Brackets hold 95% bootstrap intervals in which whole dialogues are drawn, and not trainings. Trainings
are told one by one, with their mean and the least and the greatest: of so few, an interval would be a
guess. Differences are paired, and none is left out for how it came out."""
EXTREMES = 3


class Parts(NamedTuple):
    """What the report is made of.

    Attributes:
        runs: of one study, by seed.
        turns: answered turns, with the rows of all runs.
        recommender: new films of the test split, of the recommender's evaluation.json.
        critic: report.json of the critic.
    """

    runs: Sequence[Run]
    turns: Sequence[Turn]
    recommender: Mapping[str, Any]
    critic: Mapping[str, Any]

    @property
    def first(self) -> Mapping[str, Any]:
        """evaluation.json of the first run."""
        return self.runs[0].evaluation


def main(
    *,
    runs: tuple[Path, ...],
    recommender: Path,
    critic: Path,
    out: Path,
    dialogues: int = 5,
    seed: int = 42,
) -> None:
    """Write the comparison report.

    Args:
        runs: folders of runs of `train` that `evaluate` has compared, which differ by their seed alone.
        recommender: evaluation.json of `recommend`.
        critic: report.json of `critic`.
        out: folder to write comparison.md, comparison.html, samples.md and figures to.
        dialogues: dialogues shown.
        seed: of drawing these.
    """
    if dialogues < 1:
        raise UserError(f"--dialogues: {dialogues}; expected 1 at least")
    found = load_study(runs)
    responses = {run.seed: load_responses(run.folder) for run in found}
    parts = Parts(found, answered(responses), load_recommender(recommender), load_critic(critic))
    before, after = overview(parts), sections(parts)
    samples = sample_page(parts, dialogues, seed)
    comparison = [*before, "Sample dialogues are in [samples.md](samples.md).", "", *after]
    whole = [*before, "## Sample dialogues", "", *samples, *after]
    from shielded_recrl.report.figures.style import save

    for name, figure in draw(parts).items():
        save(figure, out / name, ["svg"])
    write_text(out / "comparison.md", _with_contents(comparison))
    write_text(out / "samples.md", "\n".join(["# Sample dialogues", "", *samples]) + "\n")
    write_text(out / "comparison.html", document(_with_contents(whole), out))
    print(headline(found))
    print(f"{out}: comparison of {len(found)} runs, {dialogues} dialogues side by side")


def draw(parts: Parts) -> dict[str, Figure]:
    """Every figure, by the name of its file."""
    # Seaborn and pandas take seconds to import; bad input is refused before that.
    from shielded_recrl.dialogue.comparison import figures

    return {
        "differences": figures.differences(parts.runs),
        "training": figures.training(parts.runs),
        "critic": figures.critic(parts.critic),
        "recommender": figures.recommender(parts.recommender),
    }


def overview(parts: Parts) -> list[str]:
    """What was found, and how the reward and the films came about."""
    lines = [*findings(parts), "## How to read it", "", READING, ""]
    return [*lines, *trained(parts), *critic_part(parts), *recommender_part(parts)]


def sections(parts: Parts) -> list[str]:
    """All numbers of every run."""
    return [line for run in parts.runs for line in section(run)]


def findings(parts: Parts) -> list[str]:
    """What was found, over all trainings: in words, as a figure and as tables."""
    runs, about = parts.runs, parts.first
    samples = best_of(about)
    lines = [
        f"**{headline(runs)}** {meaning(runs)}",
        "",
        *(f"- {point}" for point in points(runs)),
        "",
        f"{about['turns']} turns of {about['dialogues']} "
        f"{'generated ' if about['synthetic'] else ''}test dialogues, sampled at temperature "
        f"{about['temperature']:g}; {_trainings(runs)}.",
        "",
        *_figure(
            "differences",
            f"Differences of overall scores by judge, with intervals, for {_trainings(runs)}",
            "**Figure 1.** Paired differences of the overall score, by judge. Whiskers are 95% "
            "intervals over test dialogues of one training; right of 0 the first of the two is better.",
        ),
    ]
    for pair, name in pairs(samples).items():
        lines += [f"{name}:", "", *markdown.table(table_header(runs), table_rows(runs, pair)), ""]
    return lines


def trained(parts: Parts) -> list[str]:
    """How training went."""
    names, *_ = log_rows(parts.runs[0].log)
    return [
        "## Training",
        "",
        *_figure(
            "training",
            f"Reward, critic's score and KL over PPO steps, for {_trainings(parts.runs)}",
            "**Figure 2.** Means over the responses of each PPO step. The reward is the critic's "
            "score with format, support, repetition and copying; the KL is to the supervised LM.",
        ),
        "First, middle and last step:",
        "",
        *markdown.table(
            ("seed", *names),
            ((run.seed, *step) for run in parts.runs for step in log_rows(run.log)[1:]),
        ),
        "",
    ]


def critic_part(parts: Parts) -> list[str]:
    """What the critic, which is the reward, has learned."""
    heads, faults = critic_rows(parts.critic)
    taught = ", ".join(f"`{judge}`" for judge in parts.critic["learned_from"])
    return [
        "## Critic",
        "",
        f"The reward is a critic that learned the scores of {taught}. It had to pass this gate before "
        "any training; how well it orders what systems say well is another matter.",
        "",
        *_figure(
            "critic",
            "Gain over the mean predictor by head, and share of pairs ranked rightly by fault",
            "**Figure 3.** The critic on held-out dialogues, with 95% intervals. Left: squared error "
            "saved against always saying the mean. Right: share of pairs in which the person's response "
            "is ranked above the same with a fault. An interval that reaches into the shade stops the "
            "run.",
        ),
        *markdown.table(("head", "squared error", "of the mean", "gain"), heads),
        "",
        *markdown.table(("fault", "pairs", "person's response above it"), faults),
        "",
    ]


def recommender_part(parts: Parts) -> list[str]:
    """Where the films come from, and that RL cannot move them."""
    group = parts.recommender
    return [
        "## Recommender",
        "",
        statement(parts.first),
        "",
        *_figure(
            "recommender",
            "Recall@10 on new films of each system, and the recommender's lead over each other",
            f"**Figure 4.** {group['targets']:,} new films that the recommenders of test dialogues "
            "named. Left: share of them in the first ten. Right: paired differences. 95% intervals "
            "over dialogues.",
        ),
        *markdown.table(
            ("system", "Recall@10, new films", "recommender less it"), recommender_rows(group)
        ),
        "",
    ]


def section(run: Run) -> list[str]:
    """All numbers of one run."""
    about = run.evaluation
    header = columns(about)
    moved = about["distance"]
    lines = [
        f"## Seed {run.seed}",
        "",
        *(f"- {line}" for line in verdicts(about)),
        "",
    ]
    for judge in run.judges:
        title = capital(judge_name(about, judge))
        lines += [f"### {title}", "", *markdown.table(header, head_rows(about, judge)), ""]
    lines += ["### Texts", "", *markdown.table(header, text_rows(about, STANDARD)), ""]
    return [
        *lines,
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
            ("system", "samples a turn", "KL, nats a token", "KL, nats a response"),
            cost_rows(about),
        ),
        "",
        f"The policy's weights differ from the supervised ones in {moved['moved']} of "
        f"{moved['layers']} adapted layers, by a norm of {moved['norm']:.4g}"
        + (f", {moved['relative']:.2%} of theirs." if moved["relative"] is not None else "."),
        "",
    ]


def sample_page(parts: Parts, dialogues: int, seed: int) -> list[str]:
    """Lines of samples.md below its title.

    Args:
        parts: what the report is made of.
        dialogues: dialogues shown.
        seed: of drawing these.
    """
    samples = best_of(parts.first)
    drawn = drawn_dialogues(parts.turns, dialogues, seed)
    total = len({turn.dialogue for turn in parts.turns})
    lines = [
        f"{len(drawn)} of {total} test dialogues, drawn by seed {seed} and picked by nobody, in the "
        "order of their numbers. Each response follows what was truly said before; its slots are "
        "filled with the recommended films, the person's with the films that the person named. "
        "Numbers are overall scores of the judges.",
        "",
        *as_markdown(drawn, samples),
    ]
    most, least = extremes(parts.turns, UNSEEN, EXTREMES)
    compared = sum(len(turn.rows) for turn in parts.turns)
    lines += [
        "## Extremes, picked for being so",
        "",
        f"Of {compared:,} answers of RL those that `{UNSEEN}` puts furthest above and below the "
        "supervised LM's to the same turn, after the two turns before. Both are single samples, so "
        "that chance has its part, and they say nothing of the rest.",
        "",
    ]
    for title, chosen in (("Gain", most), ("Loss", least)):
        for one in chosen:
            lines += extreme_as_markdown(one, samples, title)
    return lines


def _with_contents(lines: Sequence[str]) -> str:
    """A page under its title, which leads to its parts."""
    taken: Counter[str] = Counter()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    links = " · ".join(f"[{heading}](#{anchor(heading, taken)})" for heading in headings)
    return "\n".join([f"# {TITLE}", "", links, "", *lines]) + "\n"


def _figure(name: str, description: str, caption: str) -> list[str]:
    """A figure with its caption: one paragraph, which `pages` knows."""
    return [f"![{description}]({name}.svg)", caption, ""]


def _trainings(runs: Sequence[Run]) -> str:
    seeds = ", ".join(str(run.seed) for run in runs)
    return (
        f"one training, seed {seeds}" if len(runs) == 1 else f"{len(runs)} trainings, seeds {seeds}"
    )
