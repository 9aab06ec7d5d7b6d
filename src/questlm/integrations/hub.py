"""Packed models to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from questlm.artifact.card import CARD_NAME
from questlm.artifact.format import FORMAT, VERSION
from questlm.artifact.read import open_artifact
from questlm.errors import ArtifactError, ConfigError, MissingDependencyError, cleaned, quoted
from questlm.manifest import MANIFEST_NAME, read_manifest

__all__ = ["push_to_hub"]


def push_to_hub(model: str | Path, repository: str, private: bool = False) -> str:
    """Upload a packed model, a folder or a single file, and return the address of the commit.

    The repository is made where there is none. The token is that of `hf auth login` or the variable HF_TOKEN; no other
    file of the folder than those of the model and its README.md is sent.

    Args:
        model: an artifact.
        repository: OWNER/NAME.
        private: whether a new repository is.

    Raises:
        ArtifactError: not an artifact, or a damaged one; nothing is sent then.
        ConfigError: no such name can be, or the hub refuses it or cannot be reached.
        MissingDependencyError: the package huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise MissingDependencyError("huggingface_hub", "hf", "--push-to-hub") from None
    path = Path(model)
    with open_artifact(path):
        pass
    hub = HfApi(library_name="questlm")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        message = "Upload a model packed by questlm"
        if path.is_dir():
            files = [MANIFEST_NAME, CARD_NAME, *read_manifest(path, FORMAT, VERSION, ArtifactError).files]
            sent = hub.upload_folder(repo_id=repository, folder_path=path, commit_message=message, allow_patterns=files)
        else:
            sent = hub.upload_file(
                repo_id=repository, path_or_fileobj=path, path_in_repo=path.name, commit_message=message
            )
    except HFValidationError as problem:
        raise ConfigError(f"{quoted(repository)} is no repository: {cleaned(problem, 200)}; write OWNER/NAME") from None
    except Exception as problem:  # of the library's transport, which changes with its version
        raise ConfigError(
            f"the hub did not take {path}: {cleaned(problem, 300)}; run `hf auth login` with a token that may write "
            "there, and check the name and the network"
        ) from None
    return str(sent.commit_url)
