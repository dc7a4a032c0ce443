# REQUIRED INPUTS: every run of the study with its evaluation, certificate and audit
# OUTPUTS: results/aggregate_results.csv, results/report/figures, results/report/{tables,explanations.md,certificates.md}

FIGURES = ["ctr_over_steps", "ndcg_over_steps", "ablation", "frontier", "overoptimisation"]
RUN_FILES = [
    "evaluation.json",
    "certificate.json",
    "explanations.jsonl",
    "rankings.parquet",
    "summary.json",
    "train.jsonl",
]


rule aggregate:
    input:
        runs=[f"results/rl/{d}/{v}/seed-{s}/{name}" for d, v, s in STUDY.runs for name in RUN_FILES],
        audits=[f"results/audit/{d}/{v}/seed-{s}.json" for d, v, s in STUDY.runs],
        stats=[f"results/data/{d}/stats.json" for d in STUDY.datasets],
    output:
        table=report(
            "results/aggregate_results.csv",
            caption="../workflow/report/results.rst",
            category="Table",
        ),
        figures=[
            report(
                f"results/report/figures/{name}.png",
                caption=f"../workflow/report/{name}.rst",
                category="Figures",
            )
            for name in FIGURES
        ],
        print=[f"results/report/figures/{name}.pdf" for name in FIGURES],
        texts="results/report/explanations.md",
        certificates=report(
            "results/report/certificates.md",
            caption="../workflow/report/certificates.rst",
            category="Certificates",
        ),
        tables=expand("results/report/tables/{name}.tex", name=["results", "drift"]),
    log:
        "results/logs/report/aggregate.log",
    benchmark:
        "results/benchmarks/report/aggregate.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        runs=[f"results/rl/{d}/{v}/seed-{s}" for d, v, s in STUDY.runs],
        settings=flags(CONFIG.report),
        code=code_digest("shielded_recrl.report.aggregate"),
    message:
        "Collect all runs into results/aggregate_results.csv, figures and tables"
    shell:
        "python -m shielded_recrl.report aggregate --runs {params.runs} --audits {input.audits} "
        "--stats {input.stats} --out {output.table} --figures results/report/figures "
        "--tables results/report/tables --texts {output.texts} "
        "--certificates {output.certificates} {params.settings} 2>&1 | tee {log}"
