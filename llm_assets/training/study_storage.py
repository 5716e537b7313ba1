"""Where a study's trials are kept while it runs, so that a kill costs no more than one trial's last save interval.

A journal file by default, one line per event. Lines are whole or not at all: what a kill left half written is cut off
when the file is opened again. A database by URL keeps the study for other tools as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from llm_assets.core import LLMAssetsError
from llm_assets.training.study_config import Budget, StudyConfig

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"


class StudyStorageUnavailable(LLMAssetsError):
    """The database of `study.storage_url` cannot be used."""


def open_study(work: Path, study: StudyConfig, name: str, budget: Budget) -> "optuna.Study":
    """Make the study, or load what a killed process left of it.

    Args:
        work: The workspace; one process at a time holds it.
        study: The settings.
        name: Name of the study in its storage.
        budget: What a trial gets; Hyperband derives its brackets from it.

    Raises:
        StudyStorageUnavailable: the database does not answer.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=study.pruner_startup_trials),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(1, budget.evaluations, study.reduction_factor),
        "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(reduction_factor=study.reduction_factor),
        "none": optuna.pruners.NopPruner,
    }
    return optuna.create_study(
        study_name=name,
        storage=_database(study) if study.storage_url else _journal(work),
        pruner=pruners[study.pruner](),
        load_if_exists=True,
    )


def _journal(work: Path) -> "optuna.storages.BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = work / JOURNAL
    path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a process that was killed; the workspace has its own
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        with path.open("r+b") as file:
            file.truncate(whole)
    return JournalStorage(JournalFileBackend(str(path)))


def _database(study: StudyConfig) -> "optuna.storages.BaseStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    url, place = study.resolved_storage_url() or "", "of study.storage_url"
    try:
        place = make_url(url).render_as_string(hide_password=True)
        return RDBStorage(url)
    except (SQLAlchemyError, ImportError) as error:
        raise StudyStorageUnavailable(
            f"The study's database {place} cannot be used ({type(error).__name__}). Check that it runs, that the user "
            "may create tables in it, and that its driver is installed; or leave study.storage_url out."
        ) from None  # the driver's own message may carry the password
