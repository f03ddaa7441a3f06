"""Kernels compiled ahead of time: the pack that the native library serves a GPU from where there is no Triton compiler.

    python -m ops.aot --targets sm_80,sm_86,sm_89,sm_90,sm_100,sm_120

`variants` says which kernels, `compiler` compiles them without a GPU, `pack` is the file that ``librdfa_ops.so`` finds
beside itself. Forward kernels only: training uses Triton.
"""
