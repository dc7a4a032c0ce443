"""The doctor's lines: what it finds on a machine, what it calls a fault, and how it is mended."""

import os
from pathlib import Path

import pytest
import yaml

from command_line import here
from shielded_recrl.cluster import doctor
from shielded_recrl.cluster.doctor import Driver, Gpu
from shielded_recrl.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
A100 = "NVIDIA A100-SXM4-80GB, 81920, 4, 580.95.05\n"
RTX_4090 = "NVIDIA GeForce RTX 4090, 24564, 1, 550.127.05\n"
HEADER = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {driver}              Driver Version: {driver}      CUDA Version: {cuda}     |
|-----------------------------------------+------------------------+----------------------+
"""


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put an executable on PATH that prints what nvidia-smi prints."""

    def install(listed="", header="", status=0):
        script = tmp_path / "nvidia-smi"
        (tmp_path / "listed").write_text(listed)
        (tmp_path / "header").write_text(header)
        script.write_text(
            f'#!/bin/sh\ncase "$*" in\n*--format=csv,noheader,nounits*) cat {tmp_path}/listed;;\n'
            f'"") cat {tmp_path}/header;;\n*) exit 2;;\nesac\nexit {status}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def study_of(tmp_path, **changes):
    """The default study with changes."""
    path = tmp_path / "changes.yaml"
    path.write_text(yaml.safe_dump(changes))
    return doctor.read_study([path])


def full():
    return doctor.read_study([Path("config/full.yaml")])


class TestDriver:
    def test_one_a100(self, nvidia_smi):
        nvidia_smi(A100, HEADER.format(driver="580.95.05", cuda="13.0"))
        driver = doctor.read_driver()
        assert driver == Driver(
            (Gpu("NVIDIA A100-SXM4-80GB", 81920 * 2**20, 4 * 2**20, "580.95.05"),), (13, 0)
        )
        line = doctor.check_gpus(driver, 1)
        assert (line.status, line.found) == ("ok", "NVIDIA A100-SXM4-80GB (80 GiB)")

    def test_two_4090(self, nvidia_smi):
        nvidia_smi(RTX_4090 * 2, HEADER.format(driver="550.127.05", cuda="12.4"))
        driver = doctor.read_driver()
        assert len(driver.gpus) == 2
        assert driver.cuda == (12, 4)
        assert doctor.check_gpus(driver, 2).status == "ok"
        line = doctor.check_gpus(driver, 4)
        assert line.status == "fail"
        assert "set resources.gpu to 2" in line.mend

    def test_without_a_driver(self, nvidia_smi):
        reason = (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
            "that the latest NVIDIA driver is installed and running.\n"
        )
        nvidia_smi(reason, reason, status=9)
        driver = doctor.read_driver()
        assert driver.gpus == ()
        assert "couldn't communicate with the NVIDIA driver" in driver.problem
        assert doctor.check_gpus(driver, 1).status == "fail"
        assert doctor.check_gpus(driver, 0).status == "ok"

    def test_where_there_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert doctor.read_driver() == Driver(problem="no nvidia-smi")

    def test_size_it_does_not_know_counts_as_none(self):
        (gpu,) = doctor.parse_gpus("NVIDIA GB10, [N/A], [N/A], 580.95.05\n")
        assert (gpu.total, gpu.used) == (0, 0)

    def test_warnings_are_no_gpus(self, nvidia_smi):
        warning = "WARNING: infoROM is corrupted at gpu 0000:3B:00.0\n"
        nvidia_smi(A100 + warning, HEADER.format(driver="590.48.01", cuda="13.1") + warning)
        assert len(doctor.read_driver().gpus) == 1

    def test_newer_drivers_say_it_in_other_words(self, nvidia_smi):
        nvidia_smi(A100, "| NVIDIA-SMI 595.45   KMD Version: 595.45   CUDA UMD Version: 13.2 |\n")
        assert doctor.read_driver().cuda == (13, 2)

    @pytest.mark.parametrize(
        ("cuda", "build", "status"),
        [
            ((13, 0), (13, 0), "ok"),
            ((13, 1), (12, 8), "ok"),
            ((12, 4), (12, 8), "warn"),
            ((12, 9), (13, 0), "fail"),
            (None, (13, 0), "fail"),
            ((13, 0), None, "fail"),
        ],
    )
    def test_cuda_of_driver_and_torch(self, cuda, build, status):
        driver = Driver((Gpu("NVIDIA A100-SXM4-80GB", 8e10, 0, "580.95.05"),), cuda)
        line = doctor.check_driver(driver, build)
        assert line.status == status
        assert (line.mend == "") == (status == "ok")


class TestFit:
    def lines(self, gpus, memory=1e12):
        shape = doctor.SHAPES[TINYLLAMA]
        return doctor.check_fit(full(), TINYLLAMA, shape, Driver(gpus), memory)

    def test_a100_and_4090_hold_the_published_scale(self):
        assert self.lines(doctor.parse_gpus(A100)).status == "ok"
        assert self.lines(doctor.parse_gpus(RTX_4090)).status == "ok"

    def test_what_others_use_counts(self):
        line = self.lines(doctor.parse_gpus("NVIDIA GeForce RTX 4090, 24564, 20000, 550.127.05"))
        assert line.status == "fail"
        assert "evaluation.merge: []" in line.mend

    def test_the_smallest_gpu_decides(self):
        small = "NVIDIA GeForce GTX 1660, 6144, 0, 550.127.05\n"
        assert self.lines(doctor.parse_gpus(A100 + small)).status == "fail"

    def test_sizes_come_from_a_folder_of_the_users_own(self, tmp_path):
        from transformers import LlamaConfig

        folder = tmp_path / "lm"
        LlamaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=3).save_pretrained(
            folder
        )
        shape = doctor.base_shape(str(folder))
        assert (shape.hidden, shape.layers) == (32, 3)
        assert doctor.check_base(str(folder), shape).status == "fail"
        (folder / "model.safetensors").touch()
        assert doctor.check_base(str(folder), shape).status == "ok"
        (folder / "config.json").write_text("{}")
        assert doctor.base_shape(str(folder)) is None
        assert doctor.check_base(str(folder), None).status == "fail"

    def test_base_that_is_not_there(self):
        line = doctor.check_base("./no/such", None)
        assert line.status == "fail"
        assert "no/such does not exist" in line.found

    def test_unknown_base_of_the_hub_is_fetched_first(self):
        line = doctor.check_base("someone/model", None)
        assert line.status == "warn"
        assert "snakemake --cores 1 resources/models/someone--model" in line.mend


