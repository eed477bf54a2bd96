"""`fedqueue sent`: the list, the object for scripts, and the page for the data-protection officer, of ledgers on disk."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client_worker.ledger import Beside, Ledger
from client_worker.ledger_audit import WrongLedgerError
from client_worker.mechanism import Charge
from client_worker.privacy import epsilon_after
from operator_console.cli import app
from shared.codec import Encoded
from shared.errors import SettingsError
from tests.builders import RUN
from tests.client_worker.test_ledger_audit import SPENT, change
from tests.client_worker.test_sent import KNOWN, PRIVATE

HOSTILE = "<script>alert(1)</script>"


def kept(folder: Path) -> Path:
    """Three trainings of true epsilons: the first aggregated, the second broken off, the third sent; one report."""
    ledger = Ledger(folder / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    ledger.require_dataset({"fingerprint": "f" * 64, "unit": "person", "accountant": HOSTILE})
    for number in (1, 2, 3):
        spent = epsilon_after([Charge(1.0, 1.0, number)], 1e-5)
        fields = {**SPENT, "base_version": 10 + number, "clipping_norm": 1.0, "epsilon_budget": 12.0}
        reservation = ledger.reserve(fields, epsilon_spent=spent)
        if number != 2:
            sealed, _ = ledger.seal(reservation, lambda sequence: Encoded([b"noised %d" % sequence]), Beside(KNOWN, PRIVATE))
            ledger.published(sealed)
    ledger.settle(1, "aggregated")
    ledger.reported(11, 0.2)
    ledger.close()
    return folder


def ran(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["sent", *map(str, words)], terminal_width=200, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_each_update_is_a_line_with_its_lengths_noise_and_cost(tmp_path):
    said = ran("--state-folder", kept(tmp_path))
    first, second = epsilon_after([Charge(1.0, 1.0, 1)], 1e-5), epsilon_after([Charge(1.0, 1.0, 2)], 1e-5)
    (line,) = [line.split() for line in said.splitlines() if line.strip().endswith("aggregated")]
    digest = Encoded([b"noised 1"]).hash[:12]
    lengths, cost = ["1.73", "1", "yes", "6", "12.5"], ["1", f"{first:.3g}", f"{first:.3g}"]
    assert [line[0], *line[3:]] == ["1", "11", digest, "8", *lengths, *cost, "aggregated"]
    assert "2 updates, 16 bytes; 1 report; charged, and nothing of it left: 1 training." in said
    assert f"{second - first:.4g} of it for trainings that never left" in said


def test_scripts_get_everything_and_what_is_private_by_itself(tmp_path):
    told = json.loads(ran("--state-folder", kept(tmp_path), "--json"))
    assert (told["schema"], told["institution"], len(told["updates"]), len(told["never_left"])) == (1, "bank-a", 2, 1)
    assert told["updates"][0]["private"] == PRIVATE
    assert told["updates"][0]["hash"] == Encoded([b"noised 1"]).hash
    assert told["updates"][1]["outcome"] == "sent"
    assert told["totals"]["epsilon_of_reports"] == 0.2


@pytest.mark.parametrize("form", ["json", "html"])
def test_what_may_be_handed_on_has_no_length_from_before_the_noise(tmp_path, form):
    folder = kept(tmp_path)
    if form == "json":
        told = ran("--state-folder", folder, "--json", "--public")
    else:
        ran("--state-folder", folder, "--html", tmp_path / "page.html", "--public")
        told = (tmp_path / "page.html").read_text()
    assert "1.73" not in told
    assert "Keep this page in the house" not in told
    ran("--state-folder", folder, "--html", tmp_path / "private.html")
    assert "1.73" in (tmp_path / "private.html").read_text(), "it would have been found"


def test_the_page_needs_nothing_from_anywhere_runs_nothing_and_is_its_owners(tmp_path):
    page = tmp_path / "page.html"
    ran("--state-folder", kept(tmp_path), "--html", page)
    text = page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\((?!#)|https?://(?!www\.w3\.org)", text)
    assert "&lt;script&gt;alert(1)" in text
    assert Encoded([b"noised 1"]).hash in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_no_page_is_made_of_a_ledger_that_was_altered(tmp_path):
    kept(tmp_path)
    change(tmp_path / "ledger.sqlite", ("DELETE FROM outbox",))
    with pytest.raises(WrongLedgerError):
        ran("--state-folder", tmp_path, "--html", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_ledger_is_named_in_one_way(tmp_path):
    with pytest.raises(SettingsError, match="one of them"):
        ran()
    with pytest.raises(SettingsError, match="the worker writes it at its first start"):
        ran("--state-folder", tmp_path)


def test_an_empty_ledger_has_a_page_too(tmp_path):
    Ledger(tmp_path / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1).close()
    ran("--state-folder", tmp_path, "--html", tmp_path / "page.html")
    assert "every training that was charged became an update" in (tmp_path / "page.html").read_text()


def test_the_list_needs_neither_torch_nor_matplotlib(tmp_path):
    program = (
        "import sys; from operator_console.cli import app; "
        f"app(['sent', '--state-folder', {str(kept(tmp_path))!r}], standalone_mode=False); "
        "print(sorted({'torch', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("[]\n")
