# What every rule file uses: the validated config, paths, flags and the environment of jobs.

import os
import sys
from pathlib import Path

import yaml

LIBRARY = Path(workflow.basedir) / "workflow"
sys.path.insert(0, str(LIBRARY))

from shielded_recrl.config import load_config
from shielded_recrl.data.settings import RAW_FILES, PrepareSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.provenance import code_digest
from shielded_recrl.settings import flags, section
from shielded_recrl.shield.settings import RoleSettings

try:
    STUDY = load_config(config)
except UserError as error:
    sys.exit(str(error))

# Jobs find this Python first (a conda environment still goes before it) and the library beside it.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(LIBRARY), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# Waiting threads that spin slow the neighbouring jobs several times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# `resources: gpu` limits nothing without a cap: here it is the number of GPUs, where there are any.
GPUS = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
if GPUS and "gpu" not in workflow.resource_settings.resources:
    workflow.resource_settings.resources["gpu"] = GPUS

# Ordered as the study gives them, each once.
RUNS = list(
    dict.fromkeys(
        (cell.dataset, variant, seed)
        for cell in STUDY.study
        for variant in cell.variants
        for seed in cell.seeds
    )
)
VARIANTS = {name: STUDY.variant(name) for name in STUDY.variants}
TEMPLATES = "resources/prompts"
TEMPLATE_FILES = [f"{TEMPLATES}/{name}.txt" for name in ("prefix", "request")]
SPLITS = [
    f"results/data/{{dataset}}/{name}.parquet"
    for name in ("train", "valid", "test", "items", "users")
]


def base_name(explainer):
    """Folder name of a base LM in a precision; `embedded` for the embedded one in fp32."""
    name = explainer.base
    name = Path(name).name if name.startswith((".", "/")) else name.replace("/", "--")
    return name if explainer.precision == "fp32" else f"{name}-{explainer.precision}"


BASES = {base_name(variant.explainer): variant.explainer for variant in VARIANTS.values()}


def base_path(dataset, name):
    """Where a base LM lies: made, fetched, or the user's own folder, which is used in place."""
    base = BASES[name].base
    if base == "embedded":
        return f"results/explainer/{dataset}/embedded/model"
    if base.startswith((".", "/")):
        return base
    return f"resources/models/{base.replace('/', '--')}"


def existing(*paths):
    """The paths that exist. A missing file of the user fails its own job, not the whole workflow."""
    return [path for path in paths if path and Path(path).exists()]


def base_folder(wildcards):
    """`base_path` of a job whose path names dataset and base."""
    return base_path(wildcards.dataset, wildcards.base)


def made(path):
    """A path some rule makes, or the user's own where it exists."""
    return path if path.startswith(("results/", "resources/")) else existing(path)


def base_input(wildcards):
    """The base LM as an input."""
    return made(base_folder(wildcards))


def prompt_flags(wildcards):
    """Prompt lengths of a job whose path names them."""
    return flags(
        PromptSettings(
            history_items=STUDY.explainer.history_items, prompt_tokens=int(wildcards.tokens)
        )
    )


def precision_flag(wildcards):
    """Precision of a job whose path names the base."""
    return f"--precision {BASES[wildcards.base].precision}"


ROLE_FLAGS = flags(section(STUDY.ranking, RoleSettings))
LM_THREADS = STUDY.resources.threads
LM_MEM_MB = STUDY.resources.mem_mb
LM_GPU = STUDY.resources.gpu
