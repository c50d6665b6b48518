"""Bradley-Terry reward models: conversations go in, and one number comes out for each."""

DEFAULT_BUDGET = 4096  # tokens in one forward pass, in scoring
