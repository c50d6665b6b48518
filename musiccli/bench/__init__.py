"""Metrics with intervals: RewardBench's table, agreement with labels, Best-of-N win rates."""