class TestMachine:
    def test_python(self):
        assert doctor.check_python((3, 11)).status == "ok"
        assert doctor.check_python((3, 10)).status == "fail"
        assert doctor.check_python((3, 13)).status == "fail"

    def test_versions_are_those_of_the_lock(self):
        lock = "torch==2.13.0\nbitsandbytes==0.50.2\n"
        assert (
            doctor.check_lock(lock, {"torch": "2.13.0+cu130", "bitsandbytes": None}).status == "ok"
        )
        line = doctor.check_lock(lock, {"torch": "2.12.1", "bitsandbytes": "0.50.2"})
        assert (line.status, line.found) == ("warn", "torch 2.12.1 (locked 2.13.0)")
        assert "missing" in doctor.check_lock(lock, {"torch": None, "bitsandbytes": None}).found

    def test_memory_counts_the_jobs_at_once(self):
        assert doctor.check_memory(24e9, 1, 64e9).status == "ok"
        assert doctor.check_memory(24e9, 3, 64e9).status == "fail"

    def test_limit_of_a_container_is_what_there_is(self, tmp_path):
        limit = tmp_path / "memory.max"
        machine = doctor.machine_memory(limit)
        assert machine > 2**30
        limit.write_text("max\n")
        assert doctor.machine_memory(limit) == machine
        limit.write_text("500000000\n")
        assert doctor.machine_memory(limit) == 500_000_000
        limit.write_text("500000000000000\n")
        assert doctor.machine_memory(limit) == machine

    def test_cores_a_container_may_not_use(self, tmp_path):
        limit = tmp_path / "cpu.max"
        assert doctor.core_limit(limit) is None
        limit.write_text("max 100000\n")
        assert doctor.core_limit(limit) is None
        limit.write_text("1600000 100000\n")
        assert doctor.core_limit(limit) == 16
        assert doctor.check_cores(16, 16).status == "ok"
        line = doctor.check_cores(128, 16)
        assert (line.status, line.mend) == ("warn", "snakemake --cores 16")

    def test_disk_of_a_container_goes_with_it(self, tmp_path):
        mounts = tmp_path / "mounts"
        mounts.write_text(
            "overlay / overlay rw 0 0\nmfs#host:9421 /workspace fuse rw 0 0\nproc /proc proc rw 0 0\n"
        )
        assert doctor.check_volume(Path("/root/clone"), mounts, 1).status == "warn"
        assert doctor.check_volume(Path("/workspace/clone"), mounts, 1).status == "ok"
        assert doctor.check_volume(Path("/root/clone"), mounts, 0).status == "ok"

    def test_disk(self, tmp_path):
        assert doctor.check_disk("disk", str(tmp_path), 1e3, "mend").status == "ok"
        line = doctor.check_disk("disk", str(tmp_path), 1e18, "mend")
        assert (line.status, line.mend) == ("fail", "mend")

    def test_disk_counts_downloads_models_and_what_is_made_of_them(self, tmp_path, monkeypatch):
        shapes = {TINYLLAMA: doctor.SHAPES[TINYLLAMA]}
        published = yaml.safe_load(Path("resources/checksums.yaml").read_text())
        monkeypatch.chdir(tmp_path)
        study = doctor.Study(full_config(), published)
        raw = 2e9 + 4_942_125_770 + 261_978_986 + 2_740_516
        assert doctor.disk_bytes(study, {}) == 2 * raw
        model = 4 * 1_100_048_384
        made = doctor.disk_bytes(study, shapes) - 2 * raw - model
        # 21 adapters of 573,440 weights (143,360 of lora4), 15 times each, and bases under 0.1 GB.
        assert 20 * 573_440 * 4 * 15 < made < 21 * (573_440 * 4 * 15 + 1e8)
        there = tmp_path / "resources/raw/ml25m/ml-25m.zip"
        there.parent.mkdir(parents=True)
        there.write_bytes(b"12345")
        assert doctor.disk_bytes(study, {}) == 2 * (raw - 261_978_986) + 5


