# REQUIRED INPUTS: every run of the study with its evaluation, certificate and audit, stats.json of its datasets
# OUTPUTS: results/{aggregate_results,significance,success_criteria}.csv, results/report/, results/manifest.json, release folders

RUN_FILES = [
    "evaluation.json",
    "certificate.json",
    "explanations.jsonl",
    "rankings.parquet",
    "users.parquet",
    "summary.json",
    "train.jsonl",
]
RUNS = [f"results/rl/{d}/{v}/seed-{s}" for d, v, s in STUDY.runs]
FINISHED = {
    "runs": [f"{run}/{name}" for run in RUNS for name in RUN_FILES],
    "audits": AUDITS,
    "stats": [f"results/data/{d}/stats.json" for d in STUDY.datasets],
}
# Figures and pages by the category of the report they are shown in; the menu sorts by name.
FIGURES = {
    "ndcg_over_steps": "4. Shield",
    "frontier": "4. Shield",
    "ctr_over_steps": "5. Training",
    "overoptimisation": "5. Training",
    "ablation": "6. Evidence",
    "quality_weight": "6. Evidence",
    "calibration": "6. Evidence",
    "texts": "6. Evidence",
    "audits": "7. Audit",
}
PAGES = {
    "results/report/criteria.md": "1. Criteria",
    "results/report/datasets.md": "2. Data",
    **{f"results/ranker/{d}/card.md": "3. Ranker" for d in STUDY.datasets},
    "results/report/certificates.md": "4. Shield",
    "results/report/explanations.md": "5. Training",
    "results/report/significance.md": "6. Evidence",
    "results/audit/audit.md": "7. Audit",
}
# What the manifest lists beside its other inputs. With a storage, a job finds only its inputs; a
# local one looks around below results/, where the user may have removed what nothing needs any more.
ARTEFACTS = [
    *(f"results/data/{d}/{name}" for d in STUDY.datasets for name in DATA_FILES),
    *(f"results/ranker/{d}/{name}" for d in STUDY.datasets for name in RANKER_FILES),
    *STUDY.shared_files(),
    *(f"{run}/{name}" for run in RUNS for name in [*RUN_FILES, "adapter", "snapshots.safetensors"]),
    *AUDITS,
    *(path.replace("audit.json", "probes.json") for path in AUDITS),
    *(f"results/audit/audit.{suffix}" for suffix in ("json", "md", "pdf")),
    *(page for page in PAGES if page.startswith("results/report/")),
    *(f"results/report/figures/{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
    *(f"results/report/tables/{name}.tex" for name in ("results", "drift", "significance")),
]


rule aggregate:
    input:
        **FINISHED,
        summary="results/audit/audit.json",
    output:
        table=report(
            "results/aggregate_results.csv",
            caption="../workflow/report/results.rst",
            category="6. Evidence",
            labels={"what": "table of all runs, CSV"},
        ),
        figures=[
            report(
                f"results/report/figures/{name}.png",
                caption=f"../workflow/report/{name}.rst",
                category=category,
                labels={"what": name.replace("_", " ")},
            )
            for name, category in FIGURES.items()
        ],
        print=[f"results/report/figures/{name}.pdf" for name in FIGURES],
        texts="results/report/explanations.md",
        certificates="results/report/certificates.md",
        datasets="results/report/datasets.md",
        tables=expand("results/report/tables/{name}.tex", name=["results", "drift"]),
    log:
        "results/logs/report/aggregate.log",
    benchmark:
        "results/benchmarks/report/aggregate.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
    params:
        runs=lambda w, input: folders(input.runs),
        figures=lambda w, output: os.path.dirname(output.figures[0]),
        tables=lambda w, output: os.path.dirname(output.tables[0]),
        settings=flags(section(CONFIG.report, TableSettings)),
        code=code_digest("shielded_recrl.report.aggregate"),
    message:
        "Collect all runs into results/aggregate_results.csv, figures and tables"
    shell:
        "python -m shielded_recrl.report aggregate --runs {params.runs} --audits {input.audits} "
        "--summary {input.summary} --stats {input.stats} --out {output.table} "
        "--figures {params.figures} --tables {params.tables} --texts {output.texts} "
        "--certificates {output.certificates} --datasets {output.datasets} "
        "{params.settings} 2>&1 | tee {log}"


rule significance:
    input:
        **FINISHED,
    output:
        csv=report(
            "results/significance.csv",
            caption="../workflow/report/significance.rst",
            category="6. Evidence",
            labels={"what": "variants against shielded, CSV"},
        ),
        table="results/report/tables/significance.tex",
        page="results/report/significance.md",
    log:
        "results/logs/report/significance.log",
    benchmark:
        "results/benchmarks/report/significance.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
    params:
        runs=lambda w, input: folders(input.runs),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.report.significance"),
    message:
        "Test every variant against shielded"
    shell:
        "python -m shielded_recrl.report significance --runs {params.runs} "
        "--audits {input.audits} --stats {input.stats} --out {output.csv} --table {output.table} "
        "--page {output.page} --seed {params.seed} 2>&1 | tee {log}"


rule criteria:
    input:
        **FINISHED,
        summary="results/audit/audit.json",
    output:
        csv=report(
            "results/success_criteria.csv",
            caption="../workflow/report/criteria.rst",
            category="1. Criteria",
            labels={"what": "success criteria, CSV"},
        ),
        page="results/report/criteria.md",
    log:
        "results/logs/report/criteria.log",
    benchmark:
        "results/benchmarks/report/criteria.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grown(800),
    params:
        runs=lambda w, input: folders(input.runs),
        planned=[f"{d}/{v}/{s}/{STUDY.variants[v].rl.steps}" for d, v, s in STUDY.runs],
        settings=flags(CONFIG.report),
        code=code_digest("shielded_recrl.report.criteria"),
    message:
        "Judge the success criteria"
    shell:
        "python -m shielded_recrl.report criteria --runs {params.runs} --audits {input.audits} "
        "--stats {input.stats} --audit {input.summary} --planned {params.planned} "
        "--out {output.csv} --page {output.page} {params.settings} 2>&1 | tee {log}"


rule pages:
    input:
        sources=list(PAGES),
        # The ranker's cards show their curves.
        curves=[f"results/ranker/{d}/curve.svg" for d in STUDY.datasets],
    output:
        [
            report(
                page_html(page),
                caption="../workflow/report/page.rst",
                category=category,
                labels={"what": Path(page_html(page)).stem},
            )
            for page, category in PAGES.items()
        ],
    log:
        "results/logs/report/pages.log",
    benchmark:
        "results/benchmarks/report/pages.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grown(300),
    params:
        code=code_digest("shielded_recrl.report.pages"),
    message:
        "Turn the pages of the report into HTML"
    shell:
        "python -m shielded_recrl.report pages --sources {input.sources} --outs {output} 2>&1 | tee {log}"


rule model_card:
    input:
        run=[f"{RUN}/{name}" for name in RUN_FILES],
        adapter=f"{RUN}/adapter",
        audit=f"{AUDIT}/audit.json",
        stats="results/data/{dataset}/stats.json",
    output:
        directory(f"{RUN}/release"),
    log:
        "results/logs/report/{dataset}/{variant}/seed-{seed}/model_card.log",
    benchmark:
        "results/benchmarks/report/{dataset}/{variant}/seed-{seed}/model_card.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
    params:
        run=subpath(input.adapter, parent=True),
        base=lambda w: STUDY.card_flags(w.variant),
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.report.model_card"),
    message:
        "Write the model card of {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.report model_card --run {params.run} "
        "--audit {input.audit} --stats {input.stats} --templates {params.templates} "
        "--out {output} {params.base} 2>&1 | tee {log}"


rule manifest:
    input:
        "results/aggregate_results.csv",
        "results/significance.csv",
        "results/success_criteria.csv",
        list(map(page_html, PAGES)),
        [f"{run}/release" for run in RUNS],
        ARTEFACTS if STORAGE else [],
    output:
        "results/manifest.json",
    log:
        "results/logs/report/manifest.log",
    benchmark:
        "results/benchmarks/report/manifest.tsv"
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grown(300),
        # No parameter: what was made with other threads is not made again, nor said to be.
        lm_threads=LM_THREADS,
    params:
        results=subpath(output[0], parent=True),
        config=CONFIG.model_dump_json(exclude={"resources"}),
        code=code_digest("shielded_recrl.report.manifest"),
    message:
        "List every artefact with its checksum in results/manifest.json"
    shell:
        "python -m shielded_recrl.report manifest --results {params.results} "
        "--config <(printf '%s' {params.config:q}) --threads {resources.lm_threads} "
        "--out {output} 2>&1 | tee {log}"
