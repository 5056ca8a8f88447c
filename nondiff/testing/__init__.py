"""The contract as tests, for a trainer, problem, evaluator, estimator, signal or proximal operator of your own:

    import nondiff.testing
    nondiff.testing.check_trainer(MyTrainer(rate=0.1))

Each check raises `AssertionError` that says which promise is broken.
"""

from nondiff.testing.common import count_compilations
from nondiff.testing.estimator import check_estimator
from nondiff.testing.evaluator import check_evaluator
from nondiff.testing.problem import check_problem
from nondiff.testing.prox import check_prox
from nondiff.testing.signal import check_signal
from nondiff.testing.trainer import check_trainer

__all__ = [
    "check_estimator",
    "check_evaluator",
    "check_problem",
    "check_prox",
    "check_signal",
    "check_trainer",
    "count_compilations",
]
