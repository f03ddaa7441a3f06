"""Benchmarks: the detector in every backend (`detector`), and its operators alone (`kernels`)."""
