"""Benchmarks. `python -m benchmarks.speed` compares training speed with other programs, on this machine."""
