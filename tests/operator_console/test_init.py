"""`fedqueue init`: what it writes, what it refuses, and that a refusal changes nothing."""

import stat
import tomllib

import pytest
import typer

from aggregator_worker.cli import check_broker
from aggregator_worker.settings import AggregatorSettings
from broker_config.logins import load, save
from broker_config.provision import administration, check
from broker_config.service import read_settings
from operator_console.command_options import epsilon_of, positive
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init, task_text
from operator_console.operation_commands import order_desk
from shared.errors import BrokerUnavailableError, SettingsError, TopologyError
from shared.plan import Ending, ServerAdam
from tests.tasks import RIPENESS

HEADER = "weight,colour,orchard,ripe\n"


@pytest.fixture
def task_file(tmp_path):
    file = tmp_path / "ripeness.toml"
    file.write_text(RIPENESS)
    return file


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.rabbitmq
def test_a_founded_federation_is_on_the_broker_and_in_its_folder(broker_folder, task_file, capsys):
    init(task=str(task_file), institution=["north", "south"], folder=broker_folder, epsilon="2", stop_after_updates=9)
    federation = FederationFolder(broker_folder)
    with order_desk(federation) as desk:
        assert desk.head.manifest.version == 0
        assert desk.head.manifest.run_id == federation.facts().run_id
        assert set(desk.table) == set(federation.names())
        assert desk.plan.privacy.epsilon == 2
        assert desk.plan.local.updates == 500
        assert desk.plan.ending.updates == 9
    assert (broker_folder / "members.txt").read_text().split() == ["north", "south"]
    kit = broker_folder / "institutions" / "south"
    settings = tomllib.loads((kit / "client.toml").read_text())
    assert settings["broker"]["user"] == "south"
    assert settings["policy"]["max_epsilon"] == 2
    assert (kit / "task.toml").read_text() == RIPENESS
    secrets = [
        broker_folder / "broker.json",
        broker_folder / "run.secret",
        kit / "password",
        broker_folder / "aggregator/password",
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets} == {0o600}
    assert f"fedqueue-aggregator --config {broker_folder / 'aggregator.toml'}" in capsys.readouterr().out


@pytest.mark.rabbitmq
def test_files_of_ones_own_are_handed_to_the_institutions_of_a_trial(broker_folder, task_file, tmp_path):
    rows = tmp_path / "rows"
    for name, count in (("north", 3), ("south", 4)):
        (rows / name).mkdir(parents=True)
        (rows / name / "training.csv").write_text(HEADER + "1,2,hill,yes\n9,9,hill,no\n" + "5,5,hill,no\n" * (count - 2))
    (rows / "south" / "validation.csv").write_text(HEADER + "1,2,hill,yes\n")
    both = {"task": str(task_file), "institution": ["north", "south"], "folder": broker_folder, "rows": rows}
    with pytest.raises(typer.BadParameter, match="it excludes --sample-data"):
        init(**both, sample_data=True)
    init(**both)
    kits = {name: broker_folder / "institutions" / name for name in ("north", "south")}
    settings = {name: tomllib.loads((kit / "client.toml").read_text()) for name, kit in kits.items()}
    assert {name: each["num_examples"] for name, each in settings.items()} == {"north": 3, "south": 4}
    assert (kits["north"] / "training.csv").read_text() == (rows / "north" / "training.csv").read_text()
    assert settings["south"]["validation_file"] == "validation.csv"
    assert "validation_file" not in settings["north"]


@pytest.mark.rabbitmq
def test_a_file_that_does_not_fit_the_task_is_told_before_anything_is_founded(broker_folder, task_file, tmp_path):
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "training.csv").write_text("weight,colour\n1,2\n")
    with pytest.raises(SettingsError, match=r"training\.csv: the column 'ripe' is missing"):
        init(task=str(task_file), institution=["north"], folder=broker_folder, rows=tmp_path)
    assert not (broker_folder / "federation.json").exists()


@pytest.mark.rabbitmq
def test_the_broker_has_the_limits_that_its_logins_name(broker_folder, task_file):
    init(
        task=str(task_file),
        institution=["north"],
        folder=broker_folder,
        journal="80MiB",
        model_stream="100MiB",
        slowest_link=1000.0,
        server_momentum=0.5,
        broadcast="bfloat16",
        updates_as="float16",
    )
    logins = load(broker_folder)
    assert (logins.limits.journal_stream_bytes, logins.limits.model_stream_bytes) == (80 << 20, 100 << 20)
    assert check(logins, logins.institutions) == []
    with administration(logins) as management:
        assert "fl.jrn.north" in [each["name"] for each in management.queues()]
    with order_desk(FederationFolder(broker_folder)) as desk:
        assert desk.plan.limits.update_bytes == logins.limits.update_bytes
        assert desk.plan.aggregation.server_momentum == 0.5
        assert (desk.plan.broadcast, desk.plan.update_encoding) == ("bfloat16", "float16")
        assert 0 < desk.plan.limits.version_spacing_seconds < 0.001


