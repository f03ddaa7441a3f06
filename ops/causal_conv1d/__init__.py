"""Causal depthwise convolution along time, in either direction of time."""
