"""The pool file of ``mergefront serve``, read as strictly as a study file, and the service that it describes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.sections import problems_of
from mergefront.optimizer.yaml_file import read_mapping
from mergefront.serving.merges.pool_settings import ClientSection, PoolFile
from mergefront.serving.tokens import Tokens, checked_token, token_in_file

if TYPE_CHECKING:
    from mergefront.serving.merges.service import MergeService


def read_pool_file(path: Path) -> PoolFile:
    """Parse and validate one file; raises ``StudyFileError`` with every problem in it."""
    content = read_mapping(path, "pool file", "pool, base_model and models")
    try:
        return PoolFile.model_validate(content)
    except ValidationError as error:
        raise StudyFileError(str(path), list(map(str, problems_of(error, PoolFile, content)))) from None


def load_service(file: PoolFile, root: Path) -> MergeService:
    """Load the pool's models and open its state; raises ``UserError`` before anything heavy is loaded where it can."""
    from mergefront.adapters.checkpoints.compatibility import compare_models, unknown_keys
    from mergefront.adapters.checkpoints.header import read_header
    from mergefront.serving.merges.resident_models import MergePool
    from mergefront.serving.merges.service import MergeService
    from mergefront.serving.merges.state import ServiceState

    tokens = Tokens({name: _token(name, client, root) for name, client in file.clients.items()})
    tokens.check_host(file.host, "declare clients with tokens under clients")
    places = ModelPlaces(root)
    base = read_header(places.folder(file.base_model))
    headers, problems = [base], []
    for name, path in file.models.items():
        try:
            headers.append(read_header(places.folder(path)))
            compared = compare_models(base, headers[-1], name, file.allow)
            problems += [f"models.{name}: {line}" for line in compared.problems]
        except UserError as error:
            problems.append(f"models.{name}: {error}")
    problems += unknown_keys(file.allow, headers)
    if problems:
        raise UserError("\n".join(problems))
    state = ServiceState(root / file.state)
    models = {name: places.folder(path) for name, path in file.models.items()}
    pool = MergePool(places.folder(file.base_model), models, device=file.device, dtype=file.dtype, allow=file.allow)
    return MergeService(file, pool, state, tokens)


def _token(name: str, client: ClientSection, root: Path) -> str:
    if client.token_file is not None:
        return token_in_file(root / client.token_file, f"clients.{name}.token_file")
    variable = str(client.token_env)
    source = f"clients.{name}: the environment variable {variable}"
    return checked_token(os.environ.get(variable, ""), source)
