"""Is this machine fit for a study? One line for each thing that would stop it hours later.

In: configs laid over config/config.yaml, and the machine. Out: a table of what is ok, what is doubtful
and what fails, with how to mend it; exit status 1 where something fails.

Nothing is downloaded or written. Of tokens and keys only the names are read out.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from shielded_recrl.cluster.footprint import (
    GB,
    Shape,
    bases_bytes,
    job_of,
    peak_bytes,
    shape_of,
    weight_bytes,
)
from shielded_recrl.config import load_config
from shielded_recrl.data.settings import release
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.hub import is_local, model_folder, on_hub
from shielded_recrl.machine import HF_CACHE
from shielded_recrl.study import Study

DEFAULT = Path("config/config.yaml")
LOCK = Path("requirements.lock")
# Packages whose versions decide numbers or formats of files.
LOCKED = ("torch", "transformers", "peft", "safetensors", "snakemake", "polars", "bitsandbytes")
OPTIONAL = ("bitsandbytes",)
QUANT = "make pod-setup, or .venv/bin/pip install -c requirements.lock -e '.[quant]'"
QUERY = "--query-gpu=name,memory.total,memory.used,driver_version"
# Sizes of bases that are not fetched yet; a test holds them to the model's own config.
SHAPES = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Shape(
        linear=968_884_224,
        other=131_164_160,
        lora=788_480,
        layers=22,
        hidden=2048,
        keys=256,
        feedforward=5632,
        vocabulary=32_000,
    )
}
# Copies of an adapter a run keeps beside its snapshots: adapter, release, a checkpoint with moments.
ADAPTER_COPIES = 5


class Line(NamedTuple):
    """One line of the table."""

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    mend: str = ""


class Gpu(NamedTuple):
    """A GPU as nvidia-smi shows it, sizes in bytes."""

    name: str
    total: float
    used: float
    driver: str


class Driver(NamedTuple):
    """What nvidia-smi says; `problem` where it says nothing of use."""

    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] | None = None
    problem: str = ""


def main(*, config: tuple[Path, ...] = ()) -> None:
    """Check this machine against a config, from the folder of the repository.

    Args:
        config: config files, laid over config/config.yaml one after the other.
    """
    study = read_study(config)
    lines = list(examine(study))
    width = max(len(line.what) for line in lines)
    for line in lines:
        mend = f" -- {line.mend}" if line.mend else ""
        print(f"{line.status:<4}  {line.what:<{width}}  {line.found}{mend}")
    failed = sum(line.status == "fail" for line in lines)
    if failed:
        raise UserError(
            f"{failed} of {len(lines)} checks failed; mend the lines that begin with fail"
        )
    print(f"fit for {' + '.join(map(str, config or (DEFAULT,)))}")


def read_study(files: Iterable[Path]) -> Study:
    """The study of config files laid over the default, as Snakemake lays them.

    Raises:
        UserError: a file is missing or damaged, or the config is refused.
    """
    from snakemake.utils import update_config

    values: dict = {}
    for path in (DEFAULT, *files):
        try:
            update_config(values, yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
            raise UserError(f"{path}: no mapping in YAML ({first_line(error)})") from error
    downloads = yaml.safe_load(Path("resources/checksums.yaml").read_text(encoding="utf-8"))
    return Study(load_config(values), downloads)


def examine(study: Study) -> Iterator[Line]:
    """Every check, from what all the others rest on to what costs a warning only."""
    from snakemake.utils import available_cpu_count

    config, driver = study.config, read_driver()
    # Each GPU has a job of its own, unless one job takes them all.
    jobs = max(1, config.resources.gpu and len(driver.gpus), config.resources.gpu)
    shapes = {name: base_shape(name) for name in used_bases(study)}
    yield check_python(sys.version_info[:2])
    yield check_lock(LOCK.read_text(encoding="utf-8"), installed(LOCKED))
    yield check_gpus(driver, config.resources.gpu)
    if config.resources.gpu:
        yield check_driver(driver, torch_cuda())
        yield check_torch(config.resources.gpu)
    yield check_four_bits(quantises(study), config.resources.gpu)
    for base, shape in shapes.items():
        yield check_base(base, shape)
        if shape is not None:
            yield check_fit(study, base, shape, driver, machine_memory())
    yield check_memory(config.resources.mem_mb * 1e6, jobs, machine_memory())
    yield check_cores(available_cpu_count(), core_limit())
    known = {base: shape for base, shape in shapes.items() if shape is not None}
    yield check_disk("disk", ".", disk_bytes(study, known), "a larger volume is needed")
    temporary = tempfile.gettempdir()
    merges = jobs * merge_bytes(study, known)
    yield check_disk("temporary files", temporary, merges, "set TMPDIR to a larger folder")
    yield check_volume(Path.cwd(), Path("/proc/self/mounts"), config.resources.gpu)
    for dataset in study.datasets:
        yield check_terms(study, dataset)
    yield from check_hub(hub_ids(study), os.environ)
    yield check_wandb(config.resources.loggers, os.environ)


def check_python(found: tuple[int, int]) -> Line:
    """The versions that pyproject.toml allows."""
    text = f"{found[0]}.{found[1]}, {platform.machine()}"
    if (3, 11) <= found <= (3, 12):
        return Line("ok", "python", text)
    return Line("fail", "python", text, "use 3.11 or 3.12: make pod-setup PYTHON=python3.11")


def check_lock(lock: str, found: Mapping[str, str | None]) -> Line:
    """Installed versions against requirements.lock."""
    locked = dict(line.split("==") for line in lock.splitlines() if "==" in line)
    # What is built for one kind of machine has a version with a suffix: 2.13.0+cpu.
    plain = {name: have and have.split("+")[0] for name, have in found.items()}
    other = [
        f"{name} {have or 'missing'} (locked {locked[name]})"
        for name, have in plain.items()
        if have != locked[name] and (have or name not in OPTIONAL)
    ]
    if other:
        return Line("warn", "packages", ", ".join(other), "make env, for the locked versions")
    return Line("ok", "packages", f"torch {found['torch']}, as in {LOCK}")


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Versions of packages, None where one is missing."""

    def one(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: one(name) for name in names}


