"""When a run ends and why, and which version is the best so far. Pure: from the plan, running totals and held-out figures."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace

from shared.errors import SettingsError
from shared.lineage import standing_under, takes_part
from shared.messages import BlobName, Entry
from shared.plan import Ending, Plan
from shared.tasks.spec import LOWER_IS_BETTER, better

Scalars = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Best:
    """The version with the best held-out figure so far; of equal ones the first."""

    version: int
    figure: float
    model: BlobName


@dataclass(frozen=True, slots=True)
class Progress:
    """What of a run's course decides its end. Manifests hand it on in their scalars, so a successor goes on counting.

    `reached` is how many versions in a row, up to the newest, have reached the target. `seconds` count while an aggregator
    leads and the run is not paused, as of the manifest.
    """

    best: Best | None = None
    reached: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, scalars: Scalars) -> "Progress":
        """As a manifest has it; of version 0, which has none, the beginning."""
        seconds = float.fromhex(str(scalars.get("running_seconds", "0x0.0p+0")))
        return cls(_best_of(scalars), int(scalars.get("target_reached", 0)), seconds)

    def put_into(self, scalars: Scalars) -> dict[str, str | int]:
        """A manifest's scalars with this in the place of an earlier one; where there is no best, nothing tells of one."""
        others = {name: value for name, value in scalars.items() if not name.startswith("best_")}
        others |= {"target_reached": self.reached, "running_seconds": self.seconds.hex()}
        if self.best is None:
            return others
        best, model = self.best, self.best.model
        others |= {"best_version": best.version, "best_figure": best.figure.hex()}
        return others | {"best_model": model.hash, "best_size": model.size}

    def measured(self, ending: Ending, version: int, model: BlobName, figure: float | None) -> "Progress":
        """After one more version, whose figure is `ending.metric`'s on the held-out rows; None where it has none."""
        if figure is None or not math.isfinite(figure):
            return replace(self, reached=0)
        is_best = self.best is None or better(ending.metric, figure, self.best.figure)
        best = Best(version, figure, model) if is_best else self.best
        return replace(self, best=best, reached=self.reached + 1 if _reaches_target(ending, figure) else 0)


def _best_of(scalars: Scalars) -> Best | None:
    if "best_version" not in scalars:
        return None
    model = BlobName(hash=str(scalars["best_model"]), size=int(scalars["best_size"]))
    return Best(int(scalars["best_version"]), float.fromhex(str(scalars["best_figure"])), model)


def _reaches_target(ending: Ending, figure: float) -> bool:
    if ending.target is None:
        return False
    return figure <= ending.target if ending.metric in LOWER_IS_BETTER else figure >= ending.target


@dataclass(frozen=True, slots=True)
class Tally:
    """What the conditions on institutions come to, kept up to date entry by entry: no commit looks at all of them.

    `aggregated` are updates of present members. `behind` counts those whose updates others wait for, and who have given fewer
    than each must. Of active members `may_give` still may, `have_given` all they planned to or can afford, and `refuse` the plan.
    Active or not, `done` have given all they could or are in quarantine.
    """

    aggregated: int = 0
    behind: int = 0
    may_give: int = 0
    have_given: int = 0
    refuse: int = 0
    done: int = 0

    @classmethod
    def of(cls, plan: Plan, plan_hash: str, entries: Iterable[Entry]) -> "Tally":
        """Of a whole table."""
        tally = cls()
        for entry in entries:
            tally = tally.changed(plan, plan_hash, None, entry)
        return tally

    def changed(self, plan: Plan, plan_hash: str, former: Entry | None, entry: Entry) -> "Tally":
        """After an entry took the place of a former one, or came new."""
        if former is not None and _same(former, entry):
            return self
        now = _counted(plan, plan_hash, entry)
        before = Tally() if former is None else _counted(plan, plan_hash, former)
        return Tally(*(held + after - ago for held, after, ago in zip(astuple(self), astuple(now), astuple(before), strict=True)))


