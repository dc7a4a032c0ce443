"""Digest, filter, iterated k-core, per-user split and parquet, as one writes them with duckdb."""

import hashlib
import os
import sys
from pathlib import Path

import duckdb

source, out, least, core = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
ids = "VARCHAR" if sys.argv[5] == "text" else "INTEGER"
db = duckdb.connect()
db.execute(f"SET threads = {os.environ['POLARS_MAX_THREADS']}")
db.execute(
    f"""CREATE TABLE kept AS SELECT user, item, rating, timestamp, row_number() OVER () AS row
    FROM read_csv('{source}', header = true, columns = {{'user': '{ids}', 'item': '{ids}',
    'rating': 'FLOAT', 'timestamp': 'BIGINT'}}) WHERE rating >= {least}"""
)
before = -1
while before != (before := db.execute("SELECT count(*) FROM kept").fetchone()[0]):
    for side in ("user", "item"):
        db.execute(
            f"""DELETE FROM kept WHERE {side} IN
            (SELECT {side} FROM kept GROUP BY {side} HAVING count(*) < {core})"""
        )
db.execute(
    """CREATE VIEW placed AS SELECT *, count(*) OVER (PARTITION BY user) AS size,
    size - row_number() OVER (PARTITION BY user ORDER BY timestamp, row) + 1 AS left_,
    CASE WHEN size >= 3 THEN greatest(1, floor(size * 0.1 + 1e-9)) ELSE 0 END AS held FROM kept"""
)
db.execute(
    """CREATE TABLE parts AS SELECT user, item, timestamp, rating, CASE WHEN left_ <= held
    THEN 'test' WHEN left_ <= 2 * held THEN 'valid' ELSE 'train' END AS part FROM placed"""
)
columns = "SELECT user, item, rating, timestamp FROM parts"
db.execute(f"COPY ({columns}) TO '{out / 'interactions.parquet'}'")
sizes = []
for part in ("train", "valid", "test"):
    db.execute(f"COPY ({columns} WHERE part = '{part}') TO '{out / part}.parquet'")
    sizes.append(db.execute(f"SELECT count(*) FROM parts WHERE part = '{part}'").fetchone()[0])
with open(source, "rb") as file:
    print(*sizes, hashlib.file_digest(file, "sha256").hexdigest())
