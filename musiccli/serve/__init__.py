"""Rewards over HTTP, and as a function that RL trainers call."""
