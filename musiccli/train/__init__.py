"""Training a reward model: settings, pairs, the plan of steps, the trainer, what is measured and checked, the run."""
