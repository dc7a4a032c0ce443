# REQUIRED INPUTS: a base LM, a LoRA init, bases, read-out, ranker states, results/data/{dataset}
# OUTPUTS: results/rl/{dataset}/{variant}/seed-{seed}/ with adapter, logs, evaluation and texts

RUN = "results/rl/{dataset}/{variant}/seed-{seed}"


rule train_policy:
    input:
        SPLITS,
        unpack(lambda w: STUDY.train_inputs(w.dataset, w.variant)),
        templates=PROMPT_FILES,
        ranker="results/ranker/{dataset}/states.safetensors",
    output:
        adapter=directory(f"{RUN}/adapter"),
        snapshots=f"{RUN}/snapshots.safetensors",
        curve=f"{RUN}/train.jsonl",
        summary=f"{RUN}/summary.json",
    log:
        "results/logs/rl/{dataset}/{variant}/seed-{seed}/train.log",
    benchmark:
        "results/benchmarks/rl/{dataset}/{variant}/seed-{seed}/train.tsv"
    conda:
        "../envs/rl.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB * max(1, PPO_GPU),
        gpu=PPO_GPU,
    params:
        base=lambda w: STUDY.run_paths(w.dataset, w.variant)["base"],
        bases=lambda w, input: given(input, "bases"),
        lengths=lambda w: STUDY.run_flags(w.variant),
        roles=ROLE_FLAGS,
        settings=lambda w: flags(STUDY.variants[w.variant].rl),
        roles_seed=CONFIG.seed,
        templates=lambda w, input: os.path.dirname(input.templates[0]),
        code=code_digest("shielded_recrl.rl.train"),
    message:
        "Train {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python=python; [ {resources.gpu} -le 1 ] || "
        'python="torchrun --standalone --nproc_per_node {resources.gpu}"; '
        "$python -m shielded_recrl.rl train --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} --adapter {input.adapter} "
        "--readout {input.readout} {params.bases} --templates {params.templates} "
        "--out results/rl/{wildcards.dataset}/{wildcards.variant}/seed-{wildcards.seed} "
        "--scratch results/scratch/rl/{wildcards.dataset}/"
        "{wildcards.variant}/seed-{wildcards.seed} --live results/live/{wildcards.dataset}/"
        "{wildcards.variant}/seed-{wildcards.seed} --dataset {wildcards.dataset} "
        "--variant {wildcards.variant} --seed {wildcards.seed} --roles-seed {params.roles_seed} "
        "{params.lengths} {params.roles} {params.settings} 2>&1 | tee {log}"


rule evaluate_policy:
    input:
        SPLITS,
        unpack(lambda w: STUDY.evaluate_inputs(w.dataset, w.variant)),
        templates=PROMPT_FILES,
        ranker="results/ranker/{dataset}/states.safetensors",
        reviews="results/data/{dataset}/reviews.parquet",
        bertscore=STUDY.bertscore_inputs(),
        adapter=f"{RUN}/adapter",
        snapshots=f"{RUN}/snapshots.safetensors",
        curve=f"{RUN}/train.jsonl",
    output:
        evaluation=f"{RUN}/evaluation.json",
        certificate=f"{RUN}/certificate.json",
        explanations=f"{RUN}/explanations.jsonl",
        rankings=f"{RUN}/rankings.parquet",
        users=f"{RUN}/users.parquet",
    log:
        "results/logs/rl/{dataset}/{variant}/seed-{seed}/evaluate.log",
    benchmark:
        "results/benchmarks/rl/{dataset}/{variant}/seed-{seed}/evaluate.tsv"
    conda:
        "../envs/rl.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    params:
        base=lambda w: STUDY.run_paths(w.dataset, w.variant)["base"],
        shield=lambda w, input: given(input, "bases", "readout"),
        lengths=lambda w: STUDY.run_flags(w.variant),
        roles=ROLE_FLAGS,
        sampling=flags(CONFIG.sampling),
        reward=lambda w: flags(STUDY.variants[w.variant].rl.reward, prefix="reward."),
        settings=flags(CONFIG.evaluation),
        roles_seed=CONFIG.seed,
        templates=lambda w, input: os.path.dirname(input.templates[0]),
        code=code_digest("shielded_recrl.rl.evaluate"),
    message:
        "Evaluate {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.rl evaluate --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} {params.shield} --reviews {input.reviews} "
        "--templates {params.templates} --run results/rl/{wildcards.dataset}/{wildcards.variant}/"
        "seed-{wildcards.seed} --dataset {wildcards.dataset} --variant {wildcards.variant} "
        "--seed {wildcards.seed} --roles-seed {params.roles_seed} {params.lengths} "
        "{params.roles} {params.sampling} {params.reward} {params.settings} 2>&1 | tee {log}"
