"""gSASRec-pytorch: its `train_gsasrec.py` as it is, with a counter in its data loader.

gBCE with 256 negatives of its own for every target; its own evaluator, over all users.
"""

import contextlib
import json
import os
import sys

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

CONFIG = """from config import GSASRecExperimentConfig
config = GSASRecExperimentConfig(**{options!r})
"""


class Counted:
    """A data loader that goes on from epoch to epoch until enough steps are timed."""

    def __init__(self, loader, meter: Meter, padding: int) -> None:
        self.loader, self.meter, self.padding = loader, meter, padding

    def __len__(self) -> int:
        return sys.maxsize

    def __iter__(self):
        while True:
            for positives, negatives in self.loader:
                yield positives, negatives
                # Its loss masks the positions whose input is padding.
                if self.meter.step(int((positives[:, :-1] != self.padding).sum())):
                    raise EnoughError


def write_dataset(path, out) -> int:
    """The folder its data loaders read; returns the number of items."""
    sequences = read_sequences(path)
    n_items = int(max(row.max() for row in sequences))
    inputs = "".join(" ".join(map(str, row[:-2])) + "\n" for row in sequences)
    for part in ("train", "val"):
        (out / part).mkdir(parents=True, exist_ok=True)
        (out / part / "input.txt").write_text(inputs)
    (out / "val" / "output.txt").write_text("".join(f"{row[-2]}\n" for row in sequences))
    (out / "dataset_stats.json").write_text(json.dumps({"num_items": n_items}))
    return n_items


def main() -> None:
    """Train, evaluate, report."""
    args = arguments(("gbce",))
    source = args.source.resolve()
    sys.path.insert(0, str(source))
    n_items = write_dataset(args.data, args.work / "datasets" / "benchmark")
    os.chdir(args.work)
    import dataset_utils

    meter, loader = Meter(args.warm_up, args.seconds), dataset_utils.get_train_dataloader
    dataset_utils.get_train_dataloader = lambda *a, **k: Counted(
        loader(*a, **k), meter, n_items + 1
    )
    options = {
        "dataset_name": "benchmark",
        "sequence_length": args.max_len,
        "embedding_dim": args.dim,
        "train_batch_size": BATCH_SIZE,
        "num_heads": HEADS,
        "num_blocks": BLOCKS,
        "dropout_rate": DROPOUT,
        "negs_per_pos": args.negatives,
        "max_batches_per_epoch": sys.maxsize,
    }
    with open("settings.py", "w") as file:
        file.write(CONFIG.format(options=options))
    script = source / "train_gsasrec.py"
    sys.argv = [str(script), "--config=settings.py"]
    its = {"__name__": "__main__", "__file__": str(script)}
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(EnoughError):
        exec(compile(script.read_text(), str(script), "exec"), its)
    rss, seconds = peak_rss_mb(), None
    if args.evaluate:
        config = its["config"]
        seconds = timed(
            its["evaluate"],
            its["model"],
            its["val_dataloader"],
            config.metrics,
            config.recommendation_limit,
            config.filter_rated,
            its["device"],
        )
    report("gSASRec-pytorch", args, meter, seconds, rss)


if __name__ == "__main__":
    main()
