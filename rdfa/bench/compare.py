"""What changed between two results, beyond noise: `serve_bench.py --compare OLD NEW`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rdfa.bench import environment as environments
from rdfa.errors import UsageError

# Two runs differ by more than two turns within one: what is added to the spreads that each run found by itself, and the
# spread of a result without any.
BETWEEN_RUNS, UNKNOWN_SPREAD = 0.02, 0.05
KEY = ("backend", "device", "dtype", "scenario", "batch", "time", "copies")


@dataclass(frozen=True)
class Change:
    """Of one row. `factor` is new over old, of its latency or of the inverse of its throughput: above 1 is slower."""

    key: tuple
    kind: str  # slower, faster, equal, gone, new, broken, repaired
    factor: float | None = None
    note: str = ""


def read(path: Path) -> dict[str, Any]:
    """A result, from `results.json` or the folder that holds it.

    Raises:
        UsageError: there is none.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return {"environment": result["environment"], "rows": list(result["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--compare {path}: no result of serve_bench.py is there ({error})") from error


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """All rows of both, in the order of the new result; skipped rows are as if they were not there."""
    before, after = ({_key(row): row for row in result["rows"] if _present(row)} for result in (old, new))
    noise = _spread(old) + _spread(new) + BETWEEN_RUNS
    found = [_change(key, before.get(key), row, noise) for key, row in after.items()]
    return found + [Change(key, "gone") for key in before if key not in after]


def regressions(found: Sequence[Change], bound: float) -> list[Change]:
    """What is slower by more than `bound` (0.05: 5 %), has become invalid, or is gone."""
    return [c for c in found if c.kind in ("broken", "gone") or (c.kind == "slower" and c.factor > 1 + bound)]


def print_changes(old: dict[str, Any], new: dict[str, Any], found: Sequence[Change], console: Console) -> None:
    """A line for each row that changed."""
    machines = [environments.summary(result["environment"]) for result in (old, new)]
    if machines[0] != machines[1]:
        console.print(f"The machines differ, so these are no changes of the code alone:\n  old: {machines[0]}")
        console.print(f"  new: {machines[1]}")
    table = Table(box=box.SIMPLE_HEAD)
    for name in (*KEY[:6], "change", "time, new / old", ""):
        table.add_column(name, no_wrap=True)
    shown = [change for change in found if change.kind != "equal"]
    for change in shown:
        factor = "" if change.factor is None else f"{change.factor:.3f}"
        table.add_row(*map(str, change.key[:6]), change.kind, factor, change.note)
    if shown:
        console.print(table)
    equal = len(found) - len(shown)
    noise = _spread(old) + _spread(new) + BETWEEN_RUNS
    console.print(
        f"{equal} of {len(found)} rows did not change by more than the noise of {noise:.1%}.", highlight=False
    )


def _change(key: tuple, old: dict[str, Any] | None, new: dict[str, Any], noise: float) -> Change:
    if old is None:
        return Change(key, "new")
    valid = old["verdict"] == "valid", new["verdict"] == "valid"
    if valid == (True, False):
        return Change(key, "broken", note=new["verdict"])
    if valid == (False, True):
        return Change(key, "repaired")
    costs = [_cost(row) for row in (old, new)]
    if None in costs:
        return Change(key, "equal")
    factor = costs[1] / costs[0]
    if abs(factor - 1) <= noise:
        return Change(key, "equal", factor)
    results = [(row.get("loadgen") or {}).get("result") for row in (old, new)]
    note = f"LoadGen: {results[0]}, now {results[1]}" if results[0] != results[1] else ""
    return Change(key, "slower" if factor > 1 else "faster", factor, note)


def _cost(row: dict[str, Any]) -> float | None:
    if row["scenario"] in ("Server", "Offline"):
        return 1 / row["throughput_videos_per_s"] if row["throughput_videos_per_s"] else None
    return row["latency_ms"]["p50"] if row["latency_ms"] else None


def _spread(result: dict[str, Any]) -> float:
    spreads = [row["aa_spread"] for row in result["rows"] if row.get("aa_spread") is not None]
    return max(spreads, default=UNKNOWN_SPREAD)


def _present(row: dict[str, Any]) -> bool:
    return not row["verdict"].startswith("skipped")


def _key(row: dict[str, Any]) -> tuple:
    return tuple(row.get(name, "none") for name in KEY)
