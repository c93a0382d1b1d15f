"""Find the directory of a model, given a path or a hub id. Download what is needed."""

import os
from pathlib import Path

from hybridize.checkpoints.carried_files import is_carried
from hybridize.checkpoints.files import CONFIG, PROVENANCE
from hybridize.checkpoints.hub_repository import HubRepository, parse_hub_id
from hybridize.checkpoints.weight_files import choose_weights
from hybridize.errors import InputError


def find_on_hub(model: str | Path) -> HubRepository | None:
    """Return a model's repository on the hub; None if ``model`` is a path that exists.

    Args:
        model: a path, or a hub id: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, where the revision is
            a branch, a tag or a full commit hash.

    Raises:
        InputError: there is no such path, and the hub has no such model or does not give it.
        HybridizeError: the connection, the hub or the cache fails.
    """
    if os.path.exists(model):  # also False for names that no file can have
        return None
    hub_id = None if isinstance(model, Path) else parse_hub_id(model)
    if hub_id is None:
        raise InputError(f"{model}: no such directory")
    return HubRepository(str(model), *hub_id)


def resolve(model: str | Path, *, weights: bool = True) -> Path:
    """Return the directory of a checkpoint, downloading it if ``model`` is a hub id.

    Only the files of a checkpoint are downloaded: config.json, what goes along to results (see
    `carried_files`), and the one set of weights that would be read. Code and pickled weights never
    are.

    Args:
        model: a directory or a hub id; see `find_on_hub`.
        weights: whether to download the weights as well.

    Raises:
        InputError: see `find_on_hub`; or the weights are pickled, incomplete, or an adapter.
        HybridizeError: the connection, the hub or the cache fails.
    """
    repository = find_on_hub(model)
    return Path(model) if repository is None else _fetch(repository, weights=weights)


def resolve_recorded(model: str | Path) -> Path:
    """Return the directory of a checkpoint with all files that its ``hybridize.json`` lists.

    Raises:
        InputError: see `resolve`.
        HybridizeError: the connection, the hub or the cache fails.
    """
    repository = find_on_hub(model)
    if repository is None:
        return Path(model)
    if PROVENANCE in repository.names():
        recorded = repository.read_json(PROVENANCE).get("files")
        if isinstance(recorded, dict):
            repository.fetch(name for name in recorded if name in repository.names())
    return _fetch(repository, weights=True)


def resolve_config(model: str | Path) -> Path:
    """Return the directory of a checkpoint; of a hub id, only config.json is downloaded.

    Raises:
        InputError: see `resolve`.
        HybridizeError: the connection, the hub or the cache fails.
    """
    repository = find_on_hub(model)
    return Path(model) if repository is None else repository.fetch([CONFIG])


def _fetch(repository: HubRepository, *, weights: bool) -> Path:
    names = [name for name in repository.names() if is_carried(name)] + [CONFIG]
    if PROVENANCE in repository.names():
        names.append(PROVENANCE)
    if weights:
        chosen = choose_weights(repository, repository.read_json(CONFIG))
        names += [chosen.entry, *chosen.files]
    return repository.fetch(names)
