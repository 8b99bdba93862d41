"""Defaults of options from a file and from the environment, and `mrflow config`, which shows them."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cyclopts import App, Argument, ArgumentCollection
from cyclopts.config import Dict, Env
from platformdirs import user_config_path

from mrflow.cli.loading import RECORDED
from mrflow.cli.options import Streams
from mrflow.cli.outputs import tell_json
from mrflow.cli.reporting import say
from mrflow.cli.suggestions import OPTIONS, suggest
from mrflow.errors import RequestError
from mrflow.plan import ABOUT, FINISHING

_PREFIX = "MRFLOW_"
_READ_ELSEWHERE = {"MRFLOW_CONFIG", "MRFLOW_CACHE", "MRFLOW_API_KEYS", "MRFLOW_API_KEY"}
_NEVER = {"--help", "--version", "--debug", "--force"}
_ONE_COMMANDS = {"--out", "--plot", "--prompt", "--lora"}  # mean or add another thing from command to command
_STAGED = {"--plan", *(option for name in FINISHING for option in ABOUT[name].options)}


def config_file() -> Path | None:
    """Return where the file is or would be: $MRFLOW_CONFIG, None where that is empty; else the system's."""
    named = os.environ.get("MRFLOW_CONFIG")
    if named is None:
        return user_config_path("mrflow", appauthor=False) / "config.toml"
    return Path(named) if named else None


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give options that a command was not given the values of the environment, else of the file, and say which.

    cyclopts calls it before each command. Raises RequestError for a file that can't be taken.
    """
    if not commands or commands == ("config",):
        return
    native = any(each.tokens for each in arguments if each.name == "--native")
    closed = _NEVER | (_STAGED if native else set())
    own, common = arguments.copy(), arguments.copy()
    own[:] = [each for each in arguments if each.name.startswith("--") and each.name not in closed]
    common[:] = [each for each in own if _is_common(each)]
    free = [each for each in own if not each.tokens]
    Env(_PREFIX, command=False)(app, commands, common)
    if data := read_config():
        source = str(config_file())
        Dict(data, source=source, allow_unknown=True)(app, commands, own)
        Dict(data, source=source, use_commands_as_keys=False, allow_unknown=True)(app, commands, common)
    filled = [f"{each.name} {' '.join(token.value for token in each.tokens)}" for each in free if each.tokens]
    if filled:
        say(f"{', '.join(filled)}: set by your configuration, see mrflow config")


def _is_common(argument: Argument) -> bool:
    """Return whether one value can stand for every command: not what a picture's recipe answers."""
    return argument.name not in _ONE_COMMANDS | _NEVER and argument.parameter.show_default != RECORDED.show_default


def read_config() -> dict[str, Any]:
    """Return the file's content, empty without one. Raises RequestError for what no command could take."""
    path = config_file()
    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and "MRFLOW_CONFIG" not in os.environ:
            return {}  # a file that is named must be there
        raise RequestError(f"{path} is no TOML that can be read: {error}. Or set MRFLOW_CONFIG=") from None
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    _check_names(f"{path} holds a table ", tables, _commands(), {})
    _check_names(f"{path} holds ", [f"--{key}" for key in data.keys() - tables], _common_options(), OPTIONS)
    for command, table in tables.items():
        names = _names(each for each in _arguments(command) if each.name not in _NEVER)
        _check_names(f"{path}, [{command}], holds ", [f"--{key}" for key in table], names, OPTIONS)
    return data


def _check_names(start: str, given: Iterable[str], names: Collection[str], words: Mapping[str, str]) -> None:
    for name in given:
        if name.replace("_", "-") not in names:
            meant = suggest(name, names, words).lstrip("-")
            hint = f"Did you mean {meant}?" if meant else "mrflow --help and mrflow COMMAND --help have all names."
            if name in _ONE_COMMANDS:
                hint = "Put it into a command's table, such as [generate]."
            raise RequestError(f"{start}{name.lstrip('-')}, which nothing here can take. {hint}")


def _commands() -> list[str]:
    from mrflow.cli.app import app

    return [name for name in app.resolved_commands() if not name.startswith("-")]


def _arguments(command: str) -> ArgumentCollection:
    from mrflow.cli.app import app

    return app[command].assemble_argument_collection()


def _names(arguments: Iterable[Argument]) -> set[str]:
    return {name for each in arguments if each.parse for name in each.names if name.startswith("--")}


def _common_options() -> set[str]:
    """Return the options for which one value can stand in every command."""
    return _names(each for command in _commands() for each in _arguments(command) if _is_common(each))


def config(streams: Streams = Streams()) -> None:
    """Show the defaults that your file and the environment set. What stands in a command comes first.

    The file is TOML, such as: model = "flux-dev". A name at the top is for every command that has that option, in
    a table such as [generate] for that command alone. A variable such as MRFLOW_DEVICE comes before the file;
    MRFLOW_CONFIG names another file, or with no value none.

    Examples:
      mrflow config
      mrflow config --json
    """
    path, data, options = config_file(), read_config(), _common_options()
    names = [name for name in sorted(os.environ) if name.startswith(_PREFIX) and name not in _READ_ELSEWHERE]
    variables = {name: f"--{name.removeprefix(_PREFIX).lower().replace('_', '-')}" for name in names}
    found = {name: os.environ[name] for name, option in variables.items() if option in options}
    there = path is not None and path.exists()
    if streams.json:
        tell_json({"file": path and str(path), "exists": there, "sets": data, "environment": found})
        return
    print("no file: MRFLOW_CONFIG is empty" if path is None else path if there else f"{path} (not there)")
    tables = {"every command": {k: v for k, v in data.items() if not isinstance(v, dict)}}
    tables |= {k: v for k, v in data.items() if isinstance(v, dict)}
    for place, values in tables.items():
        for name, value in values.items():
            print(f"  --{name.replace('_', '-')} {value}  ({place})")
    for name, value in found.items():
        print(f"{name}: {variables[name]} {value}")
    for name in variables.keys() - found.keys():
        print(f"{name}: no command has such an option")
