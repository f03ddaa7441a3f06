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
    # slower, faster, equal, broken, repaired, gone (skipped now), new, not measured (neither row nor reason),
    # other bound (of Server: the rates found cannot be compared)
    kind: str
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
        environments.summary(result["environment"])
        for row in result["rows"]:
            _present(row)
            _cost(row)
        return {"environment": result["environment"], "rows": result["rows"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"--compare {path}: no result of serve_bench.py is there ({error})") from error


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """All rows of both, in the order of the new result; rows that were skipped in both are left out."""
    before, after = ({_key(row): row for row in result["rows"] if _present(row)} for result in (old, new))
    spreads = _spread(old), _spread(new)
    found = [_change(key, before.get(key), row, spreads) for key, row in after.items()]
    skipped = {_key(row): row["verdict"] for row in new["rows"] if not _present(row)}
    for key in before:
        if key in skipped:
            found.append(Change(key, "gone", note=skipped[key]))
        elif key not in after:
            found.append(Change(key, "not measured"))
    return found


def regressions(found: Sequence[Change], bound: float) -> list[Change]:
    """What is slower by more than `bound` (0.05: 5 %), has become invalid, or is skipped now."""
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
    console.print(f"{len(found) - len(shown)} of {len(found)} rows did not change beyond noise.", highlight=False)


def _change(key: tuple, old: dict[str, Any] | None, new: dict[str, Any], spreads: tuple) -> Change:
    if old is None:
        return Change(key, "new")
    valid = old["verdict"] == "valid", new["verdict"] == "valid"
    if valid == (True, False):
        return Change(key, "broken", note=new["verdict"])
    if valid == (False, True):
        return Change(key, "repaired")
    # LoadGen's rows have no twins; the worst of the others stand in.
    own = [s if row.get("aa_spread") is None else row["aa_spread"] for row, s in zip((old, new), spreads)]
    noise = sum(own) + BETWEEN_RUNS
    loads = [row.get("loadgen") or {} for row in (old, new)]
    bounds, rates = ([load.get(name) for load in loads] for name in ("p99_bound_ms", "target_qps"))
    if None not in bounds and abs(bounds[1] / bounds[0] - 1) > noise:
        return Change(key, "other bound", note=f"{bounds[0]:g} ms, now {bounds[1]:g} ms: give both the same --p99_ms")
    # At a rate that was given, the throughput is that rate, whatever it costs.
    by_latency = rates[0] is not None and rates[0] == rates[1]
    costs = [_cost(row, by_latency) for row in (old, new)]
    if None in costs:
        kinds = {(True, False): "repaired", (False, True): "broken"}
        return Change(key, kinds.get(tuple(cost is None for cost in costs), "equal"), note="the bound is not kept")
    factor = costs[1] / costs[0]
    if abs(factor - 1) <= noise:
        return Change(key, "equal", factor)
    results = [load.get("result") for load in loads]
    note = f"LoadGen: {results[0]}, now {results[1]}" if results[0] != results[1] else ""
    return Change(key, "slower" if factor > 1 else "faster", factor, note)


def _cost(row: dict[str, Any], by_latency: bool = False) -> float | None:
    """None of a row without a speed, and of a Server test that broke its bound on the 99th percentile."""
    latency, bound = row["latency_ms"], (row.get("loadgen") or {}).get("p99_bound_ms")
    if bound is not None and latency and latency["p99"] > bound:
        return None
    if row["scenario"] in ("Server", "Offline") and not by_latency:
        return 1 / row["throughput_videos_per_s"] if row["throughput_videos_per_s"] else None
    return latency["p50"] if latency else None


def _spread(result: dict[str, Any]) -> float:
    spreads = [row["aa_spread"] for row in result["rows"] if row.get("aa_spread") is not None]
    return max(spreads, default=UNKNOWN_SPREAD)


def _present(row: dict[str, Any]) -> bool:
    return not row["verdict"].startswith("skipped")


def _key(row: dict[str, Any]) -> tuple:
    return tuple(row.get(name, "none") for name in KEY)
