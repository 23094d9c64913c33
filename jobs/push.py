"""A published directory on the Hugging Face Hub: its files and its manifest.

The token comes from HF_TOKEN alone: what is on a command line is read by others.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scar_core import storage
from scar_core.errors import AccessError, InputError, RunError
from scar_core.manifest import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("scar_curate")

RepoType = Literal["dataset", "model"]

TOKEN = "HF_TOKEN"  # noqa: S105 - its name
# Larger files go to the hub's storage one by one, before the commit that names them.
SMALL_BYTES = 10 * 2**20


def open_hub(repo: str) -> HfApi:
    """The hub, asked who we are: before anything is paid for.

    Raises:
        InputError: the name is none, or there is no token.
        AccessError: the hub cannot be reached, or does not know the token.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - half a second, for few runs

    token = os.environ.get(TOKEN)
    if not token:
        raise InputError(
            f"--push-to-hub {repo}: {TOKEN} is not set. Put a token that writes there."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise InputError(f"--push-to-hub {repo!r}: wanted OWNER/NAME.")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        api.whoami()
    except OSError as error:
        raise AccessError(
            f"--push-to-hub {repo}: {api.endpoint} does not take {TOKEN}, or cannot be reached: "
            f"{error}"
        ) from error
    return api


def push(api: HfApi, folder: str, repo: str, *, repo_type: RepoType = "dataset") -> str:
    """Commit a published directory to a repository; its address.

    One that is not there is made, private. One commit holds all files.

    Raises:
        RunError: the hub refused; what is published stays.
    """
    manifest = read_manifest(folder)
    files = [entry["path"] for entry in manifest["files"]] + [MANIFEST_NAME]
    try:
        api.create_repo(repo, repo_type=repo_type, private=True, exist_ok=True)
        operations = [
            _operation(api, folder, path, repo=repo, repo_type=repo_type) for path in files
        ]
        commit = api.create_commit(
            repo,
            operations,
            repo_type=repo_type,
            commit_message=f"SCAR {manifest['kind']} {folder.rpartition('/')[2]}",
        )
    except OSError as error:
        raise RunError(
            f"{folder}: is published, and was not pushed to {repo}: {error}. Push it with "
            f"`hf upload {repo} FOLDER --repo-type {repo_type}`."
        ) from error
    logger.info("%s", commit.commit_url)
    return str(commit.commit_url)


def _operation(api: HfApi, folder: str, path: str, *, repo: str, repo_type: RepoType) -> Any:  # noqa: ANN401 - theirs
    """A file to commit; a large one is at the hub already, so that one alone is on this disk."""
    from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - as above

    url = storage.join(folder, path)
    if storage.stat(url).size_bytes < SMALL_BYTES:
        return CommitOperationAdd(path, storage.read_bytes(url))
    with tempfile.TemporaryDirectory() as held:
        local = Path(url)
        if not storage.is_local(url):
            local = Path(held) / "file"
            with storage.open_input(url) as source, local.open("wb") as target:
                while block := source.read(SMALL_BYTES):
                    target.write(block)
        operation = CommitOperationAdd(path, local)
        api.preupload_lfs_files(repo, [operation], repo_type=repo_type)
    return operation
