"""Benchmarks: metric records with intervals, from records that were scored or judged.

Each file that sets BENCHMARK is a command of `music bench`; a new file is a new benchmark. What
they share stands in stats/ (intervals, tests) and report/ (tables, plots, pages).
"""
