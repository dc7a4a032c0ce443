"""pmixer/SASRec.pytorch: its `main.py` as it is, with a counter in its batch queue.

One negative a target, binary cross-entropy, three sampling processes. It ranks among 100 sampled
items only, so the full ranking is a loop of ours around its `predict`.
"""

import contextlib
import os
import sys

import numpy as np
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
    report,
    timed,
)


@torch.no_grad()
def full_ranking(model, train: dict, valid: dict, n_users: int, n_items: int, length: int) -> float:
    """NDCG@10 over the whole catalogue, seen items removed, `BATCH_SIZE` users at a time."""
    model.eval()
    items, total = np.arange(1, n_items + 1), 0.0
    for start in range(1, n_users + 1, BATCH_SIZE):
        users = np.arange(start, min(start + BATCH_SIZE, n_users + 1))
        sequences = np.zeros((len(users), length), dtype=np.int32)
        for row, user in zip(sequences, users, strict=True):
            recent = train[user][-length:]
            row[length - len(recent) :] = recent
        scores = model.predict(users, sequences, items)
        rows = np.repeat(np.arange(len(users)), [len(train[user]) for user in users])
        scores[rows, np.concatenate([train[user] for user in users]) - 1] = -torch.inf
        targets = torch.tensor([valid[user][0] - 1 for user in users])
        ranks = (scores > scores.gather(1, targets[:, None])).sum(dim=1)
        total += (1 / torch.log2(ranks[ranks < 10] + 2.0)).sum().item()
    return total / n_users


def main() -> None:
    """Train, evaluate, report."""
    args = arguments(("bce",))
    sys.path.insert(0, str(args.source / "python"))
    import utils

    meter, pending = Meter(args.warm_up, args.seconds), []
    queue = utils.WarpSampler.next_batch

    def next_batch(sampler):
        if pending and meter.step(pending.pop()):
            raise EnoughError
        user, items, targets, negatives = queue(sampler)
        pending.append(sum(int(np.count_nonzero(row)) for row in targets))
        return user, items, targets, negatives

    utils.WarpSampler.next_batch = next_batch
    data = args.work / "data" / "benchmark.txt"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.unlink(missing_ok=True)
    data.symlink_to(args.data.resolve())
    script = (args.source / "python" / "main.py").resolve()
    os.chdir(args.work)
    options = {
        "dataset": "benchmark",
        "train_dir": "out",
        "batch_size": BATCH_SIZE,
        "maxlen": args.max_len,
        "hidden_units": args.dim,
        "num_blocks": BLOCKS,
        "num_heads": HEADS,
        "dropout_rate": DROPOUT,
        # Its own evaluation, among sampled items, comes every 20 epochs: not within a measurement.
        "num_epochs": 19,
        "device": "cpu",
    }
    sys.argv = [str(script), *(f"--{name}={value}" for name, value in options.items())]
    its = {"__name__": "__main__", "__file__": str(script)}
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(EnoughError):
        exec(compile(script.read_text(), str(script), "exec"), its)
    its["sampler"].close()
    rss, seconds = peak_rss_mb(), None
    if args.evaluate:
        train, valid, _, n_users, n_items = its["dataset"]
        ranked = (its["model"], train, valid, n_users, n_items, args.max_len)
        seconds = timed(full_ranking, *ranked)
    report("SASRec.pytorch", args, meter, seconds, rss)


if __name__ == "__main__":
    main()
