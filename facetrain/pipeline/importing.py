"""ft import: from a packed dataset to a tree of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from facetrain.datasets.importers.recognise import open_source
from facetrain.datasets.importers.verification_bin import VerificationBin
from facetrain.datasets.importers.write_pairs import PairsReport, write_pairs
from facetrain.datasets.importers.write_tree import ImportReport, import_tree
from facetrain.errors import UserError
from facetrain.progress import Progress


@dataclass(frozen=True)
class Imported:
    """What was written: the tree, and of a verification set its list of pairs."""

    tree: ImportReport
    pairs: PairsReport | None


def import_dataset(
    paths: list[Path], out: Path, *, format: str, image: str | None, label: str | None, jobs: int
) -> Imported:
    """Write a packed dataset as a tree. A mistake in the request writes nothing.

    Raises UserError for such mistakes, and where not one photograph could be had from the source.
    """
    source = open_source(paths, format=format, image=image, label=label)
    with Progress("importing", "MB") as bar:

        def show(position_bytes: int, photographs: int) -> None:
            bar.advance(position_bytes // 1_000_000 - bar.done, f"{photographs:,} photographs")

        report = import_tree(
            source,
            out,
            jobs=jobs,
            on_start=lambda total, done: bar.begin(total // 1_000_000, done // 1_000_000),
            on_progress=show,
        )
    if not report.photographs:
        if not report.rejected:
            raise UserError(f"{paths[0]} holds no photograph")
        why = next(iter(report.reasons), "see the list")
        raise UserError(
            f"none of {report.rejected:,} records is a photograph that can be used, most often: {why}; "
            f"all are listed in {report.rejected_list}"
        )
    pairs = write_pairs(source.set, out) if isinstance(source, VerificationBin) else None
    return Imported(report, pairs)
