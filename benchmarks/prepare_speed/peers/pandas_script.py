"""Digest, filter, iterated k-core, per-user split and parquet, as one writes them with pandas."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd

source, out, least, core = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
names = ["user", "item", "rating", "timestamp"]
ids = "string" if sys.argv[5] == "text" else "int32"
types = dict(zip(names, (ids, ids, "float32", "int64"), strict=True))
frame = pd.read_csv(source, header=0, names=names, dtype=types, engine="pyarrow")
frame = frame[frame["rating"] >= least]
if ids == "string":
    frame["user"] = frame["user"].astype("category").cat.codes
    frame["item"] = frame["item"].astype("category").cat.codes
before = -1
while before != len(frame):
    before = len(frame)
    frame = frame[frame["user"].map(frame["user"].value_counts()) >= core]
    frame = frame[frame["item"].map(frame["item"].value_counts()) >= core]
frame = frame.sort_values(["user", "timestamp"], kind="stable")
groups = frame.groupby("user")["item"]
size = groups.transform("size").to_numpy()
from_end = size - groups.cumcount().to_numpy()
held = np.where(size >= 3, np.maximum(1, np.floor(size * 0.1 + 1e-9)), 0)
parts = {
    "train": from_end > 2 * held,
    "valid": (from_end <= 2 * held) & (from_end > held),
    "test": from_end <= held,
}
frame.to_parquet(out / "interactions.parquet", index=False)
for name, rows in parts.items():
    frame[rows].to_parquet(out / f"{name}.parquet", index=False)
with open(source, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
print(*(int(rows.sum()) for rows in parts.values()), digest)
