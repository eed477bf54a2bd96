"""`fedqueue dead-letters list | show | requeue | discard`: what was refused, and what is to become of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.dead_letters import DeadLetters, DeadUpload, requeue_order, uploads
from operator_console.federation_folder import FederationFolder
from operator_console.operation_commands import ANSWER_SECONDS, OrderDesk, OrderRefusedError
from shared.broker import Broker
from shared.printable import printable

dead_letter_app = typer.Typer(help="What was refused, and why.", no_args_is_help=True, rich_markup_mode=None)

Handle = Annotated[str, typer.Argument(metavar="ID", help="As `fedqueue dead-letters list` shows it.")]


@dead_letter_app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Look at the oldest so many only.")] = 200,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Show the refused messages, oldest first, without changing anything."""
    with _operator(folder) as broker:
        letters = DeadLetters(broker).look(limit=limit)
    if not letters:
        typer.echo("no dead letters")
        return
    table = Table()
    for name in ("id", "reason", "institution", "kind", "message", "chunks", "bytes", "age"):
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "age"))
    for upload in uploads(letters):
        table.add_row(*row(upload, now=time.time()))
    Console().print(table)
    if len(letters) == limit:
        typer.echo(f"these are the oldest {limit}; there may be more behind them, which --limit shows")


@dead_letter_app.command()
def show(handle: Handle, folder: Folder = DEFAULT_FOLDER) -> None:
    """Show the headers of a refused message, and the first bytes of its body."""
    with _operator(folder) as broker:
        upload = DeadLetters(broker).find(handle)
    for line in lines(upload):
        typer.echo(line)


@dead_letter_app.command()
def requeue(handle: Handle, folder: Folder = DEFAULT_FOLDER) -> None:
    """Have the aggregator look at a refused message once more, as if its author had sent it again."""
    take_in_again(FederationFolder(folder), handle)
    typer.echo(f"{handle} was taken in again, and is no longer a dead letter")


@dead_letter_app.command("discard")
def discard_letter(
    handle: Handle,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Remove a refused message for good."""
    with _operator(folder) as broker:
        upload = DeadLetters(broker).find(handle)
    # asked without a connection, which a person who thinks about it for long would let time out
    if not yes and not typer.confirm(f"discard {handle}, {upload.size:,} bytes from {printable(upload.first.institution)}?"):
        raise typer.Exit(1)
    with _operator(folder) as broker:
        gone = DeadLetters(broker).discard(upload.letters)
    typer.echo(f"{gone} dead letter{'' if gone == 1 else 's'} discarded")


def take_in_again(folder: FederationFolder, handle: str) -> None:
    """Has the letters of one handle taken in again, and removes them then.

    Raises NoSuchLetterError, and what `requeue_upload` raises.
    """
    with _operator(folder.path) as broker:
        upload = DeadLetters(broker).find(handle)
    # a connection for each part: nothing would keep the first one alive while the aggregator works
    with _operator(folder.path) as broker:
        requeue_upload(upload, OrderDesk(broker))
    with _operator(folder.path) as broker:
        DeadLetters(broker).discard(upload.each_chunk())


def requeue_upload(upload: DeadUpload, desk: OrderDesk) -> None:
    """One order for each chunk, in order; returns once all were followed.

    Raises IncompleteUploadError, NoAnswerError, and OrderRefusedError with the aggregator's reason.
    """
    orders = [requeue_order(letter, desk.head.manifest.run_id) for letter in upload.each_chunk()]
    outcomes = desk.give_all(orders, timeout_seconds=ANSWER_SECONDS + len(orders))
    refused = [outcome.reason for outcome in outcomes if not outcome.applied]
    if refused:
        raise OrderRefusedError(
            f"the aggregator refused to take {upload.handle} in again: {printable(refused[0])}; it stays here"
        )


def row(upload: DeadUpload, *, now: float) -> list[Text]:
    """The cells of `list`; Text takes brackets for what they are."""
    first, (here, chunks) = upload.first, upload.chunks
    message = first.delivery.message
    cells = (
        upload.handle,
        first.reason,
        first.institution,
        message.kind,
        str(first.headers.get("id", message.message_id)),
        f"{here} of {chunks}",
        f"{upload.size:,}",
        age(first.delivery.published_at, now=now),
    )
    return [Text(printable(cell)) for cell in cells]


def lines(upload: DeadUpload) -> Iterator[str]:
    """What `show` prints: one letter's properties and headers stand for all chunks."""
    first, (here, chunks) = upload.first, upload.chunks
    about = {
        "reason": first.reason,
        "institution": first.institution,
        "written by": first.delivery.user_id or "nobody that the broker knows",
        "kind": first.delivery.message.kind,
        "message": first.delivery.message.message_id,
        "chunks": f"{here} of {chunks} here: {', '.join(str(letter.place[0]) for letter in upload.letters[:100])}",
        "bytes": str(upload.size),
    }
    about |= {f"header {name}": str(value) for name, value in sorted(first.headers.items())}
    for name, value in about.items():
        yield f"{printable(name)}: {printable(value)}"
    yield f"first bytes: {first.begin.hex(' ')}"


def age(published_at: int | None, *, now: float) -> str:
    """How long ago, by the publisher's clock."""
    if published_at is None:
        return "-"
    seconds = max(0, int(now) - published_at)
    for unit, of_seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= of_seconds:
            return f"{seconds // of_seconds} {unit}"
    return f"{seconds} s"


@contextmanager
def _operator(folder: Folder) -> Iterator[Broker]:
    broker = connect(FederationFolder(folder).logins().settings(OPERATOR), name="fedqueue-dead-letters")
    try:
        yield broker
    finally:
        broker.close()
