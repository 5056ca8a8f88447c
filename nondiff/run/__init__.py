"""A training run and what surrounds it: the loop, its log, experiments."""
