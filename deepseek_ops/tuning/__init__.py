"""Search over hyperparameters, without a server and without memory of its own.

Decision: a study is its trials. Every question (what to try next, whether to stop a trial, which was best) is a pure
function of the trial records, so a sweep survives any crash, runs as mapped tasks, and can be replayed. The price is
that the sampler is rebuilt for each question: milliseconds, against trainings of minutes.
"""

from deepseek_ops.tuning.pruning import Pruner, should_prune
from deepseek_ops.tuning.space import Dimension, SearchSpace, search_space
from deepseek_ops.tuning.study import Sampler, SearchExhaustedError, best, next_trials, suggest

__all__ = [
    "Dimension",
    "Pruner",
    "Sampler",
    "SearchExhaustedError",
    "SearchSpace",
    "best",
    "next_trials",
    "search_space",
    "should_prune",
    "suggest",
]