def full_config():
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    from snakemake.utils import update_config

    update_config(base, yaml.safe_load((ROOT / "config/full.yaml").read_text()))
    return doctor.load_config(base)


class TestFourBits:
    def test_multiplies(self):
        line = doctor.check_four_bits(True, 0)
        assert line.status == "ok"
        assert "on cpu, relative error 0." in line.found

    def test_without_bitsandbytes(self, monkeypatch):
        monkeypatch.setattr(doctor, "find_spec", lambda name: None)
        assert doctor.check_four_bits(False, 0).status == "ok"
        line = doctor.check_four_bits(True, 0)
        assert line.status == "fail"
        assert "make pod-setup" in line.mend

    @pytest.mark.parametrize(("needed", "status"), [(True, "fail"), (False, "warn")])
    def test_wrong_products(self, monkeypatch, needed, status):
        monkeypatch.setattr(doctor, "four_bit_error", lambda device: 1.4)
        assert doctor.check_four_bits(needed, 0).status == status

    def test_library_that_does_not_load(self, monkeypatch):
        def fail(device):
            raise RuntimeError("no kernel image is available\nfor execution on the device")

        monkeypatch.setattr(doctor, "four_bit_error", fail)
        line = doctor.check_four_bits(True, 0)
        assert (line.status, line.found) == ("fail", "no kernel image is available")

    def test_asked_for_by_the_variants_that_run(self, tmp_path):
        assert doctor.quantises(full())
        assert not doctor.quantises(study_of(tmp_path))


