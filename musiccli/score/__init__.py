"""Rewards for any record: conversations, preferences and comparisons."""
