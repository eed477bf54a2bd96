"""What the site has and GitHub does not: the reference, written from programs, settings and errors whenever the site is built.

A page says where by a comment, for example `<!-- from code: commands -->`; GitHub does not show it. The pages stay plain
Markdown: the side bar is made of the index's links, and a link that leads beyond docs/ gives the file.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperGroup

from aggregator_worker.cli import app as aggregator_app
from aggregator_worker.settings import AggregatorSettings
from client_worker.cli import app as client_app
from client_worker.settings import ClientSettings
from operator_console.cli import app as operator_app
from shared.errors import FederationError
from shared.plan import Plan

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PROGRAMS: dict[str, typer.Typer] = {
    "fedqueue": operator_app,
    "fedqueue-client": client_app,
    "fedqueue-aggregator": aggregator_app,
}
_PLACE = re.compile(r"^<!-- from code: ([a-z.]+) -->$", re.MULTILINE)
_PAGE = re.compile(r"\]\(([\w/-]+)\.md\)")
_BEYOND = re.compile(r"\]\(((?:\.\./)+(?:README|CHANGELOG|examples/|builtin_tasks/)[^)#\s]*)(?:#[^)\s]*)?\)")
_PLAIN_TYPES = {str: "text", SecretStr: "text, secret", Path: "path", int: "whole number", float: "number", bool: "true or false"}


def commands() -> str:
    """Every command of the three programs, with its arguments and options."""
    return "\n\n".join(
        text for program, app in PROGRAMS.items() for text in _told_program(program, typer.main.get_command(app), level=2)
    )


def _told_program(path: str, command: Any, *, level: int) -> Iterator[str]:
    yield from _told_command(path, command, level=level)
    if isinstance(command, TyperGroup):
        for name, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from _told_program(f"{path} {name}", inner, level=min(level + 1, 4))


def _told_command(path: str, command: TyperCommand | TyperGroup, *, level: int) -> Iterator[str]:
    context = typer.Context(command, info_name=path)
    yield f"{'#' * level} {path}"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"```console\n$ {path} {' '.join(command.collect_usage_pieces(context))}\n```"
    records = [each.get_help_record(context) for each in command.params]
    rows = [(f"`{names}`", meaning) for names, meaning in filter(None, records)]
    if rows:
        yield _table(("argument or option", "meaning"), rows)
    if command.epilog:
        yield f"```console\n{inspect.cleandoc(command.epilog).replace(chr(8), '').strip()}\n```"


def settings(model: type[BaseModel]) -> str:
    """Every key of a TOML file that is read into `model`, table by table."""
    return "\n\n".join(_told_model(model, path=()))


def _told_model(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"### [{'.'.join(path)}]"
    yield inspect.cleandoc(model.__doc__ or "")
    inner = {name: table for name, field in model.model_fields.items() if (table := _table_of(field.annotation)) is not None}
    own = {name: field for name, field in model.model_fields.items() if name not in inner}
    told = any(field.description for field in own.values())
    rows = [(*_told_field(name, field), *([field.description or ""] if told else [])) for name, field in own.items()]
    yield _table(("key", "type", "default", "meaning")[: 3 + told], rows)
    for name, table in inner.items():
        yield from _told_model(table, (*path, name))


def _told_field(name: str, field: FieldInfo) -> tuple[str, str, str]:
    default = "required" if field.is_required() else _told_value(field.get_default(call_default_factory=True))
    return f"`{name}`", _told_type(field.annotation, field.metadata), default


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a nested table, also of one that may be left out."""
    found = [each for each in (annotation, *get_args(annotation)) if inspect.isclass(each) and issubclass(each, BaseModel)]
    return found[0] if found and get_origin(annotation) is not tuple else None


def _told_type(annotation: Any, metadata: list[Any]) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _told_type(inner[0], [*inner[1:], *metadata])
    if origin in (Union, UnionType):
        return " or ".join(_told_type(each, metadata) for each in inner if each is not NoneType)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inner)
    if origin in (tuple, list):
        return f"list: {_told_type(inner[0], metadata)}"
    return _PLAIN_TYPES.get(annotation, getattr(annotation, "__name__", "value")) + "".join(_bounds(metadata))


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for each in metadata:
        for bound in each.metadata if isinstance(each, FieldInfo) else (each,):
            for name, words in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "up to")):
                if (limit := getattr(bound, name, None)) is not None:
                    yield f", {words} {limit:g}"
            if (pattern := getattr(bound, "pattern", None)) is not None:
                yield f", `{pattern}`"


def _told_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def errors() -> str:
    """Every error of the public tree, with the exit code that a program ends with."""
    return _table(("error", "is a", "exit code", "meaning"), list(_told_errors(FederationError, "Exception")))


def _told_errors(error: type[FederationError], parent: str) -> Iterator[tuple[str, ...]]:
    yield f"`{error.__name__}`", f"`{parent}`", str(error.exit_code), inspect.cleandoc(error.__doc__ or "")
    for child in error.__subclasses__():
        if child.__module__ == FederationError.__module__:
            yield from _told_errors(child, error.__name__)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


SOURCES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "aggregator.toml": lambda: settings(AggregatorSettings),
    "client.toml": lambda: settings(ClientSettings),
    "plan": lambda: settings(Plan),
    "errors": errors,
}


def filled(text: str) -> str:
    """A page with its generated parts in the places that it names. Raises KeyError for a part that there is not."""
    return _PLACE.sub(lambda place: SOURCES[place[1]](), text)


def contents(index: str) -> str:
    """The site's side bar, in Sphinx's words: under each heading of the index, the pages that it links to there."""
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", index, re.MULTILINE)
    return "".join(_side_bar(heading, _PAGE.findall(body)) for heading, body in sections)


def _side_bar(heading: str, pages: Sequence[str]) -> str:
    return "\n".join(("", "```{toctree}", ":hidden:", f":caption: {heading}", "", *pages, "```", ""))


def _fill(_app: "Sphinx", page: str, content: list[str]) -> None:
    text = _BEYOND.sub(r"](path:\1)", filled(content[0]))
    content[0] = text + contents(text) if page == "index" else text


def setup(app: "Sphinx") -> dict[str, bool]:
    """Fills the pages as Sphinx reads them; what has no colours is shown without."""
    from pygments.lexers.special import TextLexer

    app.connect("source-read", _fill)
    for language in ("csv", "hex"):
        app.add_lexer(language, TextLexer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
