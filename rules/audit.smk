# REQUIRED INPUTS: explanations.jsonl and rankings.parquet of a run, results/data/{dataset}
# OUTPUTS: results/audit/{dataset}/{variant}/seed-{seed}.json


rule audit_policy:
    input:
        "results/data/{dataset}/items.parquet",
        "results/data/{dataset}/users.parquet",
        explanations=f"{RUN}/explanations.jsonl",
        rankings=f"{RUN}/rankings.parquet",
    output:
        "results/audit/{dataset}/{variant}/seed-{seed}.json",
    log:
        "results/logs/audit/{dataset}/{variant}/seed-{seed}.log",
    benchmark:
        "results/benchmarks/audit/{dataset}/{variant}/seed-{seed}.tsv"
    conda:
        "../envs/audit.yaml"
    threads: 1
    resources:
        mem_mb=800,
    params:
        settings=flags(CONFIG.audit),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.audit.run"),
    message:
        "Audit {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.audit run --data results/data/{wildcards.dataset} "
        "--explanations {input.explanations} --rankings {input.rankings} --out {output} "
        "--seed {params.seed} {params.settings} 2>&1 | tee {log}"
