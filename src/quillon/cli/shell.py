"""`quillon completion SHELL` and `quillon man`: what the command line knows of itself, for shells and for man(1)."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from quillon import __version__
from quillon.control.commands import COMMANDS as CONSOLE

SHELLS = ("bash", "zsh", "fish")


class Described(NamedTuple):
    """A command: its name, what it is for, its usage, and its options, each with its spellings and help."""

    name: str
    words: str
    usage: str
    options: list[tuple[list[str], str]]


def add(commands: Any) -> None:
    completion = commands.add_parser("completion")
    completion.add_argument("shell", choices=SHELLS, help='such as: eval "$(quillon completion bash)"')
    completion.set_defaults(run=_complete)
    man = commands.add_parser("man")
    man.set_defaults(run=_man)


def described() -> Iterator[Described]:
    """Every command with its options, which each module says itself."""
    from quillon.cli.main import COMMANDS, parser_of  # noqa: PLC0415 - that module imports this one

    for name, (_, words) in COMMANDS.items():
        parser = parser_of(name)
        yield from _walk(name, words, parser)


def _walk(name: str, words: str, parser: argparse.ArgumentParser) -> Iterator[Described]:
    options, inner = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            inner += [(f"{name} {key}", helps.get(key, ""), value) for key, value in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            metavar = action.metavar if isinstance(action.metavar, str) else action.dest
            options.append((list(action.option_strings) or [metavar], (action.help or "").replace("%%", "%")))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield Described(name, words, usage, options)
    for one in inner:
        yield from _walk(*one)


def _complete(given: argparse.Namespace) -> int:
    found = [one for one in described() if " " not in one.name]
    print({"bash": bash, "zsh": zsh, "fish": fish}[given.shell](found), end="")
    return 0


def _options(one: Described) -> list[str]:
    return [spelling for spellings, _ in one.options for spelling in spellings if spelling.startswith("-")]


def bash(found: list[Described]) -> str:
    """A completion for bash: commands, options of each, the console's commands, files otherwise."""
    names = " ".join(one.name for one in found)
    cases = [f"    {one.name}) words={shlex.quote(' '.join(_options(one)))} ;;" for one in found]
    console = " ".join(dict.fromkeys(command.name.split()[0] for command in CONSOLE))
    return "\n".join(
        [
            "_quillon() {",
            "  local word=${COMP_WORDS[COMP_CWORD]} words=",
            '  if [ "$COMP_CWORD" = 1 ]; then',
            f"    words={shlex.quote(names)}",
            "  else case ${COMP_WORDS[1]} in",
            *cases,
            "  esac; fi",
            '  if [ "${COMP_WORDS[1]}" = console ] && [ "$COMP_CWORD" -gt 1 ]; then',
            f'    words="$words "{shlex.quote(console)}',
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            "complete -o default -F _quillon quillon",
            "",
        ]
    )


def zsh(found: list[Described]) -> str:
    """zsh reads bash's."""
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash(found)


def fish(found: list[Described]) -> str:
    """A completion for fish, with the words of help."""
    out = ["complete -c quillon -f"]
    for one in found:
        out.append(f"complete -c quillon -n __fish_use_subcommand -a {one.name} -d {shlex.quote(one.words)}")
        seen = f"'__fish_seen_subcommand_from {one.name}'"
        for spellings, words in one.options:
            for spelling in spellings:
                if spelling.startswith("--"):
                    out.append(f"complete -c quillon -n {seen} -F -l {spelling[2:]} -d {shlex.quote(words)}")
    for name in dict.fromkeys(command.name.split()[0] for command in CONSOLE):
        out.append(f"complete -c quillon -n '__fish_seen_subcommand_from console' -a {name}")
    return "\n".join(out) + "\n"


def _man(_given: argparse.Namespace) -> int:
    print(man_page(list(described())), end="")
    return 0


def man_page(found: list[Described]) -> str:
    """quillon(1), in man(7)'s macros: `quillon man | man -l -`."""
    out = [
        f'.TH QUILLON 1 "" "Quillon {__version__}"',
        ".SH NAME",
        "quillon \\- a mail transfer agent that enforces TLS and can prove it",
        ".SH SYNOPSIS",
        ".B quillon",
        ".I COMMAND",
        ".SH COMMANDS",
    ]
    for one in found:
        out += [f".SS {_roff(one.name)}", f"{_roff(one.words)}." if one.words else "", ".PP", f".B {_roff(one.usage)}"]
        for spellings, words in one.options:
            out += [".TP", f".B {_roff(', '.join(spellings))}", _roff(words) or "\\&"]
    out.append(".SH CONSOLE")
    for command in CONSOLE:
        out += [".TP", f".B {_roff(f'{command.name} {command.words}'.strip())}", _roff(command.help)]
    out += [
        ".SH EXIT STATUS",
        "0 for success, 2 for a faulty configuration or command line, 1 for the rest.",
        ".SH FILES",
        ".TP",
        ".B ecelerity.conf",
        "The configuration; -c names another.",
    ]
    return "\n".join(line for line in out if line) + "\n"


def _roff(text: str) -> str:
    """Text that roff takes for nothing else."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
