# REQUIRED INPUTS: results/data/{dataset}/*.parquet
# OUTPUTS: results/ranker/{dataset}/{model,states}.safetensors, train.jsonl, metrics.json


rule train_ranker:
    input:
        SPLITS,
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
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    params:
        settings=flags(CONFIG.ranker),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.ranker.train"),
    message:
        "Train SASRec on {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.ranker train --data results/data/{wildcards.dataset} "
        "--out results/ranker/{wildcards.dataset} --seed {params.seed} {params.settings} "
        "2>&1 | tee {log}"


rule evaluate_ranker:
    input:
        SPLITS,
        model="results/ranker/{dataset}/model.safetensors",
    output:
        metrics="results/ranker/{dataset}/metrics.json",
        states="results/ranker/{dataset}/states.safetensors",
    log:
        "results/logs/ranker/{dataset}/evaluate.log",
    benchmark:
        "results/benchmarks/ranker/{dataset}/evaluate.tsv"
    conda:
        "../envs/ranker.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
    params:
        code=code_digest("shielded_recrl.ranker.evaluate"),
    message:
        "Evaluate SASRec on {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.ranker evaluate --data results/data/{wildcards.dataset} "
        "--model {input.model} --out results/ranker/{wildcards.dataset} 2>&1 | tee {log}"
