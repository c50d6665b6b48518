"""Metrics with intervals: RewardBench and its siblings, agreement with labels, sensitivity, Best-of-N win rates."""
