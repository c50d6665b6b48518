"""Bradley-Terry reward models: conversations go in, and one number comes out for each."""

NOTES = "music.json"  # beside the weights: what config.json has no place for
DEFAULT_BUDGET = 4096  # tokens in one forward pass, in scoring
