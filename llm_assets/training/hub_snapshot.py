"""A pinned snapshot of a Hub repository, from the local cache where it is complete.

Whatever the Hub answers becomes one error with what to do about it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.model_directory import BaseModelIncomplete, refuse_incomplete


class HubDownloadFailed(LLMAssetsError):
    """The Hub snapshot cannot be fetched: no network, no access, or no such revision."""


def hub_snapshot(hub: str, revision: str, patterns: Sequence[str], log: Callable[[str], None]) -> Path:
    """The snapshot's directory in the local Hub cache; the network is used only for what is not there.

    Args:
        hub: Repository, such as Qwen/Qwen2.5-0.5B-Instruct.
        revision: Its commit.
        patterns: Which of its files are wanted.
        log: Receives a line before a download.

    Raises:
        HubDownloadFailed: offline, gated, or no such revision; names the remedy.
    """
    from huggingface_hub import errors, snapshot_download

    wanted = {"repo_id": hub, "revision": revision, "allow_patterns": list(patterns)}
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))
        refuse_incomplete(cached)
    except (errors.LocalEntryNotFoundError, BaseModelIncomplete):
        log(f"Fetching {hub}@{revision} from the Hugging Face Hub")
        return _downloaded(wanted)
    return cached


def _downloaded(wanted: Mapping[str, Any]) -> Path:
    import httpx
    from huggingface_hub import errors, snapshot_download

    hub, where = wanted["repo_id"], f"{wanted['repo_id']} at revision {wanted['revision']}"
    try:
        return Path(snapshot_download(**wanted))
    except errors.GatedRepoError as error:
        raise HubDownloadFailed(
            f"{where} is gated. Accept its terms at https://huggingface.co/{hub} and set HF_TOKEN."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise HubDownloadFailed(
            f"{where} does not exist or is private. Correct base_model.hub and base_model.revision, or set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError) as error:
        raise HubDownloadFailed(
            f"{where} is not in the local cache and the Hub cannot be reached. Unset HF_HUB_OFFLINE and check the "
            "network, or download it elsewhere and set base_model.directory."
        ) from error
    except errors.HfHubHTTPError as error:
        raise HubDownloadFailed(f"{where}: the Hub answered {error}. Try again later.") from error
