"""Selective scan: the recurrence of Mamba-1 (S6) along time, in either direction of time."""
