"""Benchmarks: the engine and its peers on one server, in one window. `python -m benchmarks --help`."""
