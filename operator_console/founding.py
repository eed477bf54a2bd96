"""`fedqueue init`: broker objects, version 0, and a settings file for every worker."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aggregator_worker.genesis import found
from aggregator_worker.latest import most_institutions
from aggregator_worker.rules import TABLE_RULES
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.logins import Logins
from broker_config.provision import free_room, provision
from broker_config.topology import checked_institution
from operator_console.credentials import found_credentials
from operator_console.federation_folder import ClientOptions, Facts, FederationFolder, InstitutionFacts
from operator_console.kit import write_kit
from operator_console.plan_options import (
    PlanOptions,
    RoomOptions,
    aggregation_for,
    broker_limits,
    models_held,
    plan_for,
    sizes_of,
    version_spacing_seconds,
)
from shared.errors import SettingsError
from shared.keys import PublicKeys
from shared.messages import Entry, pseudonym
from shared.plan import Plan
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task


@dataclass(frozen=True, slots=True)
class Founding:
    """What a new federation is made of. `free_bytes` is the room on the broker's disk where that is known.

    `sealed` is whether the broker's operator must not read updates, models and orders.
    """

    task_text: str
    task_source: str
    institutions: Sequence[InstitutionFacts]
    options: PlanOptions
    room: RoomOptions = field(default_factory=RoomOptions)
    seed: int = 0
    held_out: str | None = None
    clients: Mapping[str, ClientOptions] = field(default_factory=dict)
    free_bytes: int | None = None
    sealed: bool = False


def found_federation(folder: FederationFolder, broker: Logins, founding: Founding) -> Plan:
    """Provisions the broker, publishes version 0 and writes the folder. Raises SettingsError before anything is changed
    where the task or an id is wrong."""
    spec = parse_task(founding.task_text, source=founding.task_source)
    ids = [checked_institution(each.id) for each in founding.institutions]
    model = initial_parameters(spec, founding.seed)
    aggregation = aggregation_for(spec, founding.options)
    if aggregation.rule in TABLE_RULES and len(ids) > most_institutions(len(model)):
        raise SettingsError(
            f"--rule {aggregation.rule} keeps a row of {len(model)} tensors for each institution, and a state has room for "
            f"{most_institutions(len(model))}; found the federation with another rule, or with fewer institutions"
        )
    sizes = sizes_of(model, founding.options.broadcast_of(spec), aggregation, institutions=len(ids))
    free_bytes = founding.free_bytes if founding.free_bytes is not None else free_room(broker)
    limits = broker_limits(sizes, founding.room, institutions=len(ids), free_bytes=free_bytes)
    spacing = version_spacing_seconds(sizes, limits, founding.room)
    held = models_held(sizes, limits)
    plan = plan_for(spec, founding.options, update_bytes=sizes.update, spacing_seconds=spacing, held=held)
    logins = broker.with_institutions(ids).model_copy(update={"limits": limits})
    facts = Facts(
        run_id=secrets.token_hex(8), task=spec.name, title=spec.title or spec.name, institutions=list(founding.institutions)
    )
    folder.prepare(founding.task_text, logins)
    keys = found_credentials(folder, ids, sealed=founding.sealed)
    provision(folder.logins(), ids, free_bytes=founding.free_bytes)
    secret = folder.run_secret()
    table = {pseudonym(secret, each.id): _entry(each.incarnation, keys[each.id]) for each in founding.institutions}
    with_operator = connect(folder.logins().settings(OPERATOR), name="fedqueue-init")
    try:
        found(with_operator, run_id=facts.run_id, plan=plan, parameters=model, table=table)
    finally:
        with_operator.close()
    folder.keep(facts)
    folder.write_aggregator(logins, held_out=founding.held_out)
    for each in founding.institutions:
        folder.write_client(each, plan, founding.clients.get(each.id, ClientOptions()))
        write_kit(folder.kit(each.id), folder.institution(each.id))
    return plan


def _entry(incarnation: int, keys: PublicKeys) -> Entry:
    return Entry(incarnation=incarnation, signing_key=keys.signing, sealing_key=keys.sealing)
