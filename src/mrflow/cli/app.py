"""The commands put together, and what becomes of what they raise: a line on stderr and an exit code."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.console import Console

import mrflow
from mrflow.cli.balance import balance
from mrflow.cli.batch import batch
from mrflow.cli.bench import bench
from mrflow.cli.check import check
from mrflow.cli.compare import compare
from mrflow.cli.config import config, fill
from mrflow.cli.draft import draft
from mrflow.cli.enhance import enhance
from mrflow.cli.estimate import estimate
from mrflow.cli.export import export
from mrflow.cli.finish import finish
from mrflow.cli.generate import generate
from mrflow.cli.mcp import mcp
from mrflow.cli.models import models
from mrflow.cli.ray_options import fill_address
from mrflow.cli.replay import replay
from mrflow.cli.reporting import FAILURE, INTERRUPTED, WRONG_USAGE, say, stderr_console, warnings_as_lines
from mrflow.cli.serve import serve
from mrflow.cli.suggestions import COMMANDS, OPTIONS, suggest
from mrflow.cli.tune import tune
from mrflow.errors import MrFlowError, RequestError

_COMMANDS: tuple[Callable[..., int | None], ...] = (
    *(generate, draft, finish, enhance, replay, batch, serve, mcp, models, check, estimate),
    *(bench, balance, compare, tune, export, config),
)


def _show_default(value: Any) -> str | None:
    """Return a default as help shows it: nothing for a flag that is not given."""
    return None if value is None or value is False else str(value)


app = App(
    name="mrflow",
    help="""Text-to-image up to ten times faster, without training: draft small, then finish large.

    Start with: mrflow generate "a lake at sunset with mountains" --compare""",
    help_flags=["--help", "-h"],
    help_format="plaintext",
    version=f"mrflow {mrflow.__version__}",
    # no --no-xxx beside a flag; of an option that is given twice the last counts, so that aliases can have some
    default_parameter=Parameter(negative=(), show_default=_show_default, allow_repeating=True),
    config=[fill],
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
for _order, _command in enumerate(_COMMANDS):
    _text, _, _examples = (inspect.getdoc(_command) or "").partition("Examples:\n")
    _about = re.sub(r"(?<!\n)\n(?!\n)", " ", _text.partition("Args:\n")[0])  # the terminal breaks lines
    app.command(_command, sort_key=_order, help=_about, help_epilogue=f"Examples:\n{_examples}")
app.register_install_completion_command(group="Options", help="Install completion for the current shell.")


@app.command(name="--show-completion", group="Options")
def _show_completion() -> None:
    """Show completion for the current shell, to copy it or customize the installation."""
    print(app.generate_completion())


app["--help"].group = app["--version"].group = "Options"


class _Console(Console):
    """One that leaves the lines of help's examples whole, so that they can be copied."""

    def print(self, *objects: Any, **options: Any) -> None:
        text = getattr(objects[0], "primary_renderable", "") if objects else ""
        whole = str(text).startswith("Examples:")
        super().print(*objects, **{**options, "soft_wrap": True} if whole else options)


def run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, and return its exit code.

    --debug prints the traceback above an error's line, and lets the libraries' own warnings and logs through.
    """
    if not arguments:
        app.help_print([], console=stderr_console())
        return WRONG_USAGE
    debug = "--debug" in arguments
    try:
        with warnings_as_lines(debug):
            code = app(_arrange(arguments), console=_Console())
        sys.stdout.flush()
        lost: OSError | None = getattr(sys.stdout, "lost", None)
        if lost is not None and not isinstance(lost, BrokenPipeError):  # who reads with head has seen enough
            say(f"stdout cannot be written: {lost.strerror}.", "Error", "red")
        return code or (0 if lost is None else FAILURE)
    except KeyboardInterrupt:
        say("stopped; no half-written file is left.", "Interrupted", "yellow")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        message = _explain(error, debug)
        say(" ".join(message.split()), "Error", "red")
        return WRONG_USAGE if isinstance(error, CycloptsError | RequestError) else FAILURE


def _arrange(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with an address after each --ray, and stdin's - where it is no unknown option."""
    arranged = fill_address(arguments)
    if "-" in arranged and "--" not in arranged:
        return [*(each for each in arranged if each != "-"), "--", "-"]
    return arranged


def _explain(error: Exception, debug: bool) -> str:
    """Return what is said of an error."""
    if isinstance(error, CycloptsError):
        return f"{_explain_usage(error)} See: {' '.join(['mrflow', *(error.command_chain or ())])} --help"
    if isinstance(error, MrFlowError):
        return str(error)
    if notes := getattr(error, "__notes__", []):  # of ours, of a library that ran out of memory
        return " ".join([str(error).strip() or type(error).__name__, *notes])
    hint = "" if debug else " Run again with --debug for the traceback."  # a bug
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}{hint}"


def _explain_usage(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"Nothing is known to do with {' '.join(error.unused_tokens or ())!r:.80}."
    if isinstance(error, UnknownCommandError | UnknownOptionError):
        return _explain_unknown(error)
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        return str(error)
    if error.keyword is not None:
        return f"{error.keyword} requires an argument."
    name, place = error.argument.name, error.argument.index
    return f"Missing option {name}." if place is None else f"Missing argument {name.lstrip('-').upper()}."


def _explain_unknown(error: UnknownCommandError | UnknownOptionError) -> str:
    if isinstance(error, UnknownCommandError):
        commands = [name for name in app.resolved_commands() if not name.startswith("-")]
        word = (error.unused_tokens or [""])[0]
        meant = suggest(word, commands, COMMANDS)
        hint = f'Did you mean "{meant}"?' if meant else f"There are {', '.join(commands)}."
        return f'Unknown command "{word:.80}". {hint}'
    word = error.token.keyword or error.token.value
    names = [name for each in error.argument_collection if each.parse for name in each.names]
    if word == "--prompt" and "PROMPT" in names:
        return "Unknown option: --prompt. The prompt stands alone, in quotes."
    meant = suggest(word, [name for name in names if name.startswith("--")], OPTIONS)
    source = "" if error.token.source == "cli" else f" in {error.token.source}"
    return f"Unknown option: {word:.80}{source}." + (f" Did you mean {meant}?" if meant else "")
