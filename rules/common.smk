# Shared by all stages: the validated config, the paths of the study, and how jobs start.

import os
import sys
from pathlib import Path

import yaml
from snakemake_interface_common.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from shielded_recrl import provenance
from shielded_recrl.config import load_config
from shielded_recrl.audit.settings import ScorerSettings
from shielded_recrl.dialogue.settings import (
    AnnotateSettings,
    CriticTrainingSettings,
    EmotionTrainSettings,
    ResponsePromptSettings,
)
from shielded_recrl.dialogue.study import DialogueStudy
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.files import remove_partial, sha256
from shielded_recrl.machine import count_gpus, prepare_environment
from shielded_recrl.report.settings import TableSettings
from shielded_recrl.rl.settings import SlateSettings
from shielded_recrl.settings import flags, section
from shielded_recrl.shield.settings import EmbedSettings, RoleSettings
from shielded_recrl.storage import look_for_folders_anew
from shielded_recrl.study import BUCKET, Study, page_html

try:
    CONFIG = load_config(config)
except UserError as error:
    sys.exit(str(error))

DOWNLOADS = yaml.safe_load(Path(workflow.basedir, "resources/checksums.yaml").read_text())
STUDY = Study(CONFIG, DOWNLOADS)
BRANCH = DialogueStudy(CONFIG.dialogue, STUDY)
prepare_environment(os.environ, CONFIG.resources.loggers)

STORAGE = workflow.storage_settings.default_storage_provider
if STORAGE == "s3":
    look_for_folders_anew()
try:
    # One line now, not a page of tracebacks from every file of the plan.
    exists("results/manifest.json")
except WorkflowError as error:
    sys.exit(f"{': '.join(str(error).splitlines())}; check endpoint, bucket and keys")

# `resources: gpu` limits nothing without a cap: on one machine it is the number of its GPUs. On a
# cluster, where `--jobs` counts nodes, the GPUs of the login node say nothing.
GPUS = count_gpus() if workflow.resource_settings.nodes is None else 0
if GPUS and "gpu" not in workflow.resource_settings.resources:
    workflow.register_resource("gpu", GPUS)
if 1 < CONFIG.resources.gpu < GPUS:
    sys.exit(
        f"resources.gpu: a job of {CONFIG.resources.gpu} takes the first of the {GPUS} GPUs here, "
        f"beside its neighbour; give 1 or {GPUS}, or hide the others with CUDA_VISIBLE_DEVICES"
    )

LM_THREADS = CONFIG.resources.threads
LM_MEM_MB = CONFIG.resources.mem_mb
LM_RUNTIME = CONFIG.resources.runtime
LM_GPU = min(1, CONFIG.resources.gpu)
# Training alone shares its work among several GPUs, a replica on each.
PPO_GPU = CONFIG.resources.gpu


# What was half-written by those who are no more will never be whole.
onstart:
    remove_partial("results")
    remove_partial("resources/models")


onsuccess:
    remove_partial("results")
    remove_partial("resources/models")


def content(*paths):
    """Digests of committed files.

    They are parameters and no inputs: they lie beside the code wherever a job runs, and a fresh
    clone, in which all of them are new, reruns nothing.
    """
    return [sha256(Path(workflow.basedir, path))[:16] for path in paths]


TEMPLATES = "resources/prompts"
PROMPTS = content(f"{TEMPLATES}/prefix.txt", f"{TEMPLATES}/request.txt")
SPLITS = [
    f"results/data/{{dataset}}/{name}.parquet"
    for name in ("train", "valid", "test", "items", "users")
]


def code_digest(command):
    """Digest of the code behind a command, for a job that is looked at.

    Worked out then, not for every rule: each job of a cluster starts Snakemake twice.
    """
    return lambda wildcards: provenance.code_digest(command)


def grown(mem_mb):
    """Memory of a job: twice as much with each attempt, since it may have died of too little."""
    return lambda wildcards, attempt: mem_mb * 2 ** (attempt - 1)


def placed(inputs):
    """Inputs, each where it is: in the storage, if there is one, lies only what rules make."""
    if isinstance(inputs, dict):
        return {name: placed(some) for name, some in inputs.items()}
    if isinstance(inputs, list):
        return [placed(one) for one in inputs]
    if inputs.startswith(BUCKET):
        return storage(inputs)
    return inputs if STUDY.made(inputs) else local(inputs)


# A job finds its files where its inputs and outputs are: with a storage, that is not below results/.
# There a wildcard of an output has its constraint beside it, `{bases,bases-[^/]+}`, where another rule
# could make the file too: the S3 plugin loses those of `wildcard_constraints:`.
def data_folder(wildcards, input):
    """Folder of the prepared dataset."""
    return os.path.dirname(input.splits[0])


def base_folder(wildcards, input):
    """Folder of the base LM: what a rule made, or the user's own, which is used in place."""
    folder = STUDY.base_of(wildcards)
    return input.base[0] if STUDY.made(folder) else folder


def tables_folder(wildcards, input):
    """Folder of the prepared dialogues."""
    return os.path.dirname(input.tables[0])


def emotion_model(inputs, flag):
    """Folder of the emotion classifier as a flag, where one labels."""
    return f"--{flag} {os.path.dirname(inputs.model)}" if "model" in inputs.keys() else ""


def model_folder(folder, files):
    """Folder of a model: what a rule made, or the user's own, which is used in place."""
    return files[0] if STUDY.made(folder) else folder


def response_base(wildcards, input):
    """Folder of the base LM of responses."""
    return model_folder(BRANCH.base_folder(), input.base)


def critic_encoder(wildcards, input):
    """The critic's pretrained encoder as a flag, if there is one."""
    folder = BRANCH.encoder_folder()
    return f"--encoder {model_folder(folder, input.encoder)}" if folder else ""


def folders(paths):
    """Folders of some files, each once."""
    return list(dict.fromkeys(map(os.path.dirname, paths)))


def given(inputs, *names):
    """Those of the named inputs that a job has, as flags."""
    return " ".join(f"--{name} {inputs[name]}" for name in names if name in inputs.keys())


ROLE_FLAGS = flags(section(CONFIG.ranking, RoleSettings))
