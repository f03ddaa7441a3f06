"""What other programs did meanwhile."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdfa.bench import load

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux tells in /proc/stat")


def test_own_work_is_no_load_and_anothers_is(monkeypatch):
    busy, own = iter([100.0, 103.0]), iter([10.0, 11.5])
    monkeypatch.setattr(load, "_busy_s", lambda: next(busy))
    monkeypatch.setattr(load, "_own_s", lambda: next(own))
    now = iter([50.0, 52.0])
    monkeypatch.setattr(load.time, "monotonic", lambda: next(now))
    with load.Watch() as watch:
        pass
    assert watch.other_load == 0.75  # (3 - 1.5) seconds of cores in 2 seconds


def test_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(load, "_busy_s", lambda: None)
    with load.Watch() as watch:
        pass
    assert watch.other_load is None


def test_another_process_is_seen():
    code = "import time; t = time.monotonic()\nwhile time.monotonic() < t + 0.6: pass"
    before = load._busy_s(), load._own_s()
    child = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.4)
    busy, own = load._busy_s() - before[0], load._own_s() - before[1]
    child.wait()
    assert busy - own > 0.02  # the child has not been waited for, so it is another's
