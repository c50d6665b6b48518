"""Benchmarks: metric records with intervals, from records that were scored or judged."""
