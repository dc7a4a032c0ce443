"""The finished runs of a study, and the files each is served from.

In: config files and a folder of results. Out: a `Run`, all of whose files exist, or a `UserError`
of one line: what there is instead, or the command that makes what is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from shielded_recrl.config import Config, VariantSettings, load_config
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.study import MADE, Study

# What the Snakefile reads before any --configfile.
CONFIG = Path("config/config.yaml")
RESULTS = Path("results")
TEMPLATES = Path("resources/prompts")
DATA_FILES = (*(f"{name}.parquet" for name in "train valid test items users".split()), "stats.json")


@dataclass(frozen=True)
class Run:
    """A run of the study and where its parts lie."""

    dataset: str
    variant: str
    seed: int
    settings: VariantSettings
    config: Config
    data: Path
    ranker: Path
    base: Path
    readout: Path
    adapter: Path
    templates: Path = TEMPLATES


def read_config(files: Sequence[Path]) -> Config:
    """The config Snakemake has with `--configfile FILES`: laid over config/config.yaml in turn.

    Raises:
        UserError: a file is missing or damaged, or a value is wrong.
    """
    # Mappings are merged and lists replaced by the function that --configfile itself uses.
    from snakemake.utils import update_config

    merged: dict = {}
    defaults = [CONFIG] if CONFIG.is_file() else []
    for path in [*defaults, *(file for file in files if file != CONFIG or not defaults)]:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}; run in the folder of the study or give --config"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid YAML ({first_line(error)})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected a mapping of config keys")
        update_config(merged, values)
    return load_config(merged)


class Runs:
    """The runs of a study, by name."""

    def __init__(self, config: Config, results: Path = RESULTS, files: Sequence[Path] = ()):
        """
        Args:
            config: of the study.
            results: its folder of results.
            files: config files it was run with, for the commands that errors name.
        """
        # Where raw files come from is asked of nobody here.
        self.study = Study(config, downloads={})
        self.results = results
        self.files = [file for file in files if file != CONFIG]

    def variants(self, dataset: str) -> list[str]:
        """Variants run on a dataset, in the order of the study."""
        return list(dict.fromkeys(v for d, v, _ in self.study.runs if d == dataset))

    def seeds(self, dataset: str, variant: str) -> list[int]:
        """Seeds of a variant on a dataset, in the order of the study."""
        return [s for d, v, s in self.study.runs if (d, v) == (dataset, variant)]

    def data(self, dataset: str) -> Path:
        """Folder of a dataset.

        Raises:
            UserError: the study has no such dataset, or it is not prepared.
        """
        _require(dataset, self.study.datasets, "dataset", "the study")
        folder = f"results/data/{dataset}"
        self._require_files([f"{folder}/{name}" for name in DATA_FILES])
        return self._at(folder)

    def run(self, dataset: str, variant: str, seed: int | None = None) -> Run:
        """A finished run.

        Args:
            dataset: key of `datasets`.
            variant: key of `variants`.
            seed: None takes the first of the study.

        Raises:
            UserError: the study has no such run, or a file of it is missing.
        """
        _require(dataset, self.study.datasets, "dataset", "the study")
        _require(variant, self.variants(dataset), "variant", f"the study of {dataset}")
        seeds = self.seeds(dataset, variant)
        seed = seeds[0] if seed is None else seed
        _require(seed, seeds, "seed", f"{variant} on {dataset}")
        paths = self._paths(dataset, variant, seed)
        # The adapter is made last, from all the others.
        if not self._at(paths["adapter"]).exists():
            raise self._missing([paths["adapter"]])
        data = [f"{paths['data']}/{name}" for name in DATA_FILES]
        self._require_files([*data, *(paths[name] for name in ("base", "ranker", "readout"))])
        return Run(
            dataset=dataset,
            variant=variant,
            seed=seed,
            settings=self.study.variants[variant],
            config=self.study.config,
            **{name: self._at(path) for name, path in paths.items()},
        )

    def finished(self, dataset: str) -> list[tuple[str, int]]:
        """Variant and seed of every run on a dataset that has an adapter."""
        return [
            (v, s)
            for d, v, s in self.study.runs
            if d == dataset and self._at(self._paths(d, v, s)["adapter"]).exists()
        ]

    def _paths(self, dataset: str, variant: str, seed: int) -> dict[str, str]:
        """The files of a run by the names the rules give them."""
        shared = self.study.run_paths(dataset, variant)
        return {
            "data": f"results/data/{dataset}",
            "ranker": f"results/ranker/{dataset}/states.safetensors",
            "base": shared["base"],
            "readout": shared["readout"],
            "adapter": f"results/rl/{dataset}/{variant}/seed-{seed}/adapter",
        }

    def _at(self, path: str) -> Path:
        inside = path.startswith("results/")
        return self.results / path.removeprefix("results/") if inside else Path(path)

    def _require_files(self, paths: Sequence[str]) -> None:
        if missing := [path for path in paths if not self._at(path).exists()]:
            raise self._missing(missing)

    def _missing(self, paths: Sequence[str]) -> UserError:
        for path in paths:
            if not path.startswith(MADE):
                return UserError(f"{path}: no such folder; explainer.base of the config names it")
        words = ["snakemake", "--cores", "all", *paths]
        words += ["--configfile", *map(str, self.files)] if self.files else []
        return UserError(f"{self._at(paths[0])}: not made yet; make it with `{shlex.join(words)}`")


def _require(value: object, known: Sequence, what: str, where: str) -> None:
    if value not in known:
        raise UserError(f"--{what} {value}: not in {where}, which has {', '.join(map(str, known))}")
