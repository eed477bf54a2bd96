"""Each view of the console, in a real browser in front of a federation that runs."""

import hashlib
import re
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from playwright.sync_api import expect

from operator_console.web.app import FILES
from shared.broker import Message
from tests.console.federation import BANKS, BY_HAND, EXAMPLES

SHOWN_STALENESS = """[
    document.title,
    document.querySelector(".lead").textContent,
    [...document.querySelectorAll("#staleness tbody tr")].map((row) => [row.cells[0].textContent, row.cells[1].textContent]),
]"""

pytestmark = pytest.mark.rabbitmq


def number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


def test_the_overview_shows_attention_first_and_follows_the_run(visit):
    seen = visit()
    version = seen.page.locator(".tile", has_text="Model version").locator(".tile-value")
    before = number(version.inner_text())
    expect(version).not_to_have_text(str(before))
    assert number(version.inner_text()) > before
    first = seen.page.locator("#view > :not(.title-row)").first
    expect(first).to_have_attribute("id", "attention")
    expect(first).to_contain_text(f"{BY_HAND} has not said hello yet")
    expect(seen.page).to_have_title(re.compile(r"^\(!\) Overview · version \d+ · fedqueue$"))
    seen.page.get_by_role("link", name="Look at it").click()
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Institutions")


def test_the_metric_is_drawn_over_the_versions_and_another_figure_can_be_chosen(visit):
    seen = visit()
    told = seen.page.locator("#metric-told")
    expect(told).to_contain_text(re.compile(r"AUC 0\.\d{3} at version 1, now 0\.\d{3} at version \d+, best 0\.\d{3}"))
    expect(seen.page.locator("#metric-chart canvas")).to_be_visible()
    seen.picture("overview-light")
    expect(seen.page.get_by_label("Figure")).to_have_value("auc")
    seen.page.get_by_label("Figure").select_option("log loss")
    expect(told).to_contain_text("log loss 0.")
    expect(seen.page.get_by_text("Held-out log loss")).to_be_visible()


def test_an_institutions_row_says_its_state_its_part_and_what_it_burned(visit, federation):
    seen = visit().go("Institutions")
    row = seen.row("institutions", "alder-bank")
    expect(row).to_contain_text("training")
    expect(row).to_contain_text(re.compile(r"\d of 20"))
    whole = sum(EXAMPLES[bank] for bank in BANKS)
    expect(row.get_by_role("img", name="data:")).to_have_attribute(
        "aria-label", f"data: {100 * EXAMPLES['alder-bank'] // whole} %"
    )
    expect(row.get_by_role("img", name="weight:")).to_be_visible()
    expect(row).to_contain_text(re.compile(r"\d+ s ago"))
    expect(seen.row("institutions", BY_HAND)).to_contain_text("no update yet")
    expect(seen.row("institutions", BY_HAND)).to_contain_text("waiting")
    seen.picture("institutions-light")
    seen.page.get_by_text("All queues of the broker").click()
    expect(seen.row("queues", "fl.lineage")).to_contain_text(re.compile(r"[1-9]\d*$"))
    expect(seen.row("queues", f"fl.upd.{BY_HAND}")).to_contain_text(re.compile(r"0$"))


def test_the_histogram_counts_every_folded_update_once(visit, federation):
    seen = visit().go("Staleness")
    expect(seen.page.locator("#staleness-chart canvas")).to_be_visible()
    seen.page.wait_for_function("() => /version [1-9]/.test(document.title) && document.querySelector('#staleness')")
    title, lead, shown = seen.page.evaluate(SHOWN_STALENESS)
    version = int(re.search(r"version (\d+)", title)[1])
    folded = [update["staleness"] for line in federation.lines() if line["version"] <= version for update in line["updates"]]
    assert {int(value): int(count) for value, count in shown} == Counter(folded)
    assert f"Of {len(folded)} updates the mean is {fmean(folded):.1f}, the greatest {max(folded)}." in lead
    seen.picture("staleness-light")


def test_a_dead_letter_is_shown_with_its_reason_and_markup_of_strangers_stays_text(visit, federation):
    reason = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"
    letter = Message(b"z" * 3000, "update", "cedar-bank/7/7#0", {"id": "letter"})
    federation.bury(letter, author="cedar-bank", refused=reason)
    seen = visit().go("Dead letters")
    row = seen.page.locator("#dead-letters tbody tr", has_text="cedar-bank").first
    expect(row.locator(".reason")).to_have_text(reason)
    expect(row).to_contain_text("2.9 KiB")
    expect(seen.page.locator("#letters-count")).to_have_text("1")
    assert seen.page.locator("#view img, #view script").count() == 0
    seen.go("Overview")
    assert "owned" not in seen.page.title()
    seen.picture("dead-letter-light", full=False)


def test_a_version_tells_its_updates_weights_bases_and_hashes_as_the_lineage_has_them(visit, federation):
    seen = visit().go("Versions")
    seen.page.locator("#versions tbody tr").nth(2).click()
    version = int(seen.page.locator("#version h2").inner_text().removeprefix("Version "))
    line = next(each for each in federation.lines() if each["version"] == version)
    shown = seen.page.locator("#folded tbody tr")
    expect(shown).to_have_count(len(line["updates"]))
    for row, update in zip(shown.all(), line["updates"], strict=True):
        expect(row).to_contain_text(update["institution"])
        expect(row).to_contain_text(f"version {update['base_version']}")
        expect(row).to_contain_text(f"{update['weight']:.4f}")
        expect(row.locator("code")).to_have_attribute("title", update["hash"])
    seen.page.get_by_text("Hashes").click()
    expect(seen.page.locator(".hashes")).to_contain_text(line["manifest"])
    expect(seen.page.locator(".hashes")).to_contain_text(line["model"])
    seen.picture("version-light")
    seen.page.get_by_role("link", name=f"Previous version, {version - 1}").click()
    expect(seen.page.locator("#version h2")).to_have_text(f"Version {version - 1}")


def test_a_version_that_never_was_is_said_to_be_none(visit):
    seen = visit()
    seen.page.evaluate("location.hash = '#versions/99999'")
    expect(seen.page.locator("#version .empty")).to_contain_text("99999")
    seen.complaints[:] = [each for each in seen.complaints if "404" not in each]


def test_the_audit_names_who_signed_in(visit):
    seen = visit().go("Audit")
    expect(seen.page.locator("#audit tbody tr").first).to_contain_text("olga")


def test_the_charting_library_is_the_one_whose_hash_is_written_beside_it():
    folder = FILES / "static" / "vendor"
    noted = dict(
        reversed(line.split()) for line in (folder / "README.txt").read_text().splitlines() if re.match("[0-9a-f]{64} ", line)
    )
    assert set(noted) == {"uPlot.iife.min.js", "uPlot.min.css"}
    assert noted == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in noted}
    assert "MIT License" in (folder / "uPlot.LICENSE").read_text()
    version = re.search(r"\(v([\d.]+)\)", (folder / "uPlot.iife.min.js").read_text())[1]
    assert f"uPlot {version}," in (folder / "README.txt").read_text()


def test_every_file_of_the_page_is_small():
    own = [file for file in Path(FILES / "static").rglob("*") if file.is_file() and file.parent.name != "vendor"]
    assert own
    assert max(len(file.read_text().splitlines()) for file in own) < 400