def _same(former: Entry, entry: Entry) -> bool:
    """Whether nothing changed that is counted: most changes are of what an institution has earned."""
    return (
        former.counters is entry.counters
        and former.watermark == entry.watermark
        and (former.active, former.removed, former.quarantined) == (entry.active, entry.removed, entry.quarantined)
        and (former.standing, former.standing_plan) == (entry.standing, entry.standing_plan)
    )


def _counted(plan: Plan, plan_hash: str, entry: Entry) -> Tally:
    """What one entry adds to each total."""
    if entry.removed:
        return Tally()
    given = entry.counters.aggregated
    behind = int(given < plan.ending.updates_each and takes_part(entry, plan_hash))
    standing = standing_under(entry, plan_hash)
    refuses = standing == "plan_refused"
    may_give = standing is None and entry.watermark < plan.local.updates
    have_given = not may_give and not refuses
    done = int(entry.quarantined or have_given)
    if not entry.active or entry.quarantined:
        return Tally(given, behind, done=done)
    return Tally(given, behind, int(may_give), int(have_given), int(refuses), done)


def ending_reached(plan: Plan, tally: Tally, version: int, progress: Progress) -> str | None:
    """Why the run is over with this version, or None while it is not; of several reasons the one that was wanted most."""
    ending = plan.ending
    if ending.is_open:
        return None
    reasons = (
        _by_target(ending, version, progress),
        _by_updates(ending, tally),
        _by_institutions(ending, tally),
        f"{version} versions are made" if ending.versions is not None and version >= ending.versions else None,
        _by_patience(ending, version, progress),
        f"it has run for {ending.seconds:g} seconds" if time_is_over(ending, progress.seconds) else None,
        _by_budgets(plan, tally),
    )
    return next((reason for reason in reasons if reason is not None), None)


def demand_rows(ending: Ending, *, held_out: bool) -> None:
    """Raises SettingsError where the plan ends the run by a figure that an aggregator without held-out rows never has."""
    if ending.needs_figures and not held_out:
        wanted = "by its target" if ending.target is not None else "once patience runs out"
        raise SettingsError(
            f"the plan ends the run {wanted}, which goes by {ending.metric} on held-out rows, and this aggregator has none: name "
            "their file as held_out_file in its settings"
        )


def time_is_over(ending: Ending, seconds: float) -> bool:
    """Whether the run has lasted as long as it may."""
    return ending.seconds is not None and seconds >= ending.seconds


def _by_target(ending: Ending, version: int, progress: Progress) -> str | None:
    if ending.target is None or progress.reached < ending.in_a_row:
        return None
    times = f" {ending.in_a_row} times in a row" if ending.in_a_row > 1 else ""
    return f"{ending.metric} has reached the target of {ending.target:g}{times}, with version {version}"


def _by_updates(ending: Ending, tally: Tally) -> str | None:
    """Nobody waits for an institution that has left the plan."""
    enough = ending.updates is not None and tally.aggregated >= ending.updates and tally.behind == 0
    return f"{tally.aggregated} updates are aggregated" if enough else None


def _by_institutions(ending: Ending, tally: Tally) -> str | None:
    enough = ending.institutions is not None and tally.done >= ending.institutions and tally.behind == 0
    return f"{tally.done} institutions have given all they could" if enough else None


def _by_patience(ending: Ending, version: int, progress: Progress) -> str | None:
    best = progress.best
    if ending.patience is None or best is None or version - best.version < ending.patience:
        return None
    return f"no better {ending.metric} than the {best.figure:.4g} of version {best.version} in {ending.patience} versions"


def _by_budgets(plan: Plan, tally: Tally) -> str | None:
    """Where all refuse, nothing was begun yet, and policies can be corrected; a finished run cannot be taken up again."""
    if tally.may_give or not tally.have_given:
        return None
    given = "has given its planned updates" if plan.privacy.mechanism == "none" else "has spent its budget"
    return f"every institution {given}{' or refuses the plan' if tally.refuse else ''}"
