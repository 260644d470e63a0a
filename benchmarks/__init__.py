"""Measurements: each module prints what it finds and writes its part of docs/benchmarks.md; `make bench` runs all."""
