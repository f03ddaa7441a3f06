"""What counts as a change between two results, and what as a regression."""

import copy
import json

import pytest

import serve_bench
from rdfa import cli
from rdfa.bench import compare
from rdfa.errors import UsageError
from tests.bench.fakes import MACHINE

LATENCY = dict.fromkeys(("min", "mean", "p50", "p90", "p99"), 10.0)


def row(backend="eager", scenario="sweep", **changes):
    base = {
        "backend": backend, "device": "cpu", "dtype": "float32", "scenario": scenario, "batch": 1, "time": 32,
        "copies": "none", "verdict": "valid", "latency_ms": LATENCY, "throughput_videos_per_s": 100.0,
        "aa_spread": 0.01, "loadgen": None,
    }  # fmt: skip
    return base | changes


def result(*rows):
    return {"environment": MACHINE, "rows": list(rows)}


def slowed(factor, **changes):
    return row(latency_ms={name: factor * value for name, value in LATENCY.items()}, **changes)


@pytest.mark.parametrize(
    ("factor", "kind"), [(1.0, "equal"), (1.039, "equal"), (1.041, "slower"), (0.959, "faster"), (0.961, "equal")]
)
def test_noise_is_both_spreads_and_what_runs_differ_by(factor, kind):
    (change,) = compare.changes(result(row()), result(slowed(factor)))
    assert (change.kind, change.factor) == (kind, pytest.approx(factor))


def test_a_noisy_run_hides_more():
    (change,) = compare.changes(result(row()), result(slowed(1.3, aa_spread=0.4)))
    assert change.kind == "equal"


def test_the_noise_of_another_row_hides_nothing():
    noisy = row("plain", aa_spread=0.4)
    found = {change.key[0]: change.kind for change in compare.changes(result(row(), noisy), result(slowed(1.1), noisy))}
    assert found == {"eager": "slower", "plain": "equal"}


def test_server_and_offline_are_compared_by_throughput():
    loadgen = {"result": "VALID"}
    old = result(row(scenario="Offline", loadgen=loadgen, latency_ms=None))
    new = copy.deepcopy(old)
    new["rows"][0] |= {"throughput_videos_per_s": 80.0, "loadgen": {"result": "INVALID"}}
    (change,) = compare.changes(old, new)
    assert (change.kind, change.factor, change.note) == ("slower", pytest.approx(1.25), "LoadGen: VALID, now INVALID")
    new["rows"][0]["throughput_videos_per_s"] = 0.0
    assert compare.changes(old, new)[0].kind == "broken"
    assert compare.changes(new, old)[0].kind == "repaired"
    assert compare.changes(new, new)[0].kind == "equal"


def served(p99=90.0, rate=5.0, bound=100.0, **changes):
    loadgen = {"result": "VALID" if p99 <= bound else "INVALID", "target_qps": rate, "p99_bound_ms": bound}
    changes = {"throughput_videos_per_s": rate, "aa_spread": None} | changes
    return result(row(scenario="Server", loadgen=loadgen, latency_ms=LATENCY | {"p99": p99}, **changes))


def test_a_server_that_no_longer_keeps_its_bound_is_broken():
    (change,) = compare.changes(served(), served(p99=101.0))
    assert (change.kind, change.note) == ("broken", "the bound is not kept")
    assert compare.changes(served(p99=101.0), served())[0].kind == "repaired"


def test_a_server_at_a_given_rate_is_compared_by_latency():
    slower = served()
    slower["rows"][0]["latency_ms"] = dict.fromkeys(LATENCY, 20.0)
    (change,) = compare.changes(served(), slower)
    assert (change.kind, change.factor) == ("slower", pytest.approx(2.0))
    assert compare.changes(served(rate=5.0), served(rate=4.0))[0].kind == "slower"  # found by a search


def test_rates_found_for_different_bounds_are_not_compared():
    found = compare.changes(served(), served(rate=3.0, bound=50.0, p99=45.0))
    assert [change.kind for change in found] == ["other bound"] and not compare.regressions(found, 0.05)
    assert compare.changes(served(), served(bound=101.0))[0].kind == "equal"  # found by a measurement


@pytest.mark.parametrize("rows", [[{}], [1], [{"verdict": "valid", "kernel": "selective_scan"}], 3, [{"verdict": 1}]])
def test_what_is_no_result_is_refused_in_one_line(rows, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"environment": MACHINE, "rows": rows}))
    with pytest.raises(UsageError, match="no result of serve_bench"):
        compare.read(tmp_path)


def test_rows_that_come_go_break_and_heal():
    old = result(row("a"), row("b"), row("c", verdict="invalid: x"), row("d", verdict="skipped: y"), row("e"))
    new = result(row("a", verdict="skipped: w"), row("b", verdict="invalid: z"), row("c"), row("d"))
    found = {change.key[0]: change for change in compare.changes(old, new)}
    kinds = {name: change.kind for name, change in found.items()}
    assert kinds == {"a": "gone", "b": "broken", "c": "repaired", "d": "new", "e": "not measured"}
    assert found["b"].note == "invalid: z"
    assert {change.key[0] for change in compare.regressions(list(found.values()), 0.05)} == {"a", "b"}


@pytest.mark.parametrize(("factor", "bound", "code"), [(1.2, 0.1, 1), (1.2, 0.3, 0), (1.0, 0.01, 0), (0.5, 0.1, 0)])
def test_the_command_exits_1_on_a_regression_over_the_bound(factor, bound, code, tmp_path, capsys):
    for name, content in (("old", result(row())), ("new", result(slowed(factor)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    argv = ["--compare", str(tmp_path / "old"), str(tmp_path / "new" / "results.json"), "--bound", str(bound)]
    assert cli.run(serve_bench.main, argv) == code
    shown = capsys.readouterr()
    assert ("eager" in shown.out) is (factor != 1.0)
    assert (f"1 rows are worse by more than {bound:.0%}" in shown.err) is (code == 1)


def test_another_machine_is_said(capsys):
    other = copy.deepcopy(result(row()))
    other["environment"]["cpu"]["model"] = "Another CPU"
    from rich.console import Console

    compare.print_changes(result(row()), other, [], Console(width=200))
    assert "The machines differ" in capsys.readouterr().out
