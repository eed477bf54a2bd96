"""How the help of our three programs looks: options and commands under headings, and examples that can be typed as they stand."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

LONGEST_SUMMARY = 160
"""Characters of a command's line in its group."""


class CommandPage(TyperCommand):
    """A command whose plain help lists its options under the headings that each names as `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the groups in the order in which their first options stand."""
        _write_groups(formatter, _options(self, ctx))


class GroupPage(TyperGroup):
    """A group of commands whose plain help lists them under the headings that each names as `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options, then the commands in the order in which they were added."""
        shown = [(name, self.commands[name]) for name in self.list_commands(ctx) if not self.commands[name].hidden]
        told = (
            (getattr(each, "rich_help_panel", None) or "Commands", (name, each.get_short_help_str(LONGEST_SUMMARY)))
            for name, each in shown
        )
        _write_groups(formatter, chain(_options(self, ctx), told))


def _options(command: Any, ctx: Any) -> Iterator[tuple[str, Any]]:
    for param in command.get_params(ctx):
        otherwise = "Arguments" if param.param_type_name == "argument" else "Options"
        if (record := param.get_help_record(ctx)) is not None:
            yield getattr(param, "rich_help_panel", None) or otherwise, record


def _write_groups(formatter: Any, records: Iterable[tuple[str, Any]]) -> None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for heading, record in records:
        groups.setdefault(heading, []).append(record)
    for heading, group in groups.items():
        with formatter.section(heading):
            formatter.write_dl(group)


def lay_out(app: typer.Typer, examples: Mapping[str, tuple[str, ...]], path: str = "") -> None:
    """Gives every command of an application its page, with the examples that `examples` has under its words."""
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        command.cls = CommandPage
        command.epilog = epilog(examples.get(f"{path} {name}".strip(), ()))
    for group in app.registered_groups:
        group.cls = GroupPage
        if group.typer_instance is not None:
            lay_out(group.typer_instance, examples, f"{path} {group.name}".strip())


def epilog(examples: Iterable[str]) -> str | None:
    """Examples as the end of a help page; None where there are none."""
    lines = "\n".join(f"  {each}" for each in examples)
    return f"\b\nExamples:\n{lines}" if lines else None
