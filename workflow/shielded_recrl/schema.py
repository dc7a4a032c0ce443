"""Write what follows from the typed models: JSON schemas, commented default config, docs tables.

`python -m shielded_recrl.schema` rewrites the files in the current repository; a test keeps them in
step with the models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from shielded_recrl.config import Config
from shielded_recrl.files import write_text
from shielded_recrl.rl.logs import StepLog, table

HEADER = (
    "# The embedded default: synthetic data and a small LM, two CPU cores, minutes.\n"
    "# Every key with its default; a config of your own needs only the keys it changes:\n"
    "#   snakemake --cores 8 --configfile mine.yaml\n"
)


def documents() -> dict[str, str]:
    """Path in the repository -> text."""
    return {
        "workflow/schemas/config.schema.json": json.dumps(Config.model_json_schema(), indent=2)
        + "\n",
        "config/config.yaml": default_config(),
        "docs/configuration.md": docs_page(),
        "workflow/schemas/train.schema.json": json.dumps(StepLog.model_json_schema(), indent=2)
        + "\n",
        "docs/train_log.md": log_page(),
    }


def default_config() -> str:
    """config/config.yaml: all defaults, each with its description as a comment."""
    config = Config()
    blocks = [HEADER]
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            blocks.append(
                f"# {field.description}\n{name}:\n" + "\n".join(_section(value, 2)) + "\n"
            )
        else:
            blocks.append(f"# {field.description}\n" + _dump({name: _plain(value)}))
    return "\n".join(blocks)


def docs_page() -> str:
    """docs/configuration.md: every key, its default and what it means."""
    lines = [
        "# Configuration",
        "",
        "Every key of a config file, made from the typed model in "
        "`workflow/shielded_recrl/config.py` by `make schema`. "
        "A config is checked before any job starts; a mistake stops the run with one line that "
        "names the key. `--configfile FILE` is laid over `config/config.yaml`: mappings are merged, "
        "lists replaced. A variant changes keys of `explainer`, `shield` or `rl`.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    return (
        "\n".join(lines + [f"| `{k}` | {_cell(v)} | {d} |" for k, v, d in _rows(Config())]) + "\n"
    )


def log_page() -> str:
    """docs/train_log.md: every key of train.jsonl, its unit and what it means."""
    return (
        "# train.jsonl\n\n"
        "One row a PPO step, made from `StepLog` in `workflow/shielded_recrl/rl/logs.py` by "
        "`make schema`; the JSON schema is `workflow/schemas/train.schema.json`. Every value is a "
        "finite number; one that is not stops the run with a line that names step and key. "
        "TensorBoard and W&B show the same figures under the same names.\n\n" + table()
    )


def _rows(settings: BaseModel, prefix: str = "") -> list[tuple[str, Any, str]]:
    rows = []
    for name, field in type(settings).model_fields.items():
        value, key = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            rows += _rows(value, f"{key}.")
        else:
            rows.append((key, _plain(value), field.description))
            if name == "datasets":
                rows += _rows(value["books"], "datasets.<name>.")
    return rows


def _cell(value: Any) -> str:
    nested = isinstance(value, dict) or (
        isinstance(value, list) and value[:1] and isinstance(value[0], dict)
    )
    return "see `config/config.yaml`" if nested else f"`{json.dumps(value)}`"


def _section(settings: BaseModel, indent: int) -> list[str]:
    lines, pad = [], " " * indent
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines += [f"{pad}# {field.description}", f"{pad}{name}:", *_section(value, indent + 2)]
        else:
            text = (
                yaml.safe_dump(_plain(value), default_flow_style=True).removesuffix("...\n").strip()
            )
            lines.append(f"{pad}{name}: {text}  # {field.description}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _dump(value: Any) -> str:
    ((key, inner),) = value.items()
    if not isinstance(inner, (dict, list)):
        return f"{key}: {inner}\n"
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100)


if __name__ == "__main__":
    for path, text in documents().items():
        write_text(Path(path), text)
        print(path)
