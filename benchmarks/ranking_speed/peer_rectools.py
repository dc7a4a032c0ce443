"""RecTools: `SASRecModel.fit` with a counter as a Lightning callback, `recommend`, `NDCG`.

Losses: full softmax, sampled softmax, gBCE, and BCE with one negative a target.
"""

import warnings

import numpy as np
import pandas as pd
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
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import SASRecModel

LOSSES = {"ce": "softmax", "sampled_softmax": "sampled_softmax", "gbce": "gBCE", "bce": "BCE"}


class Counter(Callback):
    """Counts the targets of each batch, and stops the training once that is enough."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Lightning calls this after each optimizer step."""
        trainer.should_stop = self.meter.step(int((batch["y"] != 0).sum()))


def main() -> None:
    """Train, evaluate, report."""
    args = arguments(tuple(LOSSES))
    warnings.filterwarnings("ignore")
    sequences = read_sequences(args.data)
    train = [row[:-2] for row in sequences]
    users = np.arange(1, len(train) + 1)
    interactions = pd.DataFrame(
        {
            Columns.User: np.repeat(users, [len(row) for row in train]),
            Columns.Item: np.concatenate(train),
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(
                np.concatenate([np.arange(len(row)) for row in train]), unit="s"
            ),
        }
    )
    dataset = Dataset.construct(interactions)
    held_out = pd.DataFrame({Columns.User: users, Columns.Item: [row[-2] for row in sequences]})
    model = SASRecModel(
        n_blocks=BLOCKS,
        n_heads=HEADS,
        n_factors=args.dim,
        dropout_rate=DROPOUT,
        session_max_len=args.max_len,
        loss=LOSSES[args.loss],
        n_negatives=1 if args.loss == "bce" else args.negatives,
        batch_size=BATCH_SIZE,
        get_trainer_func=lambda: Trainer(
            accelerator="cpu",
            max_epochs=-1,
            callbacks=[Counter(Meter(args.warm_up, args.seconds))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
    )
    model.fit(dataset)
    # `fit` trains with a copy of the trainer, callbacks included.
    meter = next(c.meter for c in model.fit_trainer.callbacks if isinstance(c, Counter))
    rss, seconds = peak_rss_mb(), None

    def evaluate() -> float:
        found = model.recommend(users, dataset, k=10, filter_viewed=True)
        return NDCG(k=10).calc(found, held_out)

    if args.evaluate:
        seconds = timed(evaluate)
    report("RecTools", args, meter, seconds, rss)


if __name__ == "__main__":
    main()
