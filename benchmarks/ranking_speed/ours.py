"""This project's ranker: `Trainer.train_step` on its own windows and batches, `validation_ndcg`.

Losses: full softmax (the default of the workflow) and the sampled ones with shared negatives.
"""

import numpy as np
from measure import (
    BATCH_SIZE,
    BLOCKS,
    DROPOUT,
    HEADS,
    Meter,
    arguments,
    peak_rss_mb,
    read_sequences,
    report,
    timed,
)

from shielded_recrl.ranker.batches import batches, pad, windows
from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.sasrec import SASRec
from shielded_recrl.ranker.settings import RankerSettings
from shielded_recrl.ranker.train import Trainer, validation_ndcg

LOSSES = ("ce", "sampled_softmax", "gbce", "bce")


def leave_two_out(sequences: list[np.ndarray]) -> Splits:
    """The last item of each user for testing, the one before for validation."""
    return Splits.from_sequences(
        train=[row[:-2] for row in sequences],
        valid=[row[-2:-1] for row in sequences],
        test=[row[-1:] for row in sequences],
        n_items=int(max(row.max() for row in sequences)),
    )


def train(trainer: Trainer, splits: Splits, meter: Meter, rng: np.random.Generator) -> None:
    """Epochs as `train_epoch` makes them, until enough steps are timed."""
    settings = trainer.settings
    trainer.model.train()
    while True:
        rows = windows(splits.train, settings.max_length, rng)
        for batch in batches(rows, settings.batch_size, rng):
            _, targets = trainer.train_step(pad(batch, settings.max_length + 1))
            if meter.step(targets):
                return


def main() -> None:
    """Train, evaluate, report."""
    args = arguments(LOSSES)
    splits = leave_two_out(read_sequences(args.data))
    settings = RankerSettings(
        dim=args.dim,
        blocks=BLOCKS,
        heads=HEADS,
        feedforward=1,
        dropout=DROPOUT,
        max_length=args.max_len,
        batch_size=BATCH_SIZE,
        loss=args.loss,
        negatives=args.negatives,
    )
    trainer = Trainer(SASRec(splits.n_items, settings), settings)
    meter = Meter(args.warm_up, args.seconds)
    train(trainer, splits, meter, np.random.default_rng(args.seed))
    rss, seconds = peak_rss_mb(), None
    if args.evaluate:
        users = np.arange(1, splits.n_users + 1)
        seconds = timed(validation_ndcg, trainer.average, splits, users, BATCH_SIZE)
    report("this project", args, meter, seconds, rss)


if __name__ == "__main__":
    main()
