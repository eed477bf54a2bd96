"""`fedqueue plan show | change`: what the federation has agreed to do, and another agreement while the run goes on."""

import json
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from aggregator_worker.plan_change import KIND, PlanChange, demand_changeable
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from operator_console.operation_commands import OrderDesk, OrderRefusedError, order_desk
from shared.did_you_mean import suggestion
from shared.errors import SettingsError
from shared.messages import Operation
from shared.plan import Plan

plan_app = typer.Typer(no_args_is_help=True, help="What the federation has agreed to do.", rich_markup_mode=None)


@plan_app.command()
def show(
    folder: Folder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")] = False,
) -> None:
    """Print the plan in force, one key a line, as `fedqueue plan change` takes it."""
    with order_desk(FederationFolder(folder)) as desk:
        plan = _plan_of(desk)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "hash": plan.hash, "plan": plan.model_dump()}))
        return
    for key, value in flat(plan.model_dump()).items():
        typer.echo(f"{key} = {told(value)}")


@plan_app.command()
def change(
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="For example local.updates=40; none for nothing.")],
    folder: Folder = DEFAULT_FOLDER,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Put another plan in force while the run goes on.

    Each institution holds it against its own policy, as it did with the first. Updates that are under way under the old plan are
    settled as stale; `fedqueue pause` first lets them in.
    """
    with order_desk(FederationFolder(folder)) as desk:
        present = _plan_of(desk)
        wanted = changed(present, changes)
        demand_changeable(present, wanted)
        for line in differences(present, wanted):
            typer.echo(line)
        if dry_run or not (yes or typer.confirm("Put this plan in force?")):
            return
        arguments = PlanChange(instead_of=present.hash, plan=wanted.model_dump()).model_dump()
        order = Operation(run_id=desk.head.manifest.run_id, operation_id=secrets.token_hex(16), kind=KIND, arguments=arguments)
        outcome = desk.give_all([order])[0]
        if not outcome.applied:
            raise OrderRefusedError(f"the aggregator refused to change the plan: {outcome.reason}")
        typer.echo(f"the plan {wanted.hash[:12]} is in force from version {desk.head.manifest.version} on")


def _plan_of(desk: OrderDesk) -> Plan:
    if desk.plan is None:
        raise SettingsError("the lineage tells no plan; run `fedqueue lineage verify`")
    return desk.plan


def changed(present: Plan, changes: list[str]) -> Plan:
    """The plan with some keys at other values. Raises SettingsError naming the key that there is not, or that cannot be so."""
    values = present.model_dump()
    for each in changes:
        key, sign, text = each.partition("=")
        if not sign:
            raise SettingsError(f"{each!r} is not KEY=VALUE, such as local.updates=40")
        _put(values, key.strip(), _value_of(text.strip()))
    try:
        # what a simulation found was found under the present plan
        return Plan.model_validate({**values, "simulated": None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentences(error))) from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    inner: Any = values
    for table in tables:
        inner = inner.get(table) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or name not in inner:
        raise SettingsError(f"a plan has no key {key!r}: {suggestion(key, flat(values))}")
    inner[name] = value


def _value_of(text: str) -> Any:
    """As TOML writes it; `none` is nothing, and other text needs no quotation marks."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sentences(error: ValidationError) -> Iterator[str]:
    for each in error.errors():
        key = ".".join(str(part) for part in each["loc"])
        yield f"{key}: {each['msg'].removeprefix('Value error, ')}" if key else each["msg"].removeprefix("Value error, ")


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as keys with dots."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{before}{name}"
        result |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return result


def told(value: Any) -> str:
    """A value as `change` takes it."""
    return "none" if value is None else json.dumps(value)


def differences(present: Plan, wanted: Plan) -> Iterator[str]:
    """One line for each key that differs."""
    before, after = flat(present.model_dump()), flat(wanted.model_dump())
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{key}: {told(before.get(key))} -> {told(after.get(key))}"
