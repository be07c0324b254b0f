"""The manifest: where each photograph's pixels lie.

cache.arrow (in the dataset's folder)   path, identity, content, shard, row; metadata: the shards and their sizes
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from facetrain.datasets.cache.shards import DecodeSpec
from facetrain.errors import UserError
from facetrain.tables import CONTENT, read_table, write_table

MANIFEST = pa.schema(
    [
        ("path", pa.large_string()),  # of the source photograph, as in the index; sorted
        ("identity", pa.dictionary(pa.int32(), pa.string())),
        ("content", CONTENT),  # of the crop as it was decoded
        ("shard", pa.int32()),
        ("row", pa.int32()),  # within the shard
    ]
)


@dataclass(frozen=True)
class Manifest:
    """Where each photograph's pixels lie, as `MANIFEST`; and the shards' names, and sizes in bytes by name."""

    table: pa.Table
    shards: list[str]
    spec: DecodeSpec
    sizes: dict[str, int]

    def write(self, store: Path) -> str:
        """Write it into a dataset's folder; return the file's fingerprint."""
        facts = {
            "shards": self.shards,
            "decode_spec": asdict(self.spec),
            "sizes": self.sizes,
        }
        table = self.table.replace_schema_metadata({"facetrain.cache": json.dumps(facts)})
        return write_table(_path(store), table)


def read_manifest(store: Path) -> Manifest | None:
    """The manifest of the last `ft cache`; None before the first."""
    path = _path(store)
    if not path.is_file():
        return None
    try:
        table = read_table(path)
    except UserError:  # damaged: the shards are found again by their names
        return None
    facts = json.loads(table.schema.metadata[b"facetrain.cache"])
    return Manifest(table, facts["shards"], DecodeSpec(**facts["decode_spec"]), facts["sizes"])


def _path(store: Path) -> Path:
    return store / "cache.arrow"
