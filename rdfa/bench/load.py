"""What else the machine did meanwhile: other programs' share of the cores, and the GPU's clocks."""

import os
import time
from pathlib import Path
from types import TracebackType

# Fields of the first line of /proc/stat, in ticks: user nice system idle iowait irq softirq steal.
IDLE, WAITING = 3, 4


class Watch:
    """Measures while the block runs.

    Attributes:
        other_load: cores that were kept busy by anything but this process and its children, on average; None where the
            system does not tell (it is Linux's /proc/stat that does). Time that a hypervisor took away counts as well.
    """

    def __init__(self) -> None:
        self.other_load: float | None = None

    def __enter__(self) -> "Watch":
        self._start = time.monotonic(), _busy_s(), _own_s()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        then, busy, own = self._start
        seconds, now = time.monotonic() - then, _busy_s()
        if busy is not None and now is not None and seconds > 0:
            self.other_load = round(max(0.0, (now - busy - (_own_s() - own)) / seconds), 2)


def _busy_s() -> float | None:
    """Seconds that all cores together have been busy since the machine started."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    ticks = [int(value) for value in line.split()[1:9]]
    return (sum(ticks) - ticks[IDLE] - ticks[WAITING]) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
