"""Decoding of detector outputs and one-dimensional non-maximum suppression."""
