"""RDFA-S6: temporal action localization with bidirectional selective scans, from training to production."""

__version__ = "0.1.0"
