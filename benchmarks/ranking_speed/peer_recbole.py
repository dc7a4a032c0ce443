"""RecBole: SASRec with full cross-entropy, its `Trainer` with a counter around the loss.

It makes one training row of every prefix of every history, so a row has one target.
"""

import contextlib
import os
import sys

import torch
from measure import (
    BATCH_SIZE,
    BLOCKS,
    DROPOUT,
    HEADS,
    EnoughError,
    Meter,
    arguments,
    peak_rss_mb,
    read_sequences,
    report,
    timed,
)
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer


def write_dataset(path, folder) -> None:
    """Its `.inter` file, with the place in the history as the time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "benchmark.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, row in enumerate(read_sequences(path), start=1):
            file.writelines(f"{user}\t{item}\t{time}\n" for time, item in enumerate(row))


def main() -> None:
    """Train, evaluate, report."""
    args = arguments(("ce",))
    write_dataset(args.data, args.work / "benchmark")
    os.chdir(args.work)
    sys.argv = sys.argv[:1]
    options = {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": args.max_len,
        "hidden_size": args.dim,
        "inner_size": args.dim,
        "n_layers": BLOCKS,
        "n_heads": HEADS,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": BATCH_SIZE,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "seed": args.seed,
    }
    with contextlib.redirect_stdout(sys.stderr):
        config = Config(model="SASRec", dataset="benchmark", config_dict=options)
        torch.set_num_threads(args.threads)
        train_data, valid_data, _ = data_preparation(config, create_dataset(config))
        model = get_model("SASRec")(config, train_data._dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
        meter, pending = Meter(args.warm_up, args.seconds), []

        def loss(batch):
            if pending and meter.step(pending.pop()):
                raise EnoughError
            pending.append(len(batch))
            return model.calculate_loss(batch)

        with contextlib.suppress(EnoughError):
            trainer._train_epoch(train_data, 0, loss)
        rss, seconds = peak_rss_mb(), None
        if args.evaluate:
            trainer.eval_collector.data_collect(train_data)
            seconds = timed(lambda: trainer.evaluate(valid_data, load_best_model=False))
    report("RecBole", args, meter, seconds, rss)


if __name__ == "__main__":
    main()
