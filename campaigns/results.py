"""What came of campaigns: lines while one runs, tables and a last line at its end, and JSON from which many are gathered."""

from collections.abc import Iterable, Sequence
from statistics import median

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from campaigns.campaign import Campaign, Fault
from campaigns.checker import Verdict


class FaultResult(BaseModel):
    """One fault."""

    kind: str
    target: str
    detail: str
    recovery_seconds: float | None


class Result(BaseModel):
    """One campaign."""

    seed: int
    nodes: int
    seconds: float
    plan: str
    faults: list[FaultResult]
    lost: int
    doubled: int
    forked: int
    findings: list[str]
    figures: dict[str, int]

    @property
    def recoveries(self) -> int:
        """Faults after which progress was seen."""
        return sum(fault.recovery_seconds is not None for fault in self.faults)

    @property
    def passed(self) -> bool:
        """Whether every promise was kept and every fault recovered from."""
        return not self.findings and self.recoveries == len(self.faults)

    @property
    def last_line(self) -> str:
        """What a script reads."""
        return (
            f"{len(self.faults)} faults, {self.recoveries} recoveries, {self.lost} lost, {self.doubled} doubled, "
            f"{self.forked} forked, seed {self.seed}"
        )


def result_of(campaign: Campaign, verdict: Verdict, *, seed: int, nodes: int, seconds: float) -> Result:
    """The campaign and its check as values."""
    plan = campaign.federation.plan
    momentum, mechanism = plan.aggregation.server_momentum, plan.privacy.mechanism
    numbers = f"{plan.update_encoding} up, {plan.broadcast} down"
    about = f"K {plan.aggregation.buffer_size}, {numbers}, momentum {momentum:g}, privacy {mechanism}"
    return Result(
        seed=seed,
        nodes=nodes,
        seconds=round(seconds, 1),
        plan=about,
        faults=[_fault(fault) for fault in campaign.faults],
        lost=verdict.count("lost"),
        doubled=verdict.count("doubled"),
        forked=verdict.count("forked"),
        findings=[*campaign.troubles, *verdict.in_words()],
        figures=verdict.figures,
    )


def _fault(fault: Fault) -> FaultResult:
    seconds = fault.recovery_seconds
    detail = fault.injected.detail if fault.injected else ""
    return FaultResult(
        kind=fault.kind, target=fault.target, detail=detail, recovery_seconds=None if seconds is None else round(seconds, 2)
    )


def fault_line(fault: Fault, began_at: float) -> str:
    """What is printed of a fault that is over."""
    seconds = fault.recovery_seconds
    end = "did not recover" if seconds is None else f"recovered after {seconds:.1f} s"
    what = fault.injected.detail if fault.injected else ""
    return f"{fault.begun_at - began_at:7.1f} s  {fault.number:4}  {fault.kind:33} {fault.target:13} {what:34} {end}"


def by_kind(faults: Iterable[FaultResult]) -> list[tuple[str, int, int, float, float]]:
    """Kind, faults, recoveries, median and longest time to recover in seconds; by kind."""
    sorted_out: dict[str, list[FaultResult]] = {}
    for fault in faults:
        sorted_out.setdefault(fault.kind, []).append(fault)
    rows = []
    for kind, several in sorted(sorted_out.items()):
        times = [fault.recovery_seconds for fault in several if fault.recovery_seconds is not None]
        rows.append((kind, len(several), len(times), median(times) if times else 0.0, max(times, default=0.0)))
    return rows


def show(result: Result, console: Console) -> None:
    """The tables, the findings and the last line."""
    table = Table("fault", "times", "recovered", "median s", "longest s", title=f"{result.nodes} nodes, {result.plan}")
    for kind, many, recovered, typical, longest in by_kind(result.faults):
        table.add_row(kind, str(many), str(recovered), f"{typical:.1f}", f"{longest:.1f}")
    console.print(table)
    figures = Table("what the checker read", "", title=f"checked after {result.seconds:.0f} s")
    for name, value in result.figures.items():
        figures.add_row(name, str(value))
    console.print(figures)
    for finding in result.findings:
        console.print(f"FOUND {finding}", markup=False, highlight=False, soft_wrap=True)
    console.print(result.last_line, markup=False, highlight=False, soft_wrap=True)


def summary(results: Sequence[Result]) -> str:
    """All of them in one sentence."""
    faults, recoveries = sum(len(each.faults) for each in results), sum(each.recoveries for each in results)
    bad = ", ".join(f"{sum(getattr(each, word) for each in results)} {word}" for word in ("lost", "doubled", "forked"))
    replayed = sum(each.figures.get("versions replayed to the bit", 0) for each in results)
    versions = sum(each.figures.get("versions", 0) for each in results)
    return (
        f"{faults} faults in {len(results)} campaigns, {recoveries} recoveries, {_settled(results)} updates settled, {bad}; "
        f"{replayed} of {versions} versions replayed to the bit."
    )


def _settled(results: Sequence[Result]) -> int:
    return sum(value for each in results for name, value in each.figures.items() if name.startswith("settled as"))


def as_markdown(results: Sequence[Result]) -> str:
    """The tables of docs/reliability.md."""
    lines = ["| seed | nodes | plan | faults | recoveries | updates settled | versions | lost | doubled | forked | minutes |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for each in results:
        faults = (len(each.faults), each.recoveries, _settled([each]), each.figures.get("versions", 0))
        cells = (each.seed, each.nodes, each.plan, *faults, each.lost, each.doubled, each.forked, f"{each.seconds / 60:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| fault | times | recovered | median s | longest s |", "|---|---|---|---|---|"]
    for kind, many, recovered, typical, longest in by_kind(fault for each in results for fault in each.faults):
        lines.append(f"| {kind} | {many} | {recovered} | {typical:.1f} | {longest:.1f} |")
    return "\n".join(lines)
