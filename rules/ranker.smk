# REQUIRED INPUTS: results/data/{dataset}/*.parquet, stats.json
# OUTPUTS: results/ranker/{dataset}/{model,states}.safetensors, train.jsonl, metrics.json, card.md

RANKER_FILES = [
    *("model.safetensors", "train.jsonl", "states.safetensors"),
    *("metrics.json", "card.md", "curve.svg"),
]


rule train_ranker:
    input:
        splits=SPLITS,
    output:
        model="results/ranker/{dataset}/model.safetensors",
        curve="results/ranker/{dataset}/train.jsonl",
    log:
        "results/logs/ranker/{dataset}/train.log",
    benchmark:
        "results/benchmarks/ranker/{dataset}/train.tsv"
    conda:
        "../envs/ranker.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        out=subpath(output.model, parent=True),
        settings=flags(CONFIG.ranker),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.ranker.train"),
    message:
        "Train SASRec on {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.ranker train --data {params.data} --out {params.out} "
        "--scratch results/scratch/ranker/{wildcards.dataset} --seed {params.seed} {params.settings} 2>&1 | tee {log}"


rule evaluate_ranker:
    input:
        splits=SPLITS,
        stats="results/data/{dataset}/stats.json",
        model="results/ranker/{dataset}/model.safetensors",
        curve="results/ranker/{dataset}/train.jsonl",
    output:
        metrics="results/ranker/{dataset}/metrics.json",
        card="results/ranker/{dataset}/card.md",
        figure=report(
            "results/ranker/{dataset}/curve.svg",
            caption="../workflow/report/ranker_curve.rst",
            category="3. Ranker",
            labels={"what": "validation curve, {dataset}"},
        ),
        states="results/ranker/{dataset}/states.safetensors",
    log:
        "results/logs/ranker/{dataset}/evaluate.log",
    benchmark:
        "results/benchmarks/ranker/{dataset}/evaluate.tsv"
    conda:
        "../envs/ranker.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
    params:
        data=data_folder,
        out=subpath(output.metrics, parent=True),
        code=code_digest("shielded_recrl.ranker.evaluate"),
    message:
        "Evaluate SASRec beside its baselines on {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.ranker evaluate --data {params.data} "
        "--model {input.model} --out {params.out} 2>&1 | tee {log}"
