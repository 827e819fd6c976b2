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
    is_data = name.kind == "dataset"
    page = f"{constants.ENDPOINT}/{'datasets/' if is_data else ''}{name.repository}"
    wanted = f"{name.repository} {name.folder} --repo-type dataset" if is_data else name.repository
    wanted += f" --revision {name.revision}" if name.revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its terms at {page}, then log in with 'hf auth login' or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the repository has no revision {name.revision!r}; see {page}/commits/main") from None
    except errors.RepositoryNotFoundError:
        near = get_close_matches(name.repository, known_repositories(name.kind), 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        here = "" if is_data else "there is no such folder, and "
        raise UserError(
            f"{name}: {here}no such repository on the Hub{meant}; for a private one log in with 'hf auth login' or set "
            "HF_TOKEN"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{name} is {'' if is_data else 'no folder here and '}not in the Hub's cache ({constants.HF_HUB_CACHE}), "
            f"and the Hub cannot be reached; where it can, fetch it with: hf download {wanted}"
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


def known_repositories(kind: str = "model") -> list[str]:
    """The models, or the data sets, in the Hub's cache on this machine."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob(f"{kind}s--*--*")
    return sorted(folder.name.removeprefix(f"{kind}s--").replace("--", "/", 1) for folder in folders)
