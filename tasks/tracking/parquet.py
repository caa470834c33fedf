"""Per-sample results as Parquet, one row a sample, the digest of the item set in the file's metadata.

Beside the figures stands the item in readable form, where it was kept: one file answers which questions a
model got wrong.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.quality.samples import ItemNote, Sample, Samples

_DIGEST = b"keiryo.items_digest"
_TEXT = ("task", "metric", "item", "item_hash", "cluster")
_NOTE_TEXT = ("prompt", "target", "answer")
_FIGURES = [("value", pa.float64()), ("weight", pa.float64())]
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXT),
        *_FIGURES,
        *((name, pa.string()) for name in _NOTE_TEXT),
        ("margin_nats", pa.float64()),
    ]
)


def write_samples(samples: Samples, path: Path) -> None:
    """Write all rows, in their order; the columns of a note are null where the item has none."""
    notes = {(note.task, note.item): note for note in samples.notes}
    beside = [notes.get((row.task, row.item)) for row in samples.rows]
    columns = {name: [getattr(row, name) for row in samples.rows] for name in (*_TEXT, "value", "weight")}
    columns |= {name: [getattr(note, name, None) for note in beside] for name in (*_NOTE_TEXT, "margin_nats")}
    schema = _SCHEMA.with_metadata({_DIGEST: samples.items_digest.encode()})
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def read_samples(path: Path) -> Samples:
    """Read back what `write_samples` wrote; a note comes back once an item.

    Raises:
        ValueError: the file has no digest of its item set, so it was not written by Keiryo.
    """
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if _DIGEST not in metadata:
        raise ValueError(
            f"{path} has no keiryo.items_digest in its metadata; it is not a sample file of Keiryo"
        )
    rows = table.to_pylist()
    notes = {
        (row["task"], row["item"]): ItemNote.model_validate({n: row[n] for n in ItemNote.model_fields})
        for row in rows
        if row.get("prompt") is not None
    }
    return Samples(
        items_digest=metadata[_DIGEST].decode(),
        rows=tuple(Sample.model_validate({name: row[name] for name in Sample.model_fields}) for row in rows),
        notes=tuple(notes.values()),
    )
