"""Digest, filter, iterated k-core, per-user split and parquet, with polars and numpy."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import polars as pl

source, out, least, core = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
names = ["user", "item", "rating", "timestamp"]
ids = pl.Categorical if sys.argv[5] == "text" else pl.Int32
types = dict(zip(names, (ids, ids, pl.Float32, pl.Int64), strict=True))
rows = pl.scan_csv(source, schema=types, has_header=False, skip_rows=1)
frame = rows.filter(pl.col("rating") >= least).collect()
while True:
    user, item = (frame[side].to_physical().to_numpy() for side in ("user", "item"))
    keep = (np.bincount(user) >= core)[user] & (np.bincount(item) >= core)[item]
    if keep.all():
        break
    frame = frame.filter(keep)
frame = frame.with_columns(pl.col("user", "item").to_physical())
frame = frame.sort("user", "timestamp", maintain_order=True)
size, place = pl.len().over("user"), pl.int_range(pl.len()).over("user")
held = pl.when(size >= 3).then((size * 0.1 + 1e-9).floor().clip(1)).otherwise(0)
frame = frame.with_columns((size - place).alias("left"), held.alias("held"))
left, held = pl.col("left"), pl.col("held")
parts = {
    "train": left > 2 * held,
    "valid": (left <= 2 * held) & (left > held),
    "test": left <= held,
}
frame.drop("left", "held").write_parquet(out / "interactions.parquet")
sizes = []
for name, rows in parts.items():
    part = frame.filter(rows).drop("left", "held")
    part.write_parquet(out / f"{name}.parquet")
    sizes.append(len(part))
with open(source, "rb") as file:
    print(*sizes, hashlib.file_digest(file, "sha256").hexdigest())
