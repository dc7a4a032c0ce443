"""`python -m shielded_recrl.ranker`."""

from shielded_recrl.cli import run_stage

if __name__ == "__main__":
    run_stage(
        "ranker",
        {
            "train": "train SASRec, stopping early on validation NDCG@10",
            "evaluate": "metrics beside baselines, and the frozen states for later stages",
            "export": "every user's recommendations under the ids of the source",
        },
    )
