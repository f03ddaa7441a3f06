"""RDFA-S6: temporal action localization with bidirectional selective scans, from training to production."""

import os

__version__ = "0.1.0"

# Threads that wait for each other spin for milliseconds by default. Where another program holds a core, every wait then
# lasts as long as the scheduler likes: training was seen to take fifty times as long. This many turns, what GNU OpenMP
# itself uses for more threads than cores, cost a tenth where nothing else runs. Read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
