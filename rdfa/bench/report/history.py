"""history.csv: a line per row of every run, appended, for a spreadsheet or a plot over months."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdfa.bench import environment as environments
from rdfa.bench.results import Row
from rdfa.errors import RunError
from rdfa.files import replacing

PERCENTILES = ("min", "mean", "p50", "p90", "p99")
_PLAIN = [f.name for f in dataclasses.fields(Row) if f.name not in ("latency_ms", "loadgen", "parity", "detections")]
COLUMNS = (
    "run", "git_commit", "machine", *_PLAIN, *(f"{name}_ms" for name in PERCENTILES), "max_abs", "loadgen_result",
    "target_qps",
)  # fmt: skip


def read(path: Path) -> str:
    """What the file holds so far. Called before anything is measured, too.

    Raises:
        RunError: it has other columns, from another version.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and before.partition("\n")[0] != ",".join(COLUMNS):
        raise RunError(f"{path} has the columns of another version: move it away, and a new one begins")
    return before


def append(path: Path, environment: dict[str, Any], rows: Sequence[Row]) -> None:
    """Add the rows to the file, or begin it; raises as `read`."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    before = read(path)
    if not before:
        writer.writeheader()
    machine = environments.summary(environment)
    for row in rows:
        latency, parity, loadgen = row.latency_ms or {}, row.parity or {}, row.loadgen or {}
        values = {name: getattr(row, name) for name in _PLAIN}
        values |= {f"{name}_ms": latency.get(name) for name in PERCENTILES}
        values |= {"run": environment["time"], "git_commit": environment["git_commit"], "machine": machine}
        values |= {"max_abs": parity.get("max_abs"), "loadgen_result": loadgen.get("result")}
        writer.writerow(values | {"target_qps": loadgen.get("target_qps")})
    with replacing(path) as temporary:
        temporary.write_text(before + stream.getvalue(), encoding="utf-8")
