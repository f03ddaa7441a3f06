"""What a user sees of a result: tables on the terminal, pictures, a page that needs no network, and the history."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdfa.bench import results
from rdfa.bench.report import figures
from rdfa.bench.report.page import page
from rdfa.bench.report.table import notes, print_table
from rdfa.bench.results import Row, write_json
from rdfa.files import replacing

__all__ = ["notes", "page", "print_table", "write"]


def write(output: Path, environment: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write results.json, the pictures and report.html into `output`, each under its name only when complete."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results.document(environment, list(rows)))
    pictures = figures.draw(environment, rows)
    for name, png in pictures.items():
        with replacing(output / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    with replacing(output / "report.html") as temporary:
        temporary.write_text(page(environment, rows, pictures), encoding="utf-8")
