"""Loops over arrays in memory for the CPU, compiled by Numba: what would be many passes, operator by operator.

A loop takes the first and the last of the rows that it works on, so that :func:`gm.backend.kernels.threads.spread` can
share them out to the cores, then its inputs and the arrays for its results. All arrays are fp32 and contiguous.
"""
