"""The contract: what every problem, trainer, evaluator and estimator agrees on, and nothing that implements it."""
