"""What runs and where its files lie: the paths the rules and their inputs agree on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shielded_recrl.audit.settings import EMBEDDED_SCORER
from shielded_recrl.config import Config, VariantSettings, base_name
from shielded_recrl.data.settings import RAW_FILES, PrepareSettings, release
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.hub import fetched_name, is_local, model_folder
from shielded_recrl.settings import flags, section
from shielded_recrl.shield.settings import BasisSettings, ShieldSettings

# Rules make everything below these folders; all other paths are the user's own.
MADE = ("results/", "resources/")
# What lies in a bucket: only the storage of Snakemake can say whether it is there.
BUCKET = "s3://"


class Study:
    """Runs, variants and paths of a config."""

    def __init__(self, config: Config, downloads: dict[str, dict[str, dict[str, Any]]]):
        """
        Args:
            config: the validated config.
            downloads: release -> file name -> url, size and digest of the published files.
        """
        self.config = config
        self.downloads = downloads
        # What rule `download` makes: files without an address are fetched by the user.
        self.fetched = {
            f"resources/raw/{published}/{file}"
            for published, files in downloads.items()
            for file, about in files.items()
            if about.get("url")
        }
        # Ordered as the config gives them, each once.
        self.runs = list(
            dict.fromkeys(
                (cell.dataset, variant, seed)
                for cell in config.study
                for variant in cell.variants
                for seed in cell.seeds
            )
        )
        self.datasets = list(dict.fromkeys(dataset for dataset, _, _ in self.runs))
        self.variants = {name: config.variant(name) for name in config.variants}
        self.bases = {
            base_name(variant.explainer): variant.explainer for variant in self.variants.values()
        }
        # What a job finds behind the names of a LoRA init and of bases in its path.
        self.lora_flags = {lora_name(v): _lora_flags(v) for v in self.variants.values()}
        self.basis_settings = {
            bases_name(v.shield): section(v.shield, BasisSettings) for v in self.variants.values()
        }
        self.moment_settings = {
            moments_name(settings): settings.moments for settings in self.basis_settings.values()
        }

    def raw_paths(self, dataset: str) -> list[str]:
        """Paths of a dataset's interactions and, where there are any, its item metadata."""
        settings = self.config.datasets[dataset]
        if self._embedded(dataset):
            return [f"results/data/{dataset}/raw/{name}" for name in RAW_FILES[dataset]]
        if settings.source == "download":
            return self._published(dataset)
        source = Path(settings.source)
        if source.is_dir():
            return [self._given(str(source / name)) for name in RAW_FILES[dataset]]
        metadata = settings.metadata
        if metadata == "download":
            metadata = self._published(dataset)[1]
        elif metadata:
            metadata = self._given(metadata)
        return [path for path in (self._given(settings.source), metadata) if path]

    def _given(self, path: str) -> str:
        """A path from the config; absolute where a rule could take it for its own output."""
        plain = os.path.normpath(path)
        if plain in self.fetched:
            return plain
        return os.path.abspath(plain) if plain.startswith(MADE) else path

    def _published(self, dataset: str) -> list[str]:
        """Where `download` puts the files of a dataset's release."""
        name = release(dataset, self.config.datasets[dataset].edition)
        return [f"resources/raw/{name}/{file}" for file in self.downloads[name]]

    def made(self, path: str) -> bool:
        """Whether a rule makes a path; the user's own may lie among the fetched files too."""
        return path in self.fetched or path.startswith(("results/", "resources/models/"))

    def raw_inputs(self, dataset: str) -> dict[str, str]:
        """Named inputs of `data prepare`: its raw files, or the folder of the embedded world."""
        if self._embedded(dataset):
            return {"world": f"results/data/{dataset}/raw"}
        named = zip(("interactions", "metadata"), self.raw_paths(dataset), strict=False)
        return {name: path for name, path in named if present(path)}

    def _embedded(self, dataset: str) -> bool:
        return self.config.datasets[dataset].source == "embedded"

    def raw_flags(self, dataset: str, inputs: Mapping[str, str]) -> str:
        """Raw files as flags of `data prepare`.

        Args:
            dataset: its name.
            inputs: where the job finds what `raw_inputs` names.
        """
        named = dict(zip(("interactions", "metadata"), self.raw_paths(dataset), strict=False))
        if "world" in inputs:
            named = {name: f"{inputs['world']}/{Path(path).name}" for name, path in named.items()}
        found = named | {name: inputs[name] for name in named if name in inputs}
        return " ".join(f"--{name} {shlex.quote(path)}" for name, path in found.items())

    def download_flags(self, published: str, file: str) -> str:
        """What is known of a file of a release, as flags of `data download`."""
        about = self.downloads[published][file]
        known = {
            "url": about["url"],
            "size": about.get("bytes"),
            "max-bytes": about.get("max_bytes"),
            "sha256": about.get("sha256"),
            "md5": about.get("md5"),
        }
        return " ".join(
            f"--{flag} {shlex.quote(str(value))}" for flag, value in known.items() if value
        )

    def prepare_flags(self, dataset: str) -> str:
        """Settings of `data prepare`."""
        settings = self.config.datasets[dataset]
        synthetic = settings.source == "embedded"
        return f"--synthetic {synthetic} {flags(section(settings, PrepareSettings))}"

    def base_path(self, dataset: str, base: str) -> str:
        """Folder of a base LM: made, fetched, or the user's own, which is used in place."""
        name = self.bases[base].base
        if name == "embedded":
            return f"results/explainer/{dataset}/embedded/model"
        return model_folder(name)

    def base_of(self, job: Mapping[str, str]) -> str:
        """Folder of the base LM of a job, whose wildcards name the base or the variant."""
        base = job.get("base") or base_name(self.variants[job["variant"]].explainer)
        return self.base_path(job["dataset"], base)

    def base_inputs(self, dataset: str, base: str) -> list[str]:
        """The base LM as inputs: the folder that a rule makes, or the files of the user's own."""
        path = self.base_path(dataset, base)
        return [path] if self.made(path) else self.model_files(path)

    def bertscore_inputs(self) -> list[str]:
        """Files of the model that BERTScore is computed with."""
        folder = self.config.evaluation.bertscore_model
        return [] if folder is None else self.model_files(folder)

    def scorer_inputs(self) -> list[str]:
        """Files of the audit's scorer where it is a folder; a hub id is pinned to its commit."""
        scorer = self.config.audit.scorer
        return self.model_files(scorer) if is_local(scorer) else []

    def model_files(self, folder: str) -> list[str]:
        """Files of a model of the user's own, none where the folder is missing.

        Snakemake goes by times, and that of a folder stays when a file in it is written anew.
        """
        own = Path(self._given(folder))
        files = own.iterdir() if own.is_dir() else ()
        return sorted(str(p) for p in files if p.is_file() and not p.name.startswith("."))

    def revisions(self) -> dict[str, str]:
        """Folder name of each base LM from the hub -> the commit it is pinned to."""
        return {
            fetched_name(explainer.base): explainer.revision
            for explainer in self.bases.values()
            if explainer.revision
        }

    def run_paths(self, dataset: str, variant: str) -> dict[str, str]:
        """What a run of a variant reads: base, LoRA init, read-out and bases."""
        settings = self.variants[variant]
        explainer = settings.explainer
        base = base_name(explainer)
        shield = f"results/shield/{dataset}/{base}/prompt-{explainer.prompt_tokens}"
        return {
            "base": self.base_path(dataset, base),
            "adapter": f"results/explainer/{dataset}/{base}/{lora_name(settings)}",
            "readout": f"{shield}/readout.safetensors",
            "bases": f"{shield}/{bases_name(settings.shield)}.safetensors",
        }

    def shared_files(self) -> list[str]:
        """What rules make below results/ for the runs: worlds, base LMs, LoRA inits, read-outs, bases."""
        found = [f"results/data/{d}/raw" for d in self.datasets if self._embedded(d)]
        for dataset, variant, _ in self.runs:
            paths = self.run_paths(dataset, variant)
            bases = self._bases(self.variants[variant].shield)
            found += [paths[name] for name in ("base", "adapter", "readout", *bases)]
            found.append(paths["readout"].replace(".safetensors", ".json"))
        return list(dict.fromkeys(path for path in found if path.startswith("results/")))

    def parts(self, folder: str, suffix: str = "") -> dict[str, list[str]]:
        """Named input of a job that joins what shards left in a folder; none where it does all."""
        shards = self.config.resources.shards
        if shards == 1:
            return {}
        return {"parts": [f"{folder}/shard-{index}-of-{shards}{suffix}" for index in range(shards)]}

    def text_parts(self, dataset: str, variant: str, seed: str) -> dict[str, list[str]]:
        """What an evaluation reads of shards."""
        return self.parts(f"results/rl/{dataset}/{variant}/seed-{seed}/texts", ".json")

    def answer_parts(self, dataset: str, variant: str, seed: str) -> dict[str, list[str]]:
        """What the probes of a run are joined from."""
        return self.parts(f"results/audit/{dataset}/{variant}/seed-{seed}/answers", ".json")

    def score_parts(self, dataset: str, variant: str, seed: str) -> dict[str, list[str]]:
        """What an audit reads of shards; none where the embedded scorer judges: it takes seconds."""
        if self.config.audit.scorer == EMBEDDED_SCORER:
            return {}
        return self.parts(f"results/audit/{dataset}/{variant}/seed-{seed}/scores", ".json")

    def readout_inputs(self, dataset: str, base: str, tokens: str) -> dict[str, list[str]]:
        """What the read-out reads of shards."""
        return self.parts(f"results/shield/{dataset}/{base}/prompt-{tokens}/states")

    def bases_inputs(
        self, dataset: str, base: str, tokens: str, bases: str
    ) -> dict[str, str | list[str]]:
        """What bases read beside the base LM: what their moments do, and these, if of shards."""
        moments = moments_name(self.basis_settings[bases])
        parts = self.parts(f"results/shield/{dataset}/{base}/prompt-{tokens}/{moments}")
        return {**self.moments_inputs(dataset, base, tokens, moments), **parts}

    def moments_inputs(self, dataset: str, base: str, tokens: str, moments: str) -> dict[str, str]:
        """What weighted moments read beside the base LM: the ranking they are weighted by."""
        if self.moment_settings[moments].weight == "plain":
            return {}
        return {
            "readout": f"results/shield/{dataset}/{base}/prompt-{tokens}/readout.safetensors",
            "ranker": f"results/ranker/{dataset}/states.safetensors",
        }

    def train_inputs(self, dataset: str, variant: str) -> dict[str, str | list[str]]:
        """Named inputs of training: bases only where the shield reads them."""
        paths = self.run_paths(dataset, variant)
        wanted = ["adapter", "readout", *self._bases(self.variants[variant].shield)]
        return {name: paths[name] for name in wanted} | self.probe_inputs(dataset, variant)

    def evaluate_inputs(self, dataset: str, variant: str) -> dict[str, str | list[str]]:
        """Named inputs of evaluation."""
        paths = self.run_paths(dataset, variant)
        wanted = ["readout", *self._bases(self.variants[variant].shield)]
        return {name: paths[name] for name in wanted} | self.probe_inputs(dataset, variant)

    def probe_inputs(self, dataset: str, variant: str) -> dict[str, list[str]]:
        """Named inputs of the probes beside the trained adapter."""
        return {"base": self.base_inputs(dataset, base_name(self.variants[variant].explainer))}

    def _bases(self, shield: ShieldSettings) -> list[str]:
        return ["bases"] if shield.kind in ("nullspace", "random") else []

    def prompt_flags(self, tokens: str) -> str:
        """Prompt lengths of a job whose path names them."""
        history = self.config.explainer.history_items
        return flags(PromptSettings(history_items=history, prompt_tokens=int(tokens)))

    def run_flags(self, variant: str) -> str:
        """Lengths, precision and shield as flags, which training and evaluation share."""
        shield = flags(self.variants[variant].shield, prefix="shield.")
        return f"{self.probe_flags(variant)} {shield}"

    def probe_flags(self, variant: str) -> str:
        """Lengths and precision as flags."""
        explainer = self.variants[variant].explainer
        return (
            f"{flags(section(explainer, PromptSettings))} "
            f"--explanation-tokens {explainer.explanation_tokens} "
            f"--precision {explainer.precision}"
        )

    def card_flags(self, variant: str) -> str:
        """What a model card says of the base LM, as flags."""
        explainer = self.variants[variant].explainer
        return (
            f"--base {shlex.quote(explainer.base)} --revision {explainer.revision} "
            f"--precision {explainer.precision}"
        )


