"""Serving scenarios of MLPerf LoadGen: one call after another, groups, a Poisson stream of requests, a heap of work.

backend.py      what a scenario drives: anything that answers `run(features, mask)`
sut.py          queue and worker threads between LoadGen and a backend
loadgen.py      one LoadGen test: settings in, verdict and figures of its logs out
search.py       the highest rate of the Poisson stream that keeps the bound on the 99th percentile
rows.py         scenarios x backends -> rows of the result
"""