def read_driver() -> Driver:
    """What nvidia-smi shows of this machine."""
    if shutil.which("nvidia-smi") is None:
        return Driver(problem="no nvidia-smi")
    try:
        listed = _output("nvidia-smi", QUERY, "--format=csv,noheader,nounits")
        header = _output("nvidia-smi")
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip() or f"status {error.returncode}"
        return Driver(problem=f"nvidia-smi: {said.splitlines()[0]}")
    except subprocess.TimeoutExpired:
        return Driver(problem="nvidia-smi gives no answer")
    # Newer drivers tell the version of the user-mode driver apart.
    cuda = re.search(r"CUDA (?:UMD )?Version *: *(\d+)\.(\d+)", header)
    return Driver(parse_gpus(listed), cuda and (int(cuda[1]), int(cuda[2])))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def parse_gpus(listed: str) -> tuple[Gpu, ...]:
    """GPUs of nvidia-smi's CSV, without its warnings; a size it does not know counts as 0.

    >>> parse_gpus("NVIDIA A100-SXM4-80GB, 81920, 4, 580.95.05")[0].name
    'NVIDIA A100-SXM4-80GB'
    """
    rows = [[part.strip() for part in line.split(",")] for line in listed.splitlines()]
    return tuple(
        Gpu(name, _mebibytes(total), _mebibytes(used), driver)
        for name, total, used, driver in (row for row in rows if len(row) == 4)
    )


def _mebibytes(size: str) -> float:
    return int(size) * 2.0**20 if size.isdigit() else 0.0


def check_gpus(driver: Driver, wanted: int) -> Line:
    """As many GPUs as a job takes."""
    names = [f"{gpu.name} ({gpu.total / 2**30:.0f} GiB)" for gpu in driver.gpus]
    found = ", ".join(names) or driver.problem or "none"
    if not wanted:
        return Line("ok", "gpu", f"none asked for; {found}")
    if len(driver.gpus) >= wanted:
        return Line("ok", "gpu", found)
    mend = f"rent a machine with {wanted}, or set resources.gpu to {len(driver.gpus)}"
    return Line("fail", "gpu", f"{found}; {wanted} asked for", mend)


