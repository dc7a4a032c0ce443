# Shared by all stages: the validated config, the paths of the study, and how jobs start.

import os
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from shielded_recrl.config import load_config
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.machine import count_gpus, prepare_environment
from shielded_recrl.provenance import code_digest
from shielded_recrl.report.settings import TableSettings
from shielded_recrl.settings import flags, section
from shielded_recrl.shield.settings import RoleSettings
from shielded_recrl.study import Study, page_html

try:
    CONFIG = load_config(config)
except UserError as error:
    sys.exit(str(error))

DOWNLOADS = yaml.safe_load(Path(workflow.basedir, "resources/checksums.yaml").read_text())
STUDY = Study(CONFIG, DOWNLOADS)
prepare_environment(os.environ, CONFIG.resources.loggers)

# `resources: gpu` limits nothing without a cap: here it is the number of GPUs, where there are any.
if count_gpus() and "gpu" not in workflow.resource_settings.resources:
    workflow.resource_settings.resources["gpu"] = count_gpus()

LM_THREADS = CONFIG.resources.threads
LM_MEM_MB = CONFIG.resources.mem_mb
LM_GPU = min(1, CONFIG.resources.gpu)
# Training alone shares its work among several GPUs, a replica on each.
PPO_GPU = CONFIG.resources.gpu

PROMPT_FILES = ["resources/prompts/prefix.txt", "resources/prompts/request.txt"]
SPLITS = [
    f"results/data/{{dataset}}/{name}.parquet"
    for name in ("train", "valid", "test", "items", "users")
]


def given(inputs, *names):
    """Those of the named inputs that a job has, as flags."""
    return " ".join(f"--{name} {inputs[name]}" for name in names if name in inputs.keys())


ROLE_FLAGS = flags(section(CONFIG.ranking, RoleSettings))
