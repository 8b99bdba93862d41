"""Text files: prompt files read with suspicion, records written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mrflow.errors import OutputError, PromptError

MAX_BYTES = 16 * 2**20  # the largest of the benchmarks' prompt files has less than 2 MB


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark; line ends become newlines.

    Raises PromptError if it is missing, too large or no UTF-8 text.
    """
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        raise PromptError(f"There is no prompt file {path}. Give a file of your copy of the benchmark.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PromptError(f"{path} has more than {MAX_BYTES} bytes; a prompt file is smaller.")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is no UTF-8 text: byte {error.start} does not fit.") from None
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text, in one step, over what is there; makes the folder. Returns the path.

    Raises OutputError if it cannot be written.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.part")
    try:
        with open(draft, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there. Raises OutputError if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {path} cannot be made: {error.strerror}.") from error
