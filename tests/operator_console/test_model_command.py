"""`fedqueue model`: what a data scientist takes home."""

import pytest
from safetensors import safe_open

from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.model_command import model
from shared.errors import StorageError
from shared.parameters import shapes
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task

pytestmark = pytest.mark.rabbitmq


@pytest.mark.parametrize("broadcast", ["float32", "bfloat16"])
def test_the_newest_model_is_written_to_a_file(broker_folder, tmp_path, capsys, broadcast):
    init(task="heart-disease", institution=["north"], folder=broker_folder, broadcast=broadcast)
    folder = FederationFolder(broker_folder)
    model(tmp_path / "model.safetensors", broker_folder)
    first = initial_parameters(parse_task(folder.task_file.read_text(), source="task.toml"), 0)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert {name: file.get_tensor(name).shape for name in file.keys()} == shapes(first)  # noqa: SIM118 - no mapping
        assert file.metadata() == {"run_id": folder.facts().run_id, "version": "0"}
    assert f"version 0 of run {folder.facts().run_id} is written to" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_said(broker_folder, tmp_path):
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    with pytest.raises(StorageError, match="name another file with --out"):
        model(tmp_path / "nowhere" / "model.safetensors", broker_folder)
