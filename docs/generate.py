"""Write the parts of the documentation that follow from the code; with --check, exit 1 where they are stale.

    python docs/generate.py            write them (`make docs`)
    python docs/generate.py --check    change nothing, name the files that are stale

Generated: docs/reference/commands.md, from the commands' own help; and, in pages that are otherwise written by hand,
what stands between `<!-- generated: NAME -->` and `<!-- end -->`: tables of commands and settings, the map of the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from facetrain.cli import main as ft
from facetrain.config import TrainConfig, Validation
from facetrain.plugins import BUILT_IN, SET_BY_US, SINGULAR, resolve

ROOT = Path(__file__).resolve().parent.parent
COMMANDS_PAGE = ROOT / "docs" / "reference" / "commands.md"
MARKED = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# -- commands --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by name, in the order of the pipeline."""
    context = click.Context(ft, info_name="ft")
    for name in ft.list_commands(context):
        command = ft.get_command(context, name)
        assert command is not None
        yield name, command


def commands_page() -> str:
    """The whole of docs/reference/commands.md."""
    parts = [
        "# Commands\n\n<!-- This page is generated: edit the texts in facetrain/commands/, then run `make docs`. -->\n",
        "`ft COMMAND --help` says the same in the terminal. Results go to stdout, progress and errors to stderr.\n",
        "| exit code | meaning |\n|---|---|\n"
        "| 0 | done |\n| 1 | something went wrong that a different command line would not have prevented |\n"
        "| 2 | the command could not be understood or carried out: one line says what to do |\n"
        "| 130 | stopped by Ctrl-C; nothing is lost |\n",
        section("ft", ft, "ft [-C DIR] COMMAND …"),
        *(section(f"ft {name}", command, usage(name, command)) for name, command in commands()),
    ]
    return "\n".join(parts)


def usage(name: str, command: click.Command) -> str:
    arguments = [
        p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
    ]
    return " ".join(["ft", name, "[OPTIONS]", *arguments])


def section(title: str, command: click.Command, usage_line: str) -> str:
    text = inspect.cleandoc(command.help or "")
    text = re.sub(r"^\x08\n((?:.+\n?)+)", lambda block: block[1], text, flags=re.MULTILINE)
    rows = [(option_names(p), option_help(p)) for p in command.params if isinstance(p, click.Option)]
    table = "".join(f"| {cell(names)} | {cell(meaning)} |\n" for names, meaning in rows)
    options = f"\n| option | |\n|---|---|\n{table}" if rows else ""
    return f"## {title}\n\n```text\n{usage_line}\n```\n\n{prose(text)}\n{options}"


def option_names(option: click.Option) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return f"`{names}`"
    choices = option.type.choices if isinstance(option.type, click.Choice) else None
    return f"`{names} {option.metavar or ('|'.join(choices) if choices else option.type.name.split()[0].upper())}`"


def option_help(option: click.Option) -> str:
    help_text = " ".join((option.help or "").split())
    if isinstance(option.show_default, str):
        return f"{help_text} [default: {option.show_default}]"
    return (
        f"{help_text} [default: {option.default}]"
        if option.show_default and not option.is_flag
        else help_text
    )


def cell(text: str) -> str:
    return prose(text).replace("|", "\\|")


def prose(text: str) -> str:
    """Plain text as Markdown: `<person>` is not an HTML tag, except where it is shown as code anyway."""
    code = re.compile(r"(`[^`]*`|^ {4}.*$)", re.MULTILINE)
    return "".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(code.split(text)))


# -- fragments of other pages ----------------------------------------------------------------------------------------


def command_list() -> str:
    """A table of the commands, each with the first sentence of its help, linked to its section."""
    rows = []
    for name, command in commands():
        first = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
        rows.append(f"| [`ft {name}`](docs/reference/commands.md#ft-{name}) | {cell(first)} |")
    return "\n".join(["| command | |", "|---|---|", *rows, ""])


def settings(model: type[BaseModel] = TrainConfig) -> str:
    """A table of a model's fields, as a file names them."""
    rows = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append(
            f"| `{field.alias or name}` | {cell(kind(field.annotation))} | {value(default)} | "
            f"{cell(field.description or '')} |"
        )
    return "\n".join(["| setting | type | default | |", "|---|---|---|---|", *rows, ""])


def kind(annotation: Any) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[
            annotation.__name__
        ]
    if getattr(annotation, "__origin__", None) is dict:
        return "table"
    if annotation == tuple[Validation, ...]:
        return "tables"
    names = [
        f'`"{x}"`' if isinstance(x, str) else kind(x) for x in annotation.__args__ if x is not type(None)
    ]
    return " or ".join(names)


def part_arguments() -> str:
    """A table of what the built-in parts take that are named in a configuration."""
    rows = []
    for family in ("trainers", "losses", "miners", "backbones"):
        for name in BUILT_IN[family]:
            arguments = [
                f"`{parameter.name}` {value(parameter.default)}"
                for parameter in inspect.signature(resolve(family, name)).parameters.values()
                if parameter.name not in SET_BY_US
            ]
            rows.append(f"| {SINGULAR[family]} | `{name}` | {', '.join(arguments)} |")
    return "\n".join(["| | | takes, with these defaults |", "|---|---|---|", *rows, ""])


def code_map() -> str:
    """Every module with the first line of its docstring, a list for each folder."""
    package = ROOT / "facetrain"
    folders = sorted({path.parent for path in package.rglob("*.py")})
    parts = []
    for folder in folders:
        modules = [(path.name, first_line(path)) for path in sorted(folder.glob("*.py"))]
        about = dict(modules).get("__init__.py", "")
        parts.append(f"**`{folder.relative_to(ROOT).as_posix()}/`**{about and f' {about}'}\n")
        parts += [f"- `{name}`: {text}" for name, text in modules if name != "__init__.py"]
        parts.append("")
    return "\n".join(parts)


def first_line(module: Path) -> str:
    """The first paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    return prose(" ".join(text.split("\n\n")[0].replace("``", "`").split()))


def value(default: Any) -> str:
    return "–" if default is None else f"`{json.dumps(default)}`"


FRAGMENTS: dict[str, Callable[[], str]] = {
    "command-list": command_list,
    "settings": settings,
    "validation-settings": lambda: settings(Validation),
    "part-arguments": part_arguments,
    "map": code_map,
}


# -- writing ---------------------------------------------------------------------------------------------------------


def generated() -> dict[Path, str]:
    """Path → text as it should be, of every page with generated parts."""
    pages = {COMMANDS_PAGE: commands_page()}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        if page != COMMANDS_PAGE and MARKED.search(text):
            pages[page] = MARKED.sub(lambda found: f"{found[1]}{FRAGMENTS[found[2]]()}{found[3]}", text)
    return pages


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    stale = [
        (page, text) for page, text in generated().items() if not page.is_file() or page.read_text() != text
    ]
    for page, text in stale:
        print(f"{'stale' if check else 'written'}: {page.relative_to(ROOT)}")
        if not check:
            page.write_text(text)
    if check and stale:
        print("run `make docs`")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
