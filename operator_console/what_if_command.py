"""`fedqueue simulate --from-lineage`: what another rule would have made of a real run's arrivals, or of its sealed updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from operator_console.federation_folder import FederationFolder
from operator_console.simulate_command import show
from operator_console.simulation_records import Comparison, Tried
from shared.errors import SettingsError
from shared.plan import AggregationPlan, RuleName
from shared.tasks.spec import TaskSpec
from simulator.what_if import read_run

REPEATED = (
    "Repeated: the run's rows, its first model, and when each institution took a model and gave its update, refused ones too.",
    "Not repeated: noise and samples are drawn anew, so the run's own rule comes out a little different too. A training that was "
    "lost with its worker is not there.",
    "What a version was made of is taken to have arrived when that version was made.",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to try instead: `rules`, each with these; None is what the run had, or a rule's usual server learning rate."""

    rules: Sequence[RuleName]
    buffer_size: int | None = None
    server_learning_rate: float | None = None
    staleness_exponent: float | None = None

    def of(self, real: AggregationPlan, rule: RuleName, spec: TaskSpec) -> AggregationPlan:
        """The run's aggregation with another rule. Optimisers are the run's."""
        usual = (
            real.server_learning_rate if rule == real.rule else spec.aggregation.rate_for(rule, adam=real.server_adam is not None)
        )
        changes: dict[str, object] = {"rule": rule, "server_learning_rate": self.server_learning_rate or usual}
        if self.buffer_size is not None:
            changes["buffer_size"] = self.buffer_size
        if self.staleness_exponent is not None:
            changes["staleness"] = real.staleness.model_copy(update={"exponent": self.staleness_exponent})
        return real.model_copy(update=changes)


def what_if(folder: Path, choice: Choice, out: Path | None, *, as_json: bool) -> None:
    """A folder with rows is trained again; a federation's with journals is folded again, without training."""
    if (folder / "lineage.jsonl").exists():
        show(lambda told: _trained_again(folder, choice, told), out, as_json=as_json)
    elif (folder / "federation.json").exists():
        from operator_console.refold_command import folded_again

        folded_again(FederationFolder(folder), choice, as_json=as_json)
    else:
        raise SettingsError(
            f"{folder} holds neither a run's lineage.jsonl nor a federation.json: give a folder that `fedqueue demo` or "
            "`fedqueue init` has made"
        )


def _trained_again(folder: Path, choice: Choice, told: Callable[[Comparison], None]) -> None:
    run = read_run(folder)
    spec, real = run.population.spec, run.plan.aggregation
    plans = [(rule, choice.of(real, rule, spec)) for rule in choice.rules]
    tried: list[Tried] = []
    for name, aggregation in plans:
        tried.append(Tried(run.under(f"{name}, again" if aggregation == real else name, aggregation), aggregation))
        sent = tried[0].result.final
        was = Tried(run.as_it_was(sent.bytes_up / max(1, sent.updates)), real, recorded=True)
        told(Comparison(f"{run.name}: what if", run.seed, [was, *tried], len(plans) + 1, notes=REPEATED))