class TestTerms:
    def test_file_that_only_the_user_can_fetch(self, tmp_path, monkeypatch):
        line = doctor.check_terms(
            study_of(tmp_path, datasets={"steam": {"source": "./mine/steam-200k.csv"}}), "steam"
        )
        assert line.status == "fail"
        assert "mine/steam-200k.csv does not exist" in line.found
        assert "https://www.kaggle.com/datasets/tamber/steam-video-games" in line.mend

    def test_file_that_is_there(self, tmp_path):
        own = tmp_path / "steam-200k.csv"
        own.touch()
        study = study_of(tmp_path, datasets={"steam": {"source": str(own)}})
        line = doctor.check_terms(study, "steam")
        assert line.status == "ok"
        assert line.found.startswith("there; terms: ")

    def test_download_names_its_terms(self):
        line = doctor.check_terms(full(), "ml25m")
        assert line.status == "ok"
        assert "ml-25m-README" in line.found

    def test_embedded(self, tmp_path):
        assert doctor.check_terms(study_of(tmp_path), "books").found == "embedded, synthetic"


class TestTokens:
    def test_hub(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert list(doctor.check_hub([], {})) == []
        cache, token = doctor.check_hub([TINYLLAMA], {})
        assert (cache.status, token.status) == ("warn", "ok")
        (tmp_path / ".cache/huggingface").mkdir(parents=True)
        cache, token = doctor.check_hub(["meta-llama/Llama-3.2-1B"], {})
        assert (cache.status, token.status) == ("ok", "warn")
        cache, token = doctor.check_hub(
            ["meta-llama/Llama-3.2-1B"], {"HF_TOKEN": "x", "HF_HOME": "y"}
        )
        assert (cache.found, token.found) == ("y", "set")

    def test_wandb(self, monkeypatch):
        assert doctor.check_wandb(("tensorboard",), {}).status == "ok"
        assert doctor.check_wandb(("wandb",), {}).found == "offline"
        assert doctor.check_wandb(("wandb",), {"WANDB_MODE": "online"}).status == "fail"
        online = {"WANDB_MODE": "online", "WANDB_API_KEY": "x"}
        assert doctor.check_wandb(("wandb",), online).status == "ok"
        monkeypatch.setattr(doctor, "find_spec", lambda name: None)
        assert doctor.check_wandb(("wandb",), online).status == "fail"


class TestCommand:
    def test_default_is_fit_for_this_machine(self, capsys):
        doctor.main()
        *lines, last = capsys.readouterr().out.splitlines()
        assert last == "fit for config/config.yaml"
        assert len(lines) > 10
        assert {line.split()[0] for line in lines} <= {"ok", "warn"}

    def test_published_scale_names_what_is_missing_and_no_secret(self, nvidia_smi, monkeypatch):
        nvidia_smi("No devices were found\n", "No devices were found\n", status=6)
        secrets = {"HF_TOKEN": "hf_planted0000", "WANDB_API_KEY": "planted1111"}
        for name, secret in secrets.items():
            monkeypatch.setenv(name, secret)
        result = here("cluster", "doctor", "--config", "config/full.yaml")
        assert result.returncode == 1
        failed = [line for line in result.stdout.splitlines() if line.startswith("fail")]
        assert any("No devices were found; 1 asked for" in line for line in failed)
        assert any("steam-200k.csv does not exist" in line for line in failed)
        assert all(" -- " in line for line in failed)
        assert f"error: {len(failed)} of " in result.stderr.splitlines()[-1]
        for secret in secrets.values():
            assert secret not in result.stdout + result.stderr

    def test_configs_are_laid_over_each_other(self, tmp_path):
        (tmp_path / "gpus.yaml").write_text("resources: {gpu: 2}\n")
        study = doctor.read_study([Path("config/full.yaml"), tmp_path / "gpus.yaml"])
        assert study.config.resources.gpu == 2
        assert study.config.resources.mem_mb == 24000

    @pytest.mark.parametrize("text", ["a: [", "just words", "\xff"])
    def test_damaged_config_is_named(self, tmp_path, text):
        path = tmp_path / "bad.yaml"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"bad\.yaml: no mapping in YAML"):
            doctor.read_study([path])
