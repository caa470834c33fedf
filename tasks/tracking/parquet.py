"""Per-sample results as Parquet, one row a sample, the digest of the item set in the file's metadata."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.quality.samples import Sample, Samples

_DIGEST = b"keiryo.items_digest"
_TEXT = ("task", "metric", "item", "item_hash", "cluster")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT] + [("value", pa.float64()), ("weight", pa.float64())]
)


def write_samples(samples: Samples, path: Path) -> None:
    """Write all rows, in their order."""
    columns = {name: [getattr(row, name) for row in samples.rows] for name in _SCHEMA.names}
    schema = _SCHEMA.with_metadata({_DIGEST: samples.items_digest.encode()})
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def read_samples(path: Path) -> Samples:
    """Read back what `write_samples` wrote.

    Raises:
        ValueError: the file has no digest of its item set, so it was not written by Keiryo.
    """
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if _DIGEST not in metadata:
        raise ValueError(
            f"{path} has no keiryo.items_digest in its metadata; it is not a sample file of Keiryo"
        )
    rows = tuple(Sample.model_validate(row) for row in table.to_pylist())
    return Samples(items_digest=metadata[_DIGEST].decode(), rows=rows)