@pytest.mark.rabbitmq
def test_rule_optimiser_and_end_are_in_the_plan_and_missing_rows_are_said(broker_folder, task_file, capsys):
    init(
        task=str(task_file),
        institution=["north"],
        folder=broker_folder,
        rule="latest-update",
        server_adam=True,
        stop_at="log_loss=0.3",
        in_a_row=2,
        patience=20,
        versions=500,
        wall_time=3600.0,
    )
    with order_desk(FederationFolder(broker_folder)) as desk:
        assert desk.plan.ending == Ending(metric="log_loss", target=0.3, in_a_row=2, patience=20, versions=500, seconds=3600.0)
        assert (desk.plan.aggregation.rule, desk.plan.aggregation.server_adam) == ("latest-update", ServerAdam())
        assert desk.plan.limits.models_held == (64 << 20) // 4096
    said = " ".join(capsys.readouterr().out.split())
    assert "The plan ends the run by log_loss on held-out rows, and none were given." in said
    assert f"held_out_file in {broker_folder / 'aggregator.toml'}" in said
    with pytest.raises(SettingsError, match=r"by its target, which goes by log_loss on held-out rows, .* held_out_file"):
        check_broker(read_settings(AggregatorSettings, broker_folder / "aggregator.toml"))


@pytest.mark.rabbitmq
def test_neither_a_folder_nor_a_virtual_host_takes_a_second_federation(broker_folder, task_file, tmp_path):
    init(task=str(task_file), institution=["north"], folder=broker_folder)
    before = files(broker_folder)
    with pytest.raises(SettingsError, match="already holds a federation"):
        init(task=str(task_file), institution=["south"], folder=broker_folder)
    assert files(broker_folder) == before

    elsewhere = tmp_path / "elsewhere"
    save(load(broker_folder), elsewhere)
    before = files(elsewhere)
    with pytest.raises(TopologyError, match="already holds a run"):
        init(task=str(task_file), institution=["south"], folder=elsewhere)
    assert files(elsewhere) == before


@pytest.mark.rabbitmq
def test_an_init_that_broke_off_can_be_repeated(broker_folder, task_file):
    whole = load(broker_folder)
    save(whole.model_copy(update={"amqp": "amqp://127.0.0.1:1/nowhere"}), broker_folder)
    with pytest.raises(BrokerUnavailableError, match=r"connect to 127\.0\.0\.1:1 "):
        init(task=str(task_file), institution=["north"], folder=broker_folder)
    save(load(broker_folder).model_copy(update={"amqp": whole.amqp}), broker_folder)
    init(task=str(task_file), institution=["north"], folder=broker_folder)
    assert FederationFolder(broker_folder).facts().task == "ripeness"


def test_without_a_broker_the_command_that_starts_one_is_named(task_file, tmp_path):
    with pytest.raises(SettingsError, match=r"fedqueue broker up --dir .*/new"):
        init(task=str(task_file), institution=["north"], folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_task_is_a_file_or_the_name_of_a_built_in_one(task_file, tmp_path):
    assert task_text(str(task_file)) == (RIPENESS, str(task_file))
    assert 'name = "heart-disease"' in task_text("heart-disease")[0]
    with pytest.raises(SettingsError, match="no file ripenes, and no built-in task of that name: there are sba-loans"):
        task_text("ripenes")
    (tmp_path / "picture.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"picture.toml cannot be read as text"):
        task_text(str(tmp_path / "picture.toml"))


@pytest.mark.parametrize(("text", "epsilon"), [("3", 3.0), ("0.5", 0.5), ("none", None), ("NONE", None)])
def test_epsilon_is_a_positive_number_or_none(text, epsilon):
    assert epsilon_of(text) == epsilon


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "three", ""])
def test_any_other_epsilon_is_refused(text):
    with pytest.raises(typer.BadParameter, match="neither a positive number nor none"):
        epsilon_of(text)


def test_a_number_that_must_be_positive_is_checked():
    assert positive(0.5) == 0.5
    assert positive(None) is None
    for wrong in (0.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(typer.BadParameter, match="is not a positive number"):
            positive(wrong)
