# REQUIRED INPUTS: a base LM, a LoRA init, bases, read-out, ranker states, results/data/{dataset}
# OUTPUTS: results/rl/{dataset}/{variant}/seed-{seed}/ with adapter, logs, evaluation and texts
# With `resources.shards` above 1, jobs of `generate_texts` sample the texts that `evaluate_policy` measures.

RUN = "results/rl/{dataset}/{variant}/seed-{seed}"


rule train_policy:
    input:
        unpack(lambda w: placed(STUDY.train_inputs(w.dataset, w.variant))),
        splits=SPLITS,
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
        mem_mb=grown(LM_MEM_MB * max(1, PPO_GPU)),
        runtime=LM_RUNTIME,
        gpu=PPO_GPU,
        # For Slurm: each rank on a GPU has the threads that the rank of one GPU has.
        cpus_per_gpu=LM_THREADS,
    params:
        data=data_folder,
        base=base_folder,
        out=subpath(output.curve, parent=True),
        bases=lambda w, input: given(input, "bases"),
        lengths=lambda w: STUDY.run_flags(w.variant),
        roles=ROLE_FLAGS,
        settings=lambda w: flags(STUDY.variants[w.variant].rl),
        roles_seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.rl.train"),
    message:
        "Train {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python=python; [ {resources.gpu} -le 1 ] || "
        'python="torchrun --standalone --nproc_per_node {resources.gpu}"; '
        "$python -m shielded_recrl.rl train --data {params.data} "
        "--ranker {input.ranker} --base {params.base} --adapter {input.adapter} "
        "--readout {input.readout} {params.bases} --templates {params.templates} "
        "--out {params.out} --scratch results/scratch/rl/{wildcards.dataset}/"
        "{wildcards.variant}/seed-{wildcards.seed} --live results/live/{wildcards.dataset}/"
        "{wildcards.variant}/seed-{wildcards.seed} --dataset {wildcards.dataset} "
        "--variant {wildcards.variant} --seed {wildcards.seed} --roles-seed {params.roles_seed} "
        "{params.lengths} {params.roles} {params.settings} 2>&1 | tee {log}"


rule generate_texts:
    input:
        unpack(lambda w: placed(STUDY.probe_inputs(w.dataset, w.variant))),
        splits=SPLITS,
        ranker="results/ranker/{dataset}/states.safetensors",
        readout=lambda w: STUDY.run_paths(w.dataset, w.variant)["readout"],
        adapter=f"{RUN}/adapter",
        snapshots=f"{RUN}/snapshots.safetensors",
    output:
        temp(f"{RUN}/texts/shard-{{shard,[0-9]+}}-of-{{shards,[0-9]+}}.json"),
    log:
        "results/logs/rl/{dataset}/{variant}/seed-{seed}/texts/shard-{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/rl/{dataset}/{variant}/seed-{seed}/texts/shard-{shard}-of-{shards}.tsv"
    conda:
        "../envs/rl.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        run=lambda w, input: os.path.dirname(input.snapshots),
        lengths=lambda w: STUDY.probe_flags(w.variant),
        roles=ROLE_FLAGS,
        sampling=flags(CONFIG.sampling),
        settings=flags(section(CONFIG.evaluation, SlateSettings)),
        roles_seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.rl.generate"),
    message:
        "Sample texts of {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}, "
        "shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m shielded_recrl.rl generate --data {params.data} --ranker {input.ranker} "
        "--base {params.base} --run {params.run} --readout {input.readout} "
        "--templates {params.templates} --out {output} --shard {wildcards.shard} "
        "--shards {wildcards.shards} --seed {wildcards.seed} --roles-seed {params.roles_seed} "
        "{params.lengths} {params.roles} {params.sampling} {params.settings} 2>&1 | tee {log}"


rule evaluate_policy:
    input:
        unpack(lambda w: placed(STUDY.evaluate_inputs(w.dataset, w.variant))),
        unpack(lambda w: STUDY.text_parts(w.dataset, w.variant, w.seed)),
        splits=SPLITS,
        ranker="results/ranker/{dataset}/states.safetensors",
        reviews="results/data/{dataset}/reviews.parquet",
        bertscore=placed(STUDY.bertscore_inputs()),
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
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        run=subpath(output.evaluation, parent=True),
        shield=lambda w, input: given(input, "bases", "readout"),
        parts=lambda w, input: given(input, "parts"),
        lengths=lambda w: STUDY.run_flags(w.variant),
        roles=ROLE_FLAGS,
        sampling=flags(CONFIG.sampling),
        reward=lambda w: flags(STUDY.variants[w.variant].rl.reward, prefix="reward."),
        settings=flags(CONFIG.evaluation),
        roles_seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.rl.evaluate"),
    message:
        "Evaluate {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.rl evaluate --data {params.data} "
        "--ranker {input.ranker} --base {params.base} {params.shield} --reviews {input.reviews} "
        "--templates {params.templates} --run {params.run} {params.parts} "
        "--dataset {wildcards.dataset} --variant {wildcards.variant} "
        "--seed {wildcards.seed} --roles-seed {params.roles_seed} {params.lengths} "
        "{params.roles} {params.sampling} {params.reward} {params.settings} 2>&1 | tee {log}"
