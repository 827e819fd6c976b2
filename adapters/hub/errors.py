"""What the Hub refuses, as one line with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from mergefront.adapters.hub.names import HubName
from mergefront.optimizer.errors import UserError


@contextmanager
def explained(name: HubName) -> Iterator[None]:
    """What the Hub refuses, as one line with the remedy."""
    try:
        from huggingface_hub import constants, errors
    except ImportError:
        raise UserError(
            f"{name} is a name on the Hub, which needs huggingface_hub; install it: pip install 'mergefront[local]'"
        ) from None
    page = f"{constants.ENDPOINT}/{name.repository}"
    at = f" --revision {name.revision}" if name.revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its terms at {page}, then log in with 'hf auth login' or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the repository has no revision {name.revision!r}; see {page}/commits/main") from None
    except errors.RepositoryNotFoundError:
        near = get_close_matches(name.repository, known_repositories(), 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{name}: there is no such folder, and no such repository on the Hub{meant}; for a private one log in with "
            "'hf auth login' or set HF_TOKEN"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{name} is no folder here and not in the Hub's cache ({constants.HF_HUB_CACHE}), and the Hub cannot be "
            f"reached; where it can, fetch it with: hf download {name.repository}{at}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = "log in with a token that may do this" if status in (401, 403) else "try again later"
        raise UserError(f"{name}: the Hub at {constants.ENDPOINT} answered {status}; {remedy}") from None
    except UserError:
        raise
    except Exception as error:  # of the HTTP client that huggingface_hub happens to use, and of the disk
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: asking the Hub at {constants.ENDPOINT} failed: {type(error).__name__}: {said}"
        ) from None


def known_repositories() -> list[str]:
    """The models in the Hub's cache on this machine."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders)
