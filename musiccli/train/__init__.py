"""Training a Bradley-Terry reward model: `run.train` is the recipe, the other modules its parts."""