def lora_name(variant: VariantSettings) -> str:
    """Folder name of a LoRA init."""
    explainer, shield = variant.explainer, variant.shield
    parts = [f"lora-r{explainer.lora_rank}-a{explainer.lora_alpha}"]
    parts += [shield.scope] * (shield.scope != "all")
    parts += [shield.kind] * (shield.kind == "activated")
    return "-".join(parts)


def _lora_flags(variant: VariantSettings) -> str:
    explainer, shield = variant.explainer, variant.shield
    return (
        f"--lora-rank {explainer.lora_rank} --lora-alpha {explainer.lora_alpha} "
        f"--scope {shield.scope} --activated {shield.kind == 'activated'}"
    )


def bases_name(shield: BasisSettings) -> str:
    """File name of bases, without suffix."""
    size = f"rank{shield.rank}" if shield.rank else f"{shield.energy}"
    return f"bases-{size}" if shield.weight == "plain" else f"bases-{shield.weight}-{size}"


def moments_name(shield: BasisSettings) -> str:
    """Folder name of the moments that bases are made of; bases may share them."""
    moments = shield.moments
    return f"moments-{moments.weight}" + "-complete" * moments.complete


def present(path: str) -> bool:
    """Whether a job can name a path as an input: a rule makes it, or it exists.

    A missing file of the user then fails its own job with one line, and not the whole workflow.
    """
    return path.startswith((*MADE, BUCKET)) or Path(path).exists()


def page_html(page: str) -> str:
    """Where a Markdown page lies as HTML: of a ranker's card, under its dataset's name.

    >>> page_html("results/audit/audit.md"), page_html("results/ranker/books/card.md")
    ('results/report/pages/audit.html', 'results/report/pages/ranker-books.html')
    """
    path = Path(page)
    name = path.stem if path.stem != "card" else f"ranker-{path.parent.name}"
    return f"results/report/pages/{name}.html"
