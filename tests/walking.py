"""A page's commands as its reader types them: one after the other, in terminals of their own, in a clean folder.

A `console` block goes on in the first terminal. A comment above it, which no reader sees, says otherwise:
`<!-- another terminal -->`, or `<!-- another terminal, until: TEXT -->` where the last command stays, and the reader goes on once
it has said TEXT. What a block shows after a command must come in its output, line by line; numbers may be others, and a line
that the page ends with `...` may go on.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"(?:<!-- (another terminal)(?:, until: (.+?))? -->\n+)?^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"\b[0-9a-f]{12,64}\b|[0-9][0-9,.]*")
_ENDED = "walked-to-its-end-"
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Step:
    """One command and what the page shows of its output."""

    command: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Some commands in one terminal: the first one, or another. `until` is what the last one says when it is ready."""

    steps: tuple[Step, ...]
    elsewhere: bool = False
    until: str = ""


def blocks_of(page: str) -> list[Block]:
    """The page's `console` blocks in their order."""
    return [Block(tuple(_steps(body)), bool(elsewhere), until) for elsewhere, until, body in _BLOCK.findall(page)]


def _steps(body: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip("\n").split("\n")
        while command.endswith("\\"):
            command = command[:-1] + shown.pop(0).lstrip()
        yield Step(command, tuple(line for line in shown if line.strip()))


def without_numbers(line: str) -> str:
    """A line in which what differs from run to run is not told."""
    return " ".join(_VARIABLE.sub("#", line).split())


@dataclass
class Terminal(AbstractContextManager["Terminal"]):
    """A shell whose output goes to a file."""

    folder: Path
    output: Path
    environment: Mapping[str, str]
    _asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        with self.output.open("wb") as file:
            self._shell = subprocess.Popen(
                ["bash"],
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __exit__(self, *_exception: object) -> None:
        """As Ctrl-C and Ctrl-D do."""
        assert self._shell.stdin is not None
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self._shell.poll() is None:
                os.killpg(self._shell.pid, ending)
                self._shell.stdin.close()
                try:
                    self._shell.wait(40)
                except subprocess.TimeoutExpired:
                    continue

    def type(self, command: str) -> None:
        """A line and Enter."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}\n".encode())
        self._shell.stdin.flush()

    def run(self, step: Step) -> None:
        """Types a command, waits for its end, and holds it to code 0 and to what the page shows."""
        self._asked += 1
        begun, mark = self.output.stat().st_size, f"walked-{self._asked}-"
        self.type(f"{{ {step.command}\n}} </dev/null; echo {mark}$?")
        said = self.wait_for(mark, begun)
        code = said.rpartition(mark)[2].strip()
        assert code == "0", f"$ {step.command}\nended with {code} and said:\n{said}"
        _demand_shown(step, said.rpartition(mark)[0])

    def stay(self, command: str, until: str) -> None:
        """Types a command that stays, and waits until it has said something."""
        begun = self.output.stat().st_size
        self.type(f"{command}; echo {_ENDED}$?")
        said = self.wait_for(until, begun)
        assert _ENDED not in said, f"$ {command}\ndoes not stay; it said:\n{said}"

    def wait_for(self, text: str, begun: int = 0) -> str:
        """Everything said from a place on, once the text is in it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in (said := self.output.read_bytes()[begun:].decode(errors="replace")):
            assert self._shell.poll() is None, f"the terminal is gone; it said:\n{said}"
            assert _ENDED not in said, f"{text!r} never came, and nothing goes on:\n{said}"
            assert time.monotonic() < deadline, f"{text!r} never came; there is:\n{said}"
            time.sleep(0.1)
        while text.startswith("walked-") and not said.endswith("\n"):
            said = self.output.read_bytes()[begun:].decode(errors="replace")
        return said


def _demand_shown(step: Step, said: str) -> None:
    lines = iter([without_numbers(line) for line in said.splitlines()])
    for shown in step.shown:
        wanted, is_cut = without_numbers(shown.removesuffix("...")), shown.endswith("...")
        is_there = any(line.startswith(wanted) if is_cut else line == wanted for line in lines)
        assert is_there, f"$ {step.command}\nthe page shows: {shown}\nit said:\n{said}"


@dataclass
class Walk(AbstractContextManager["Walk"]):
    """Terminals that were opened on the way; they are closed in the order in which they were opened last."""

    folder: Path
    environment: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    _terminals: list[Terminal] = field(default_factory=list)

    def __exit__(self, *_exception: object) -> None:
        while self._terminals:
            self._terminals.pop().__exit__()

    def open(self) -> Terminal:
        """One more terminal, in the clean folder."""
        place = self.folder / f"terminal-{len(self._terminals) + 1}.log"
        self._terminals.append(Terminal(self.folder, place, self.environment))
        return self._terminals[-1]

    def through(self, blocks: list[Block]) -> None:
        """Every block; notes what each command took."""
        first = self.open()
        for block in blocks:
            terminal = self.open() if block.elsewhere else first
            for step in block.steps[:-1] if block.until else block.steps:
                begun = time.monotonic()
                terminal.run(step)
                self.seconds[step.command] = time.monotonic() - begun
            if block.until:
                begun = time.monotonic()
                terminal.stay(block.steps[-1].command, block.until)
                self.seconds[block.steps[-1].command] = time.monotonic() - begun
