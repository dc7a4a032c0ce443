"""A release of one adapter: the PEFT folder as it stands, its card and its certificate.

In: a run with its audit, stats.json of its dataset, the prompt templates. Out: a folder with
adapter_config.json, adapter_model.safetensors, certificate.json and README.md, a model card (Mitchell
et al. 2019) whose metadata block the Hugging Face Hub reads. `PeftModel.from_pretrained` takes the
folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from shielded_recrl.audit.policy import KEYS
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.files import atomic, read_json, seal
from shielded_recrl.hub import is_local
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.certificates import UNMERGEABLE, merge_of
from shielded_recrl.report.columns import Row, row
from shielded_recrl.report.runs import COHORTS, Run, load_runs
from shielded_recrl.report.settings import ReportSettings
from shielded_recrl.report.study import title

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CARD, CERTIFICATE = "README.md", "certificate.json"
EMBEDDED = "embedded"


class Terms(NamedTuple):
    """Whose data a dataset is made of, and under which terms.

    Attributes:
        source: the owner's name for it.
        terms: what one may do with it.
        name: of the licence, as metadata of the Hub wants it.
        link: to the terms.
    """

    source: str
    terms: str
    name: str
    link: str


TERMS = {
    "ml25m": Terms(
        "MovieLens (GroupLens, University of Minnesota)",
        "GroupLens' licence: acknowledge it in publications, imply no endorsement, redistribute "
        "under the same terms only, and ask before any commercial use.",
        "grouplens",
        "https://files.grouplens.org/datasets/movielens/ml-25m-README.html",
    ),
    "books": Terms(
        "Amazon reviews (McAuley Lab, University of California San Diego)",
        "For academic research; reviews and metadata stay those of their owners, and nothing of "
        "them is redistributed here.",
        "ucsd-academic",
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html",
    ),
    "steam": Terms(
        "Steam-200K (Tamber, on Kaggle), with item metadata of UC San Diego",
        "Steam-200K: Open Database License 1.0 (attribution, share alike); item metadata: for "
        "academic research.",
        "odbl",
        "https://opendatacommons.org/licenses/odbl/1-0/",
    ),
}
# File of an edition that the Hub has under its owner's name -> that name.
ON_THE_HUB = {"Books.csv.gz": "McAuley-Lab/Amazon-Reviews-2023"}
AUDITED = {
    "toxicity_mean": "Mean toxicity of a text",
    "toxicity_p95": "95th percentile of toxicity",
    "gini_change": "Change of the Gini coefficient of exposure",
    "group_gap": "Largest gap between two user groups",
    "leak_rate": "Share of texts that leak a user's id or name",
    "grounding": "Fit of a text to its own item less that to another",
    "injection_excess": "Success of hidden instructions less that of a harmless twin",
}


class Base(NamedTuple):
    """The base LM of an adapter.

    Attributes:
        name: `embedded`, a hub id, or the name of a local folder.
        revision: commit of the hub repository.
        precision: the weights it was trained on.
        hub: whether the name is a hub id.
    """

    name: str
    revision: str | None
    precision: str
    hub: bool


def main(
    *,
    run: Path,
    audit: Path,
    stats: Path,
    templates: Path,
    out: Path,
    base: str = EMBEDDED,
    revision: str | None = None,
    precision: Precision = "fp32",
) -> None:
    """Make a release folder of a run's adapter, with a model card.

    Args:
        run: folder of the run.
        audit: audit.json of the run.
        stats: stats.json of its dataset.
        templates: folder of the prompt templates.
        out: folder to write.
        base: `embedded`, a local folder or a hub id, as in the config.
        revision: commit of the hub repository.
        precision: precision of the base.
    """
    (loaded,) = load_runs([run], [audit], [stats])
    about = base_of(base, revision, precision)
    text = str(card(loaded, about, prompt_text(templates)))
    with atomic(out) as partial:
        partial.mkdir()
        release(run, about, partial)
        (partial / CARD).write_text(text, encoding="utf-8")
    print(f"{out}: adapter of {loaded.dataset}/{loaded.variant}/seed-{loaded.seed} with its card")


def base_of(base: str, revision: str | None, precision: str) -> Base:
    """The base LM as the card may name it: of a local folder, its name alone.

    Raises:
        UserError: a hub id without the commit it is pinned to.
    """
    if base == EMBEDDED:
        return Base(base, None, precision, hub=False)
    if is_local(base):
        return Base(PurePosixPath(base).name, None, precision, hub=False)
    if revision is None:
        raise UserError(f"--revision: hub id {base!r} needs the commit it is pinned to")
    return Base(base, revision, precision, hub=True)


def release(run: Path, base: Base, out: Path) -> None:
    """Copy adapter and certificate of a run into a folder, byte by byte.

    Only the path of the base in adapter_config.json, which no other machine has, is replaced by its
    name, and the folder sealed again. That of the embedded base stays, as the study makes it there,
    unless it is absolute.

    Raises:
        UserError: the run has no adapter.
    """
    adapter = run / "adapter"
    for name in (CONFIG, WEIGHTS):
        if not (adapter / name).is_file():
            raise UserError(f"{adapter / name}: no such file; train the run again")
        shutil.copyfile(adapter / name, out / name)
    shutil.copyfile(run / CERTIFICATE, out / CERTIFICATE)
    config = read_json(adapter / CONFIG)
    path = str(config.get("base_model_name_or_path") or "")
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    if absolute or base.name not in (EMBEDDED, path):
        config["base_model_name_or_path"] = base.name
        (out / CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        seal(out)


def prompt_text(templates: Path) -> str:
    """The whole prompt with its slots, as the adapter has to be asked.

    Raises:
        UserError: a template is missing.
    """
    parts = []
    for name in ("prefix.txt", "request.txt"):
        if not (templates / name).is_file():
            raise UserError(f"{templates / name}: no such file; give the folder of the templates")
        parts.append((templates / name).read_text(encoding="utf-8"))
    return "".join(parts)


def card(run: Run, base: Base, prompt: str) -> Any:
    """The model card, a `huggingface_hub.ModelCard`.

    Args:
        run: the run, with audit and statistics.
        base: its base LM.
        prompt: the whole prompt with its slots.
    """
    from huggingface_hub import ModelCard

    values = row(run, ReportSettings())
    sections = [
        f"# Explanations for {title(run.stats | {'dataset': run.dataset})}: `{run.variant}`, "
        f"seed {run.seed}",
        _what_it_is(run, values, base),
        "## What is promised, and what is only measured",
        *_certificate(run),
        "## How to load it",
        *_how_to_load(run, base, prompt),
        "## Training data",
        *_data(run),
        "## Results on held-out users",
        *_results(run, values),
        "## Audits",
        *_audits(run),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(run, base)),
    ]
    body = "\n\n".join(sections)
    return ModelCard(f"---\n{metadata(run, base).to_yaml()}\n---\n\n{body}\n")


def metadata(run: Run, base: Base) -> Any:
    """The metadata block, a `huggingface_hub.ModelCardData`.

    base_model and datasets take ids of the Hub only: an embedded or local base is named in the text
    alone.
    """
    from huggingface_hub import ModelCardData

    synthetic = run.stats["synthetic"]
    terms = TERMS.get(run.dataset)
    if synthetic and base.name == EMBEDDED:
        licence = {"license": "mit"}
    elif synthetic or terms is None:
        licence = {"license": "other"}
    else:
        licence = {"license": "other", "license_name": terms.name, "license_link": terms.link}
    hub = [] if synthetic else [ON_THE_HUB[f] for f in run.stats["inputs"] if f in ON_THE_HUB]
    related = {"base_model_relation": "adapter"} if base.hub else {}
    return ModelCardData(
        base_model=base.name if base.hub else None,
        datasets=hub or None,
        language="en",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[
            *("lora", "ppo", "recommendation", "explainable-recommendation", "shielded-recrl"),
            *(["synthetic-data"] if synthetic else []),
        ],
        **licence,
        **related,
    )


def _what_it_is(run: Run, values: Row, base: Base) -> str:
    return (
        "A LoRA adapter that writes a sentence or two on why a user may like an item that a "
        f"recommender chose. It was trained by PPO for {values['steps']} steps (shield: "
        f"`{values['shield']}`; {values['trainable_share']:.2%} of all parameters) on "
        f"{_base_in_words(run, base)}, in {base.precision}. The same LM, read at the end of the "
        "user's history, also takes part in the ranking (weight of its read-out, gamma: "
        f"{values['gamma']:g}), so what training did to the ranking is part of this card."
    )


def _base_in_words(run: Run, base: Base) -> str:
    digest = f"SHA-256 of its weights: `{run.certificate['hashes']['base']}`"
    if base.hub:
        return f"`{base.name}` at commit `{base.revision}` ({digest})"
    if base.name == EMBEDDED:
        return f"the small Llama that the pipeline pretrains on the same dataset ({digest})"
    return f"the base LM in a local folder `{base.name}` ({digest})"


def _certificate(run: Run) -> Iterable[str]:
    certificate = run.certificate
    yield f"> {in_cell(certificate['sentence'])}"
    yield (
        "Verdict: "
        + ", ".join(
            f"**{certificate['verdict'][role]}** for {people} users"
            for role, people in zip(COHORTS, ("protected", "held-out"), strict=True)
        )
        + f". The rule: {in_cell(certificate['rule'])} The whole certificate, with hashes of all it speaks "
        f"of, is [{CERTIFICATE}]({CERTIFICATE})."
    )
    if certificate["kind"] in UNMERGEABLE:
        yield "Do not merge it: the promise rests on keeping the adapter out of the ranking."
        return
    measured = []
    for precision in certificate.get("merges") or {}:
        merge, reason = merge_of(run, precision)
        cells = ["", ""]
        if merge is not None:
            heldout = merge["heldout"]
            cells = [f"{heldout['top10_identical']:.1%}", f"{heldout['max_score_change']:.3g}"]
        measured.append([precision, *cells, "" if reason is None else in_cell(reason)])
    if measured:
        yield "A merge rounds weights anew, and the certificate above says nothing about it:"
        header = ["merged into", "top 10 identical", "largest score change", "remark"]
        yield "\n".join(table(header, measured))


def _how_to_load(run: Run, base: Base, prompt: str) -> Iterable[str]:
    if base.hub:
        where, extra = f'"{base.name}"', f', revision="{base.revision}"'
    elif base.name == EMBEDDED:
        where, extra = f'"results/explainer/{run.dataset}/embedded/model"', ""
    else:
        where, extra = f'"{base.name}"', ""
    yield (
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = {where}\n"
        f"tokenizer = AutoTokenizer.from_pretrained(base{extra})\n"
        f"model = AutoModelForCausalLM.from_pretrained(base{extra})\n"
        'model = PeftModel.from_pretrained(model, "path/to/this/folder")\n'
        "```"
    )
    if base.precision != "fp32":
        yield f"Load the base in {base.precision}, as it was in training."
    yield (
        "It was trained on this prompt and no other; `history` are the user's latest titles, "
        f"`title` and `categories` those of the item:\n\n```text\n{prompt}\n```"
    )
    if run.certificate["kind"] == "separate":
        yield "Rank with the adapter off (`model.disable_adapter()`): only then the promise holds."
    if run.certificate["kind"] == "activated":
        yield (
            "The adapter acts from the request on. Rank from the prefix alone, and give the "
            "request in the same prompt as it: PEFT looks for the tokens that begin it."
        )


def _data(run: Run) -> Iterable[str]:
    stats = run.stats
    if stats["synthetic"]:
        yield (
            "**Synthetic.** Users, items and interactions were made by this project; only their "
            "format is that of the published dataset. No terms but the project's MIT licence apply."
        )
    elif run.dataset in TERMS:
        terms = TERMS[run.dataset]
        yield (
            f"Files in the format of {terms.source}. Terms: {terms.terms} See <{terms.link}>. Who "
            "uses this adapter has to keep them."
        )
    yield (
        f"{stats['users']:,} users, {stats['items']:,} items, {stats['kept']:,} interactions; "
        + ("ordered in time." if stats["sequential"] else "without an order: split at random.")
        + " PPO reads the train split, and the simulators that judge it below are in no reward."
    )
    read = [[in_cell(name), f"`{digest}`"] for name, digest in stats["inputs"].items()]
    yield "\n".join(table(["file", "SHA-256"], read))


def _results(run: Run, values: Row) -> Iterable[str]:
    def pair(name: str, form: str = ".3f") -> list[str]:
        return [_number(values[name.format(when)], form) for when in ("before", "after")]

    def interval(name: str, form: str) -> str:
        return _interval(values[name], values[f"{name}_low"], values[f"{name}_high"], form)

    identical = [
        None if share is None else 1 - share
        for share in (values[f"drift_heldout_top10_changed{end}"] for end in ("", "_high", "_low"))
    ]
    yield "\n".join(
        table(
            ["", "before", "after", "change (95% interval)"],
            [
                *map(_clicks, run.evaluation.get("simulators", {}).items()),
                [
                    "Simulator's quality of a text",
                    *pair("quality_{}"),
                    "",
                ],
                [
                    "Claim precision",
                    *pair("claim_precision_{}"),
                    interval("claim_precision_change", "+.3f"),
                ],
                ["Distinct texts over texts", *pair("unique_{}"), ""],
                ["Words of a text", *pair("words_{}", ".1f"), ""],
                [
                    "Served NDCG@10",
                    *pair("served_{}_ndcg@10", ".4f"),
                    interval("ndcg_change", "+.4f"),
                ],
                ["Users whose top 10 is identical", "", _interval(*identical, ".1%"), ""],
                ["KL per token to the base, nats", "", _number(values["kl"], ".3f"), ""],
            ],
        )
    )
    yield (
        f"SASRec alone, without any LM, has an NDCG@10 of {values['ranker_ndcg@10']:.4f}. Click "
        "rates are of simulated users; their change is a ratio. Intervals draw whole users, that of "
        "the top 10 is Clopper-Pearson's; all are for this one seed."
    )


def _clicks(simulated: tuple[str, dict[str, float | None]]) -> list[str]:
    name, clicks = simulated
    relative = _interval(*(clicks[f"relative{end}"] for end in ("", "_low", "_high")), ".3f")
    rates = [_number(clicks[when], ".3f") for when in ("before", "after")]
    return [f"Click rate, simulator `{name}`", *rates, f"{relative} times"]


def _audits(run: Run) -> Iterable[str]:
    figures = [[AUDITED[name], _figure(run, key)] for name, key in KEYS.items()]
    yield "\n".join(table(["after training", "figure (95% interval)"], figures))
    found = run.audit.get("findings")
    if not isinstance(found, list):
        raise UserError(
            f"{run.folder}: its audit has no list 'findings'; make it again with `audit run`"
        )
    if found:
        yield "Findings:\n\n" + "\n".join(f"- {in_cell(finding)}" for finding in found)
    else:
        yield "No findings."


def _limits(run: Run, base: Base) -> list[str]:
    lines = [
        "Clicks are simulated. Nobody was shown these texts, and a simulator's gain is not a "
        "product's.",
        "A text can name what its item is not: read claim precision above before you show any.",
        "The certificate is about the base, precision, prompts and read-out it names. After a merge, "
        "a quantisation or a change of prompt, certify again.",
        "Held-out statements hold for users like the held-out ones, of this dataset and time.",
        "English only; audits of toxicity and leaks find what their lists and scorers know.",
        "One seed: other seeds of the study may differ by more than these intervals.",
    ]
    if run.stats["synthetic"]:
        lines.append(
            "The data are synthetic: nothing follows for real readers, viewers or players."
        )
    if not run.stats["sequential"]:
        lines.append("The source tells no order: a history here is a set put in random order.")
    if not base.hub:
        lines.append("The base LM is not on the Hub: without the study it cannot be loaded.")
    return lines


def _figure(run: Run, key: str) -> str:
    """A figure of a run's audit by its dotted path, with its interval.

    Raises:
        UserError: the figure is there, but lacks a number.
    """
    found: Any = run.audit
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return "not evaluable"
    try:
        if "leak_rate" in found:
            rate, most, texts = (found[name] for name in ("leak_rate", "leak_rate_upper", "texts"))
            return f"{rate:.4f} of {texts:,} texts (at most {most:.4f})"
        return _interval(*(found[end] for end in ("mean", "low", "high")), ".4f")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.folder}: {key} of its audit lacks a number ({error}); make it again"
        ) from None


def _interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None or low is None or high is None:
        return _number(value, form)
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _number(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)
