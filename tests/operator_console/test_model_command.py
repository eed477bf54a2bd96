"""`fedqueue model export`: what a data scientist takes home."""

from dataclasses import dataclass

import numpy as np
import pytest
import typer
from safetensors import safe_open

from broker_config.connection import connect
from broker_config.guard import Guard
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.kept_model import NoSuchModelError
from operator_console.model_command import export
from operator_console.model_file import read_model
from shared.errors import SettingsError, StorageError
from shared.messages import encode_model
from shared.parameters import shapes
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task
from tests.builders import an_update
from tests.leading import give
from tests.running import Leader, Watch

pytestmark = pytest.mark.rabbitmq
OPEN = {"task": "heart-disease", "institution": ["north"], "epsilon": "none"}


@pytest.mark.parametrize("broadcast", ["float32", "bfloat16"])
def test_the_newest_model_is_written_to_a_file(broker_folder, tmp_path, capsys, broadcast):
    init(task="heart-disease", institution=["north"], folder=broker_folder, broadcast=broadcast)
    folder = FederationFolder(broker_folder)
    export(out=tmp_path / "model.safetensors", folder=broker_folder)
    first = initial_parameters(parse_task(folder.task_file.read_text(), source="task.toml"), 0)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert {name: file.get_tensor(name).shape for name in file.keys()} == shapes(first)  # noqa: SIM118 - no mapping
        metadata = file.metadata()
    assert (metadata["run_id"], metadata["version"]) == (folder.facts().run_id, "0")
    said = capsys.readouterr().out
    assert f"version 0 of run {folder.facts().run_id} is written to" in said
    assert "why this one: it is the newest" in said


def test_a_file_that_cannot_be_written_is_said(broker_folder, tmp_path):
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    with pytest.raises(StorageError, match="name another file with --out"):
        export(out=tmp_path / "nowhere" / "model.safetensors", folder=broker_folder)


def test_a_task_that_is_not_the_runs_makes_no_card(broker_folder, tmp_path):
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    task = FederationFolder(broker_folder).task_file
    task.write_text(task.read_text().replace("maximum = ", "maximum = 1"))
    with pytest.raises(SettingsError, match="is not the one that the plan of version 0 names"):
        export(out=tmp_path / "model.safetensors", folder=broker_folder)
    assert list(tmp_path.glob("model*")) == []


@dataclass
class Founded:
    """A founded federation as a leader on a thread of this process needs it."""

    folder: FederationFolder
    guard: Guard

    def connect(self, user):
        guard = self.guard if user == "aggregator" else None
        return connect(self.folder.logins().settings(user), name=f"test/{user}", guard=guard)


def led(folder, tmp_path, *figures):
    """The models of a run whose versions have these figures, by version; each is made of one update of north."""
    founded = Founded(FederationFolder(folder), Guard.load(folder / "aggregator" / "keys"))
    watch = Watch(founded.connect("operator"))
    models, given = {0: watch.model()}, iter(figures)
    settings = {"run_secret": founded.folder.run_secret(), "members": lambda: ["north"], "guard": founded.guard}
    with Leader(founded, tmp_path / "aggregator", evaluate=lambda model: {"auc": next(given)}, **settings):
        for version in range(1, len(figures) + 1):
            head = watch.head
            changes = {"run_id": head.manifest.run_id, "plan_hash": head.manifest.plan_hash}
            delta = {name: np.full_like(array, version / 7) for name, array in models[0].items()}
            give(folder, an_update("north", version, base=head, **changes), delta)
            assert watch.until(lambda version=version: watch.head.manifest.version == version)
            models[version] = watch.model()
    watch.broker.close()
    return models


def written(file):
    """What a file of parameters holds, as the bytes of a model, and its version."""
    with safe_open(file, framework="numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return encode_model("0" * 16, tensors).joined(), opened.metadata()["version"]


def test_the_best_model_is_written_unless_another_is_asked_for(broker_folder, tmp_path, capsys):
    init(**OPEN, folder=broker_folder)
    models = led(broker_folder, tmp_path, 0.6, 0.81234, 0.7)
    out = tmp_path / "model.safetensors"
    for options, version in [({}, 2), ({"best": True}, 2), ({"newest": True}, 3), ({"version": 1}, 1)]:
        export(out=out, folder=broker_folder, **options)
        assert written(out) == (encode_model("0" * 16, models[version]).joined(), str(version))
        card = read_model(out).card
        assert (card.version, card.newest_version, card.metrics["auc"]) == (version, 3, [0.6, 0.81234, 0.7][version - 1])
        assert [(each.institution, each.updates, each.examples) for each in card.institutions] == [
            ("institution 1", version, None)
        ]
        assert (card.updates, card.measured_versions, card.privacy.mechanism) == ({"aggregated": version}, 3, "none")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("why")]
    best = "why this one: it is the best by auc on held-out rows, 0.8123; the newest is version 3, with 0.7"
    assert said == [best, best, "why this one: it is the newest", "why this one: it was asked for"]
    with pytest.raises(NoSuchModelError, match="the lineage tells of no version 9"):
        export(out=out, folder=broker_folder, version=9)


def test_where_nothing_was_measured_there_is_no_best_model(broker_folder, tmp_path):
    init(**OPEN, folder=broker_folder)
    with pytest.raises(NoSuchModelError, match="no version was measured on held-out rows"):
        export(out=tmp_path / "model.safetensors", folder=broker_folder, best=True)
    with pytest.raises(typer.BadParameter, match="exclude each other"):
        export(out=tmp_path / "model.safetensors", folder=broker_folder, best=True, version=1)


def test_the_card_tells_span_hashes_and_privacy_and_names_only_on_demand(broker_folder, tmp_path):
    init(task="heart-disease", institution=["north", "south"], folder=broker_folder, epsilon="2")
    out, folder = tmp_path / "model.safetensors", FederationFolder(broker_folder)
    watch = Watch(connect(folder.logins().settings("operator"), name="test/operator"))
    head = watch.head
    watch.broker.close()
    export(out=out, folder=broker_folder)
    card = read_model(out).card
    assert (card.lineage.manifest, card.lineage.first_manifest) == (head.hash, head.hash)
    assert (card.lineage.model, card.lineage.plan) == (head.manifest.model.hash, head.manifest.plan_hash)
    assert card.lineage.task == card.task.hash == head.manifest.plan.task_hash
    assert card.first_at_ms == card.at_ms > 1_700_000_000_000
    assert (card.privacy.mechanism, card.privacy.epsilon_budget, card.privacy.target_delta) == ("dp-sgd", 2.0, 1e-5)
    text = (tmp_path / "model.md").read_text()
    assert "north" not in text + out.read_bytes().decode(errors="ignore")
    export(out=out, folder=broker_folder, name_institutions=True)
    assert "| north | 0 | none | none | unknown |" in (tmp_path / "model.md").read_text()
