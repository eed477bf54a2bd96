"""`fedqueue track` with the real tools, read back by the tools' own readers: long, in build/extras-env and build/wandb-env."""

import json
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from operator_console.tracking import steps
from shared.plan import Ending
from tests.builders import NAMES, a_plan
from tests.conftest import RabbitmqServer, eventually
from tests.operator_console.conftest import RUN, Finished
from tests.operator_console.test_summary import BINARY
from tests.running import Leader, Watch, Worker, begin

pytestmark = [pytest.mark.long, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]  # of the tools' own libraries
PROJECT = Path(__file__).parents[2]
Steps = dict[int, dict[str, float]]


def a_run(finished: Finished, place: Path, versions: int | None = None) -> Path:
    """The folder of a finished run, or of its first versions."""
    place.mkdir(exist_ok=True)
    names = [InstitutionFacts(id=each, title=each) for each in NAMES]
    FederationFolder(place).keep(Facts(run_id=RUN, task="toy", title="Toy", institutions=names))
    lines = list(finished.history.lines())[:versions]
    (place / "lineage.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return place


def command(tool: str, folder: Path, out: Path, *words: str) -> list[str]:
    program = [sys.executable, "-c", "from operator_console.cli import main; main()"]
    return [*program, "track", "--to", tool, "--dir", str(folder), "--out", str(out), *words]


def tracked(tool: str, folder: Path, out: Path, *words: str) -> str:
    ended = subprocess.run(
        command(tool, folder, out, *words), cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def of_tensorboard(out: Path) -> Steps:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(out / RUN), size_guidance={"scalars": 0})
    reader.Reload()
    found: Steps = {}
    for name in reader.Tags()["scalars"]:
        for event in reader.Scalars(name):
            assert name not in found.setdefault(event.step, {}), f"step {event.step} has {name} twice"
            found[event.step][name] = event.value
    return found


def of_mlflow(out: Path) -> Steps:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fedqueue").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["fedqueue.run_id"]) == ("Toy", "FINISHED", RUN)
    found: Steps = {}
    for name in run.data.metrics:
        for each in client.get_metric_history(run.info.run_id, name):
            assert name not in found.setdefault(each.step, {}), f"step {each.step} has {name} twice"
            found[each.step][name] = each.value
    return found


def of_wandb(out: Path) -> Steps:
    from wandb.proto import wandb_internal_pb2

    found: Steps = {}
    for file in sorted(out.glob(f"wandb/offline-run-*-{RUN}/run-{RUN}.wandb")):
        for body in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            if record.WhichOneof("record_type") == "history":
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                step = found.setdefault(record.history.step.num, {})
                assert not step.keys() & values.keys()
                step |= {name: value for name, value in values.items() if not name.startswith("_")}
    return found


def wandb_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log: blocks of 32 KiB, and in them records or parts of records behind 7 bytes of checksum, length and kind."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


READERS: dict[str, Callable[[Path], Steps]] = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}
EACH = pytest.mark.parametrize(
    "tool",
    [
        pytest.param("tensorboard", marks=pytest.mark.extras),
        pytest.param("mlflow", marks=pytest.mark.extras),
        pytest.param("wandb", marks=pytest.mark.wandb),
    ],
)


def require_equal(found: Steps, wanted: Steps) -> None:
    assert found.keys() == wanted.keys()
    for step, metrics in wanted.items():
        assert found[step] == pytest.approx(metrics, rel=1e-6), f"step {step}"


@EACH
def test_a_finished_run_is_written_once_in_two_calls_and_read_back_by_the_tool(tool: str, finished: Finished, tmp_path: Path):
    wanted = dict(steps(finished.history.lines()))
    out = tmp_path / "out"
    assert tracked(tool, a_run(finished, tmp_path / "run", 10), out).startswith("10 versions are written to")
    again = tracked(tool, a_run(finished, tmp_path / "run"), out)
    assert again.startswith(f"{len(wanted) - 10} versions are written to {out}. 10 were there before.")
    assert tracked(tool, tmp_path / "run", out).startswith("0 versions are written")
    require_equal(READERS[tool](out), wanted)


@EACH
def test_no_connection_is_tried_but_on_this_machine(tool: str, finished: Finished, tmp_path: Path):
    strace, trace = shutil.which("strace"), tmp_path / "trace"
    if strace is None:
        pytest.skip("strace is not installed")
    watched = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    words = [*watched, *command(tool, a_run(finished, tmp_path / "run"), tmp_path / "out")]
    ended = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=280, check=False)
    if "ptrace" in ended.stderr:
        pytest.skip("strace may not trace here")
    assert ended.returncode == 0, ended.stderr
    addresses = set(re.findall(r'(?:inet_addr\(|inet_pton\(AF_INET6, |inet6_addr=)"([^"]+)"', trace.read_text()))
    assert addresses <= {"127.0.0.1", "::1"}


@EACH
@pytest.mark.rabbitmq
def test_a_running_federation_is_followed_and_after_a_kill_nothing_is_there_twice(
    tool: str, rabbitmq_server: RabbitmqServer, tmp_path: Path
):
    folder, out = FederationFolder(tmp_path / "federation"), tmp_path / "out"
    folder.prepare(BINARY, rabbitmq_server.logins)
    folder.keep(Facts(run_id=RUN, task="toy", title="Toy", institutions=[]))
    begin(rabbitmq_server, a_plan(ending=Ending(updates=24)))
    watch = Watch(rabbitmq_server.connect("operator"))
    with Leader(rabbitmq_server, tmp_path / "aggregator"), Worker(rabbitmq_server, "bank-a", tmp_path):
        killed = subprocess.Popen(command(tool, folder.path, out), cwd=PROJECT)
        assert watch.until(lambda: watch.head.manifest.version >= 6)
        assert eventually(out.exists, 60)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        said = tracked(tool, folder.path, out)
    assert "versions are written to" in said
    assert watch.until(lambda: watch.head.manifest.phase == "finished")
    found = READERS[tool](out)
    assert sorted(found) == list(range(watch.head.manifest.version + 1))
    assert all(found[step]["federation/version"] == step for step in found)