def check_driver(driver: Driver, build: tuple[int, int] | None) -> Line:
    """The CUDA version that torch was built for against the newest that the driver runs.

    Within one major version CUDA runs on older drivers, less what has to be compiled anew.
    """
    if build is None:
        mend = "rm -r .venv, then make pod-setup: PyPI's torch for Linux is built for CUDA"
        return Line("fail", "driver", "torch is built for the CPU only", mend)
    if not driver.gpus or driver.cuda is None:
        return Line("fail", "driver", driver.problem or "it tells no CUDA version", "see gpu")
    text = f"{driver.gpus[0].driver}, CUDA {_dotted(driver.cuda)}; torch for CUDA {_dotted(build)}"
    if driver.cuda >= build:
        return Line("ok", "driver", text)
    if driver.cuda[0] == build[0]:
        return Line("warn", "driver", text, "works in most cases; a newer driver is safer")
    mend = (
        f"rent a machine with CUDA {_dotted(build)} or newer; or rm -r .venv, then make pod-setup "
        f"TORCH_INDEX=... with an index of pytorch.org for CUDA {driver.cuda[0]}"
    )
    return Line("fail", "driver", text, mend)


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA version torch was built for."""
    import torch

    if torch.version.cuda is None:
        return None
    major, minor = torch.version.cuda.split(".")[:2]
    return int(major), int(minor)


def check_torch(wanted: int) -> Line:
    """A multiply on each GPU."""
    import torch

    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or count < wanted:
        mend = "see gpu and driver; CUDA_VISIBLE_DEVICES may hide some"
        return Line("fail", "torch", f"{torch.__version__} sees {count} of {wanted} GPUs", mend)
    try:
        for index in range(count):
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            (ones @ ones).sum().item()
    except RuntimeError as error:
        mend = "the build has no kernels for this GPU: choose another from pytorch.org"
        return Line("fail", "torch", first_line(error), mend)
    return Line("ok", "torch", f"{torch.__version__} multiplies on {count} GPUs")


def check_four_bits(needed: bool, gpu: int) -> Line:
    """A product with 4-bit weights by bitsandbytes, against the same with plain ones."""
    what = "4-bit weights"
    if find_spec("bitsandbytes") is None:
        if needed:
            return Line("fail", what, "bitsandbytes is not installed", QUANT)
        return Line("ok", what, "not asked for; merges into nf4 are left out")
    import torch

    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    try:
        error = four_bit_error(device)
    except Exception as problem:
        mend = f"{QUANT}; python -m bitsandbytes tells more"
        return Line("fail" if needed else "warn", what, first_line(problem), mend)
    text = f"bitsandbytes {version('bitsandbytes')} on {device.type}, relative error {error:.3f}"
    if error < 0.2:
        return Line("ok", what, text)
    return Line("fail" if needed else "warn", what, text, QUANT)


def four_bit_error(device) -> float:
    """Relative error of x W with W in nf4, about a tenth for Gaussian weights."""
    import torch
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import quantize_4bit

    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 64, generator=generator).to(device) for _ in range(2))
    packed, state = quantize_4bit(weight, quant_type="nf4")
    product, exact = matmul_4bit(x, packed.t(), quant_state=state), x @ weight.t()
    return float((product - exact).norm() / exact.norm())


def quantises(study: Study) -> bool:
    """Whether a base of the study is served in 4 or 8 bits."""
    return any(
        study.variants[variant].explainer.precision in ("int8", "nf4")
        for _, variant, _ in study.runs
    )


def used_bases(study: Study) -> list[str]:
    """Bases of the variants that run, as the config names them."""
    return sorted({study.variants[variant].explainer.base for _, variant, _ in study.runs})


def hub_ids(study: Study) -> list[str]:
    """What the study fetches from the hub."""
    bases = [base for base in used_bases(study) if on_hub(base)]
    audit = study.config.audit
    return [*bases, *([audit.scorer] * audit.scorer_on_hub)]


def base_folder(base: str) -> Path:
    """Where a base lies that is the user's own, or fetched."""
    return Path(model_folder(base))


