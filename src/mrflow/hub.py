"""The Hugging Face hub: whether it can be reached, and in a sentence what went wrong there and what helps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mrflow.known_models import meant

_PATIENCE = 5.0  # seconds; the hub's own client tries five times over half a minute

MODULAR = "A model made for Modular Diffusers, as FLUX.3 is, runs by mrflow.modular: docs/pipelines.md."


def is_offline() -> bool:
    """Return whether the hub is not to be asked, or does not answer one short question. Nothing is fetched."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # no network, no name server, a proxy that refuses: the client's own kinds
        return True
    return False


def has_revision(name: str, revision: str | None) -> bool:
    """Return whether that commit of a hub id is in the cache, as far as its index."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch("[0-9a-f]{40}", revision or ""):  # both may be of a picture, which comes from anywhere
        return False
    try:
        return isinstance(try_to_load_from_cache(name, "model_index.json", revision=revision), str)
    except HFValidationError:
        return False


def fetch_command(name: str, parts: Iterable[str] = ()) -> str:
    """Return the command that fetches a repository's pipeline, less the weights of parts that a single file has.

    What lies outside of folders are single files of the same weights.
    """
    rest = "".join(f' --exclude "{part}/*.safetensors"' for part in parts)
    return f'hf download {name} --include "*/*" --include model_index.json{rest}'


def explain(name: str, error: BaseException, parts: Iterable[str] = ()) -> str:
    """Return what an error at fetching or reading `name`, a hub id or a folder, means and what helps; else "".

    parts: see `fetch_command`.
    """
    from huggingface_hub import errors as hub

    kinds = tuple(type(each) for each in _causes(error))
    page = f"https://huggingface.co/{name}"

    def is_any(*wanted: type[BaseException]) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    if is_any(hub.GatedRepoError):
        return f"{name} is gated. Accept its terms on {page}, then log in here: hf auth login"
    if is_any(hub.RevisionNotFoundError):
        return f"{name} has no such revision. {page} lists its commits."
    if is_any(hub.RepositoryNotFoundError):
        near = meant(name.rpartition("/")[2])
        return f"There is no {name} on Hugging Face, or it is private.{near} A private one needs: hf auth login"
    if is_any(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        return (
            f"{name} is not on this machine, or not whole, and Hugging Face cannot be reached or is not to be "
            f"asked. Fetch it where there is a network: {fetch_command(name, parts)}"
        )
    if is_any(hub.EntryNotFoundError):
        return (
            f"{name} is no pipeline in diffusers' layout: it has no model_index.json, or lacks a file that this "
            f"names. Of single files download one, and give its path. {MODULAR}"
        )
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
