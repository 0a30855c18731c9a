"""Put an export on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from pipeline.core.errors import ConfigError, StageError, first_line


def check_hub(repo: str, open_hub: Callable[[], Any] = HfApi) -> None:
    """Check, before anything is written, that an upload can succeed.

    Raises:
        ConfigError: the name is not OWNER/NAME, there is no valid token, or the hub can't be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"--push-to-hub is {repo!r}; give it as OWNER/NAME.")
    try:
        open_hub().whoami()
    except Exception as error:  # what a lost connection raises is another class in each version of the hub's library
        raise ConfigError(
            f"--push-to-hub: the hub accepts no upload now ({first_line(error)}); set HF_TOKEN or run `hf auth login`, "
            "and go online; or leave it out and upload the folder later."
        ) from error


def push(folder: Path, repo: str, private: bool, open_hub: Callable[[], Any] = HfApi) -> str:
    """Upload a folder, as one commit. Returns the address. An existing repository keeps its other files.

    Raises:
        StageError: the upload failed; the folder is still there.
    """
    hub = open_hub()
    try:
        address = hub.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload an export of cai")
    except Exception as error:  # see above
        raise StageError(
            f"The upload to {repo} failed ({first_line(error)}). The export is in {folder}; upload it with "
            f"`hf upload {repo} {folder}`."
        ) from error
    return str(address)
