# REQUIRED INPUTS: none (embedded), a download, or the user's raw files
# OUTPUTS: results/data/{dataset}/{interactions,train,valid,test,items,users}.parquet, stats.json

DOWNLOADS = yaml.safe_load(Path(workflow.basedir, "resources/checksums.yaml").read_text())


def raw_paths(dataset):
    """Paths of interactions and metadata, the latter possibly None."""
    settings = STUDY.datasets[dataset]
    names = RAW_FILES[dataset]
    if settings.source == "embedded":
        return [f"results/data/{dataset}/raw/{name}" for name in names]
    if settings.source == "download":
        return [f"resources/raw/{dataset}/{name}" for name in DOWNLOADS[dataset]]
    source = Path(settings.source)
    if source.is_dir():
        return [str(source / name) for name in names]
    return [str(source), settings.metadata]


def raw_input(wildcards):
    """Raw files as an input."""
    source = STUDY.datasets[wildcards.dataset].source
    if source == "embedded":
        return f"results/data/{wildcards.dataset}/raw"
    paths = raw_paths(wildcards.dataset)
    return paths if source == "download" else existing(*paths)


def raw_flags(wildcards):
    """Raw files as flags of the command."""
    interactions, metadata = [*raw_paths(wildcards.dataset), None][:2]
    return f"--interactions {interactions} --metadata {metadata}"


rule download:
    output:
        "resources/raw/{dataset}/{file}",
    log:
        "results/logs/data/{dataset}/download-{file}.log",
    benchmark:
        "results/benchmarks/data/{dataset}/download-{file}.tsv"
    params:
        url=lambda w: DOWNLOADS[w.dataset][w.file]["url"],
        sha256=lambda w: DOWNLOADS[w.dataset][w.file]["sha256"],
        size=lambda w: DOWNLOADS[w.dataset][w.file]["bytes"],
    retries: 2
    threads: 1
    resources:
        mem_mb=500,
    conda:
        "../envs/download.yaml"
    message:
        "Download {wildcards.file} of {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.data download --url {params.url} --out {output} "
        "--sha256 {params.sha256} --size {params.size} 2>&1 | tee {log}"


rule make_world:
    output:
        directory("results/data/{dataset}/raw"),
    log:
        "results/logs/data/{dataset}/world.log",
    benchmark:
        "results/benchmarks/data/{dataset}/world.tsv"
    params:
        settings=flags(STUDY.world),
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.data.world"),
    threads: 1
    resources:
        mem_mb=500,
    conda:
        "../envs/data.yaml"
    message:
        "Make the embedded world of {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.data world --dataset {wildcards.dataset} --out {output} "
        "--seed {params.seed} {params.settings} 2>&1 | tee {log}"


rule prepare:
    input:
        raw_input,
    output:
        expand(
            "results/data/{{dataset}}/{name}.parquet",
            name=["interactions", "train", "valid", "test", "items", "users"],
        ),
        "results/data/{dataset}/stats.json",
    log:
        "results/logs/data/{dataset}/prepare.log",
    benchmark:
        "results/benchmarks/data/{dataset}/prepare.tsv"
    params:
        raw=raw_flags,
        settings=lambda w: flags(section(STUDY.datasets[w.dataset], PrepareSettings)),
        synthetic=lambda w: STUDY.datasets[w.dataset].source == "embedded",
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.data.prepare"),
    threads: 1
    resources:
        mem_mb=2000,
    conda:
        "../envs/data.yaml"
    message:
        "Prepare {wildcards.dataset}: filter, split, catalogue"
    shell:
        "python -m shielded_recrl.data prepare --dataset {wildcards.dataset} {params.raw} "
        "--out results/data/{wildcards.dataset} --synthetic {params.synthetic} "
        "--seed {params.seed} {params.settings} 2>&1 | tee {log}"
