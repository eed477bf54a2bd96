"""A model card from a run's lineage."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata

from aggregator_worker.roll_back import rolled_back
from operator_console.history import History, Link
from operator_console.model_card import LineageFacts, MemberFacts, ModelCard, PrivacyFacts
from shared.errors import SettingsError
from shared.messages import Entry
from shared.plan import Plan
from shared.tasks.spec import TaskSpec


def tells_of(history: History, version: int) -> bool:
    """Whether the history reaches back to a version: the broker drops the oldest links of a very long run."""
    return any(link.manifest.version == version for link in history.links)


def card_of(history: History, spec: TaskSpec, version: int, why: str, *, named: bool) -> ModelCard:
    """The card of a version that the history tells of. Without `named` institutions are numbers, in an order that says nothing.

    What was spent and folded counts up to the last link of that version, which the history must have. Raises SettingsError where
    the task is not the one of that version's plan.
    """
    links = [link for link in history.links if link.manifest.version <= version]
    made = next((link for link in links if link.manifest.version == version), None)
    if made is None or history.head is None or history.plan is None:
        raise ValueError(f"the history does not tell of version {version}")
    table, plan = _table(links), _plan(links) or history.plan
    if plan.task_hash != spec.hash:
        raise SettingsError(
            f"the task {spec.name} is not the one that the plan of version {version} names; bring that task.toml back"
        )
    examples = [entry.num_examples for entry in table.values() if entry.num_examples is not None]
    return ModelCard(
        fedqueue=metadata.version("fedqueue"),
        task=spec,
        run_id=made.manifest.run_id,
        version=version,
        newest_version=history.head.manifest.version,
        why=why,
        first_at_ms=links[0].at_ms,
        at_ms=made.at_ms,
        institutions=_members(history, table, named=named),
        named=named,
        examples=sum(examples) if examples else None,
        updates=_updates(table),
        roll_backs=tuple(link.manifest.version for link in links if rolled_back(link.manifest) is not None),
        metrics=dict(made.manifest.metrics),
        measured_versions=len({link.manifest.version for link in history.links if link.manifest.metrics}),
        decision=_decision(spec, made.manifest.metrics),
        privacy=_privacy(spec, plan),
        lineage=LineageFacts(
            first_manifest=links[0].hash,
            manifest=made.hash,
            model=made.manifest.model.hash,
            task=spec.hash,
            plan=made.manifest.plan_hash,
        ),
    )


def _table(links: Sequence[Link]) -> dict[str, Entry]:
    """Institutions by pseudonym after these links."""
    table: dict[str, Entry] = {}
    for link in links:
        table = dict(link.manifest.table) if link.manifest.whole else {**table, **link.manifest.table}
    return table


def _plan(links: Sequence[Link]) -> Plan | None:
    return next((link.manifest.plan for link in reversed(links) if link.manifest.plan is not None), None)


def _members(history: History, table: Mapping[str, Entry], *, named: bool) -> tuple[MemberFacts, ...]:
    """By name, or by pseudonyms that are not told: their order is that of hashes."""
    if named:
        order = sorted(table, key=history.name)
        return tuple(_member(history.name(alias), table[alias], examples=table[alias].num_examples) for alias in order)
    return tuple(_member(f"institution {number}", table[alias]) for number, alias in enumerate(sorted(table), start=1))


def _member(name: str, entry: Entry, *, examples: int | None = None) -> MemberFacts:
    return MemberFacts(
        institution=name,
        updates=entry.counters.aggregated,
        epsilon_spent=entry.epsilon_spent,
        target_delta=entry.target_delta,
        examples=examples,
    )


def _updates(table: Mapping[str, Entry]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for entry in table.values():
        total.update(entry.counters.model_dump())
    return {"aggregated": total["aggregated"]} | {outcome: count for outcome, count in total.items() if count}


def _decision(spec: TaskSpec, metrics: Mapping[str, float | None]) -> float | None:
    """The task's own threshold, else the one that its base rate gave on the held-out rows."""
    if spec.kind != "binary":
        return None
    return spec.label.threshold if spec.label.threshold is not None else metrics.get("threshold")


def _privacy(spec: TaskSpec, plan: Plan) -> PrivacyFacts:
    mechanism = plan.privacy.mechanism
    unit = "nothing"
    if mechanism == "update-gaussian":
        unit = "the whole of an institution, that it took part at all"
    elif mechanism == "dp-sgd":
        unit = (
            f"one person with all its rows at an institution (column {spec.person})"
            if spec.person
            else "one row of an institution"
        )
    budget = None if mechanism == "none" else plan.privacy.epsilon
    return PrivacyFacts(mechanism=mechanism, unit=unit, epsilon_budget=budget, target_delta=plan.privacy.target_delta)