def base_shape(base: str) -> Shape | None:
    """Sizes of a base; None for the embedded one, which is small, and where they are not known."""
    folder = base_folder(base)
    if base == "embedded":
        return None
    if not (folder / "config.json").is_file():
        return SHAPES.get(base)
    from transformers import AutoConfig

    try:
        return shape_of(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
    except (OSError, ValueError, UserError):
        return None


def check_base(base: str, shape: Shape | None) -> Line:
    """Whether the base LM is there, or will be fetched."""
    folder = base_folder(base)
    if base == "embedded":
        return Line("ok", "model", "embedded, trained on the way")
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            mend = "convert it: from_pretrained, then save_pretrained; nothing else is read"
            return Line("fail", "model", f"{folder} has no safetensors weights", mend)
        if shape is None:
            mend = "config.json must be that of a causal LM of transformers"
            return Line("fail", "model", f"{folder} cannot be read", mend)
        return Line("ok", "model", f"{folder}, {_billions(shape)}")
    if is_local(base):
        mend = "explainer.base names a folder in transformers format: put it there"
        return Line("fail", "model", f"{folder} does not exist", mend)
    if shape is None:
        target = f"snakemake --cores 1 {folder}"
        return Line(
            "warn", "model", f"{base}: sizes unknown", f"fetch it, then ask again: {target}"
        )
    return Line("ok", "model", f"{base}, {_billions(shape)}, to be fetched")


def check_fit(study: Study, base: str, shape: Shape, driver: Driver, memory: float) -> Line:
    """The largest need of a variant on this base against what one GPU, or the machine, has free."""
    needs = {
        variant: peak_bytes(shape, job_of(study.config, variant, shape))
        for _, variant, _ in study.runs
        if study.variants[variant].explainer.base == base
    }
    variant, need = max(needs.items(), key=lambda pair: pair[1])
    on_gpu = bool(study.config.resources.gpu)
    free = min((gpu.total - gpu.used for gpu in driver.gpus), default=0.0) if on_gpu else memory
    what = "gpu memory" if on_gpu else "model memory"
    text = f"about {need / GB:.1f} GB for {variant}, {free / GB:.1f} GB free"
    if need <= free:
        return Line("ok", what, text)
    if on_gpu and not driver.gpus:
        return Line("fail", what, text, "see gpu")
    mend = (
        "a larger GPU, a narrower explainer.precision, a smaller rl.micro_batch, "
        "rl.gradient_checkpointing, shorter prompts, or evaluation.merge: []"
    )
    return Line("fail", what, text, mend)


def check_memory(need: float, jobs: int, memory: float) -> Line:
    """Main memory against the jobs that run the LM at once; a limit of the container counts."""
    text = f"{memory / GB:.1f} GB; {need / GB:.1f} GB a job that runs the LM, {jobs} at once"
    if need * jobs <= memory:
        return Line("ok", "memory", text)
    return Line("fail", "memory", text, "rent more, or lower resources.mem_mb if jobs need less")


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes of memory this machine or container may use."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    written = limit.read_text().strip() if limit.is_file() else "max"
    return most if written == "max" else min(most, int(written))


def check_cores(seen: int, limit: float | None) -> Line:
    """Cores that Snakemake counts against those that the container may use."""
    if limit is None or limit >= seen:
        return Line("ok", "cores", str(seen))
    text = f"{seen} seen, the container may use {limit:g}"
    return Line("warn", "cores", text, f"snakemake --cores {max(1, int(limit))}")


def core_limit(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the container may use; None without a limit."""
    quota, period = limit.read_text().split() if limit.is_file() else ("max", "1")
    return None if quota == "max" else int(quota) / int(period)


def disk_bytes(study: Study, shapes: Mapping[str, Shape]) -> float:
    """What the study downloads and makes: raw files, as much again for splits, models, runs.

    A published file whose size is not known counts as the most that is accepted of it.
    """
    raw = missing = 0.0
    for dataset in study.datasets:
        for path in map(Path, study.raw_paths(dataset)):
            if path.is_file():
                raw += path.stat().st_size
            elif str(path) in study.fetched:
                about = study.downloads[path.parent.name][path.name]
                size = float(about.get("bytes") or about["max_bytes"])
                raw, missing = raw + size, missing + size
    models = sum(
        weight_bytes(shape, "fp32")
        for base, shape in shapes.items()
        if not base_folder(base).exists()
    )
    made = 0.0
    for _, variant, _ in study.runs:
        settings = study.variants[variant]
        if (shape := shapes.get(settings.explainer.base)) is not None:
            job = job_of(study.config, variant, shape)
            adapter = 4 * job.rank * shape.lora * job.blocks / shape.layers
            made += adapter * (settings.rl.snapshots + ADAPTER_COPIES) + bases_bytes(shape, job)
    return missing + raw + models + made


def merge_bytes(study: Study, shapes: Mapping[str, Shape]) -> float:
    """The temporary copy of a merged model that an evaluation makes."""
    if not study.config.evaluation.merge:
        return 0.0
    return max((weight_bytes(shape, "fp32") for shape in shapes.values()), default=0.0)


def check_disk(what: str, folder: str, need: float, mend: str) -> Line:
    """Free space of a folder's file system."""
    free = shutil.disk_usage(folder).free
    text = f"{free / GB:.0f} GB free, about {need / GB:.1f} GB needed"
    if free >= need:
        return Line("ok", what, text)
    return Line("fail", what, text, mend)


def check_volume(folder: Path, mounts: Path, gpu: int) -> Line:
    """Whether the study lies where it outlives a rented container."""
    kind = ""
    longest = 0
    for line in mounts.read_text().splitlines() if mounts.is_file() else ():
        _, where, name = line.split()[:3]
        if folder.is_relative_to(where) and len(where) >= longest:
            kind, longest = name, len(where)
    if gpu and kind == "overlay":
        mend = "it goes with the container: clone below the volume, on RunPod /workspace"
        return Line("warn", "volume", f"{folder} is on the container's disk", mend)
    return Line("ok", "volume", f"{folder}, {kind or 'unknown'}")


def check_terms(study: Study, dataset: str) -> Line:
    """Raw files: there, made on the way, fetched under their owner's terms, or yet to be given."""
    what, settings = f"data {dataset}", study.config.datasets[dataset]
    if settings.source == "embedded":
        return Line("ok", what, "embedded, synthetic")
    published = study.downloads[release(dataset, settings.edition)]
    terms = next(iter(published.values()))["license"]
    paths = study.raw_paths(dataset)
    absent = [path for path in paths if not Path(path).exists() and path not in study.fetched]
    if absent:
        mend = f"fetch it yourself under {terms}, and put it there"
        return Line("fail", what, f"{os.path.relpath(absent[0])} does not exist", mend)
    coming = [path for path in paths if not Path(path).exists()]
    if coming:
        return Line("ok", what, f"to be downloaded; terms: {terms}")
    return Line("ok", what, f"there; terms: {terms}")


def check_hub(ids: list[str], environment: Mapping[str, str]) -> Iterator[Line]:
    """Where downloads from the hub are kept, and a token where one may be asked for."""
    if not ids:
        return
    cache = environment.get("HF_HOME") or (HF_CACHE if HF_CACHE.is_dir() else None)
    if cache:
        yield Line("ok", "hub cache", str(cache))
    else:
        yield Line("warn", "hub cache", "in your home folder", "make pod-setup keeps it here")
    if environment.get("HF_TOKEN"):
        yield Line("ok", "HF_TOKEN", "set")
    elif unknown := [one for one in ids if one not in SHAPES]:
        mend = "export it where the repository is gated; public ones need none"
        yield Line("warn", "HF_TOKEN", f"not set, for {', '.join(unknown)}", mend)
    else:
        yield Line("ok", "HF_TOKEN", f"not set; {', '.join(ids)} is public")


def check_wandb(loggers: Iterable[str], environment: Mapping[str, str]) -> Line:
    """W&B, where training reports there."""
    if "wandb" not in loggers:
        return Line("ok", "W&B", "not asked for")
    if find_spec("wandb") is None:
        mend = ".venv/bin/pip install -c requirements.lock -e '.[wandb]'"
        return Line("fail", "W&B", "wandb is not installed", mend)
    mode = environment.get("WANDB_MODE", "offline")
    if mode == "online" and not environment.get("WANDB_API_KEY"):
        mend = "export it, or leave WANDB_MODE alone and sync later"
        return Line("fail", "W&B", "online, and WANDB_API_KEY is not set", mend)
    return Line("ok", "W&B", mode)


def _dotted(cuda: tuple[int, int]) -> str:
    return f"{cuda[0]}.{cuda[1]}"


def _billions(shape: Shape) -> str:
    return f"{(shape.linear + shape.other) / 1e9:.1f} billion weights"
