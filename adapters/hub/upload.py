"""A folder as a repository on the Hub: private unless said, as one commit."""

from __future__ import annotations

from pathlib import Path

from mergefront.adapters.hub.errors import explained
from mergefront.adapters.hub.names import HubName
from mergefront.adapters.hub.snapshots import api
from mergefront.optimizer.errors import UserError

_REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
"""What an earlier model in the repository must not leave beside the new one."""


def check_push(repository: HubName, *, public: bool) -> None:
    """Raises ``UserError`` for what would stop an upload at its end: nobody is logged in, or the repository is public
    although ``public`` is not said."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    with explained(repository):
        try:
            api().whoami()
        except (LocalTokenNotFoundError, HfHubHTTPError):
            raise UserError(
                f"{repository}: nobody is logged in to the Hub; log in with 'hf auth login', or set HF_TOKEN to a "
                "token that may write"
            ) from None
        try:
            found = api().model_info(repository.repository)
        except RepositoryNotFoundError:
            return
    if not found.private and not public:
        raise UserError(f"{repository} is there and public; say --public to push to it, or name another repository")


def push(folder: Path, repository: HubName, *, public: bool, message: str) -> str:
    """Upload a model's folder in place of the model that its repository held; returns the commit's address.

    Raises ``UserError``.
    """
    with explained(repository):
        api().create_repo(repository.repository, private=not public, exist_ok=True)
        made = api().upload_folder(
            repo_id=repository.repository, folder_path=folder, commit_message=message, delete_patterns=list(_REPLACED)
        )
    return str(made.commit_url)
