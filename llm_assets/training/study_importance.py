"""How much each searched parameter mattered, from the published trials alone."""

import math
from collections.abc import Sequence
from typing import Any

from llm_assets.training.search_space import stored
from llm_assets.training.study_records import TrialRecord

FEWEST_TRIALS = 4


def parameter_importance(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Share of the loss's variation that each parameter explains (PED-ANOVA), largest first.

    Returns:
        Parameter to share, summing to 1; empty below 4 completed trials, where it would be noise.
    """
    import optuna

    complete = [trial for trial in trials if trial.value is not None]
    names = sorted({name for trial in complete for name in trial.parameters})
    varied = [name for name in names if len({stored(trial.parameters[name]) for trial in complete}) > 1]
    if len(complete) < FEWEST_TRIALS or not varied:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    distributions = {name: _distribution([trial.parameters[name] for trial in complete]) for name in varied}
    for trial in complete:
        chosen = {name: stored(trial.parameters[name]) for name in varied}
        study.add_trial(optuna.trial.create_trial(value=trial.value, params=chosen, distributions=distributions))
    found = optuna.importance.get_param_importances(study)
    return {name: float(found[name]) for name in found if math.isfinite(found[name])}


def _distribution(values: list[Any]) -> Any:
    """What holds all values: the range between the extremes, or the list of names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return CategoricalDistribution(sorted({stored(value) for value in values}, key=str))
    low, high = min(values), max(values)
    kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
    return kind(low, high, log=0 < 30 * low < high)
