"""What runs and where its files lie: the paths the rules and their inputs agree on."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from shielded_recrl.config import Config, VariantSettings, base_name, is_local
from shielded_recrl.data.settings import RAW_FILES, PrepareSettings, release
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.settings import flags, section
from shielded_recrl.shield.settings import BasisSettings, ShieldSettings

# Rules make everything below these folders; all other paths are the user's own.
MADE = ("results/", "resources/")


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

    def raw_paths(self, dataset: str) -> list[str]:
        """Paths of a dataset's interactions and, where there are any, its item metadata."""
        settings = self.config.datasets[dataset]
        if settings.source == "embedded":
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

    def raw_inputs(self, dataset: str) -> list[str]:
        """Raw files as inputs; those of the embedded world are one folder."""
        if self.config.datasets[dataset].source == "embedded":
            return [f"results/data/{dataset}/raw"]
        return present(*self.raw_paths(dataset))

    def raw_flags(self, dataset: str) -> str:
        """Raw files as flags of `data prepare`."""
        named = zip(("--interactions", "--metadata"), self.raw_paths(dataset), strict=False)
        return " ".join(f"{flag} {shlex.quote(path)}" for flag, path in named)

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
        return name if is_local(name) else f"resources/models/{name.replace('/', '--')}"

    def base_inputs(self, dataset: str, base: str) -> list[str]:
        """The base LM as inputs: the folder that a rule makes, or the files of the user's own."""
        path = self.base_path(dataset, base)
        return [path] if path.startswith(MADE) else self._model_files(path)

    def bertscore_inputs(self) -> list[str]:
        """Files of the model that BERTScore is computed with."""
        folder = self.config.evaluation.bertscore_model
        return [] if folder is None else self._model_files(folder)

    def scorer_inputs(self) -> list[str]:
        """Files of the audit's scorer where it is a folder; a hub id is pinned to its commit."""
        scorer = self.config.audit.scorer
        return self._model_files(scorer) if is_local(scorer) else []

    def _model_files(self, folder: str) -> list[str]:
        """Files of a model of the user's own, none where the folder is missing.

        Snakemake goes by times, and that of a folder stays when a file in it is written anew.
        """
        own = Path(self._given(folder))
        files = own.iterdir() if own.is_dir() else ()
        return sorted(str(p) for p in files if p.is_file() and not p.name.startswith("."))

    def revisions(self) -> dict[str, str]:
        """Folder name of each base LM from the hub -> the commit it is pinned to."""
        return {
            explainer.base.replace("/", "--"): explainer.revision
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

    def bases_inputs(self, dataset: str, base: str, tokens: str, bases: str) -> dict[str, str]:
        """What weighted bases read beside the base LM: the ranking they are weighted by."""
        if self.basis_settings[bases].weight == "plain":
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


def present(*paths: str) -> list[str]:
    """The paths a job can name as inputs: those a rule makes, and the user's own that exist.

    A missing file of the user then fails its own job with one line, and not the whole workflow.
    """
    return [path for path in paths if path.startswith(MADE) or Path(path).exists()]


def page_html(page: str) -> str:
    """Where a Markdown page lies as HTML: of a ranker's card, under its dataset's name.

    >>> page_html("results/audit/audit.md"), page_html("results/ranker/books/card.md")
    ('results/report/pages/audit.html', 'results/report/pages/ranker-books.html')
    """
    path = Path(page)
    name = path.stem if path.stem != "card" else f"ranker-{path.parent.name}"
    return f"results/report/pages/{name}.html"
