"""Each action of the console, from the button to what the lineage says of it."""

import re

import pytest
from playwright.sync_api import expect

from broker_config.topology import update_queue
from operator_console.dead_letters import DeadLetters
from operator_console.web.server import Console, ServerOptions
from tests.conftest import eventually
from tests.console.federation import ALONE, BY_HAND, Federation, at_work, founded

pytestmark = pytest.mark.rabbitmq


def test_the_run_is_paused_and_resumed_and_each_time_asked_about_first(visit, federation):
    seen = visit()
    seen.page.get_by_role("button", name="Pause").click()
    expect(seen.dialog()).to_contain_text("The aggregator stops folding updates.")
    expect(seen.dialog().get_by_role("button", name="Cancel")).to_be_focused()
    seen.page.keyboard.press("Escape")
    expect(seen.dialog()).to_have_count(0)
    seen.page.get_by_role("button", name="Pause").click()
    seen.picture("pause-dialog", full=False)
    seen.dialog().get_by_role("button", name="Pause the run").click()
    expect(seen.notice).to_contain_text(re.compile(r"The run is paused, as of version \d+\."))
    expect(seen.page.locator("#attention")).to_contain_text("The run is paused")
    with federation.watch() as watch:
        assert watch.head.manifest.phase == "paused"
        expect(seen.page.locator(".tile", has_text="Phase")).to_contain_text("paused")
        seen.page.get_by_role("button", name="Resume").click()
        seen.dialog().get_by_role("button", name="Resume the run").click()
        expect(seen.notice).to_contain_text("The run goes on, as of version")
        version = watch.head.manifest.version
        assert watch.until(lambda: watch.head.manifest.phase == "running" and watch.head.manifest.version > version)


def test_an_institution_goes_into_quarantine_only_by_its_name_and_is_released_again(visit, federation):
    alias = federation.pseudonyms["alder-bank"]
    seen = visit().go("Institutions")
    seen.row("institutions", "alder-bank").get_by_role("button", name="Quarantine").click()
    go = seen.dialog().get_by_role("button", name="Put it into quarantine")
    field = seen.dialog().get_by_label("Type alder-bank to confirm")
    expect(field).to_be_focused()
    field.fill("birch-bank")
    expect(go).to_be_disabled()
    field.fill("alder-bank")
    seen.dialog().get_by_label("Reason").fill("its norms look <b>odd</b>")
    seen.picture("quarantine-dialog", full=False)
    go.click()
    expect(seen.notice).to_contain_text("alder-bank is in quarantine, as of version")
    expect(seen.row("institutions", "alder-bank")).to_contain_text("quarantined")
    with federation.watch() as watch:
        assert watch.reader.lineage.table[alias].quarantined
    seen.row("institutions", "alder-bank").get_by_role("button", name="Release").click()
    seen.dialog().get_by_role("button", name="Release it").click()
    expect(seen.notice).to_contain_text("alder-bank is released, as of version")
    with federation.watch() as watch:
        assert not watch.reader.lineage.table[alias].quarantined
        before = len(watch.records)
        assert watch.until(lambda: any(alias in folded(record) for record in watch.records[before:]))
    expect(seen.row("institutions", "alder-bank")).to_contain_text("training")


def folded(record) -> set[str]:
    return {each.institution for each in record.manifest.settled if each.outcome == "aggregated"}


def by_hand(federation: Federation) -> list[tuple[int, int]]:
    """Version and number of each update of the bank that nobody runs."""
    updates = [(line["version"], update) for line in federation.lines() for update in line["updates"]]
    return [(version, update["sequence"]) for version, update in updates if update["institution"] == BY_HAND]


def test_a_dead_letter_is_requeued_folded_once_and_no_longer_there(visit, federation):
    federation.bury(*federation.update_by_hand(1), author=BY_HAND, refused="the disk was full")
    seen = visit().go("Dead letters")
    row = seen.page.locator("#dead-letters tbody tr", has_text="the disk was full")
    expect(row).to_contain_text(BY_HAND)
    row.get_by_role("button", name="Requeue").click()
    expect(seen.dialog()).to_contain_text("with the checks that it makes of any update")
    seen.dialog().get_by_role("button", name="Requeue it").click()
    expect(seen.notice).to_contain_text("is requeued")
    expect(row).to_have_count(0)
    ((version, sequence),) = by_hand(federation)
    assert sequence == 1
    seen.page.evaluate(f"location.hash = '#versions/{version}'")
    expect(seen.page.locator("#folded")).to_contain_text(BY_HAND)


def test_what_the_aggregator_refuses_is_said_in_its_words(visit, federation):
    if not by_hand(federation):
        with federation.connect(BY_HAND) as broker:
            for message in federation.update_by_hand(1):
                broker.publish(update_queue(BY_HAND), message)
        assert eventually(lambda: by_hand(federation))
    federation.bury(*federation.update_by_hand(1), author=BY_HAND, refused="sent a second time")
    seen = visit().go("Dead letters")
    row = seen.page.locator("#dead-letters tbody tr", has_text="sent a second time")
    row.get_by_role("button", name="Requeue").click()
    seen.dialog().get_by_role("button", name="Requeue it").click()
    expect(seen.notice).to_contain_text("Not done:")
    expect(seen.notice).to_contain_text("number 1 is aggregated already")
    expect(row).to_have_count(1)


def test_a_letter_that_comes_as_another_one_goes_is_shown_though_the_number_of_letters_stays(visit, federation):
    federation.bury(*federation.update_by_hand(8), author=BY_HAND, refused="the former one")
    seen = visit().go("Dead letters")
    rows = seen.page.locator("#dead-letters tbody tr")
    expect(rows.filter(has_text="the former one")).to_have_count(1)
    expect(seen.page.locator("#letters-count")).to_have_text(str(rows.count()))
    later = federation.update_by_hand(9)
    with federation.connect("operator") as broker:
        letters = DeadLetters(broker, idle_seconds=0.2)
        letters.discard([each for each in letters.look() if each.reason == "the former one"])
    federation.bury(*later, author=BY_HAND, refused="the next one")
    expect(rows.filter(has_text="the next one")).to_have_count(1)
    expect(rows.filter(has_text="the former one")).to_have_count(0)


def test_what_was_ordered_and_by_whom_stands_in_the_audit(visit):
    seen = visit()
    seen.page.get_by_role("button", name="Pause").click()
    seen.dialog().get_by_role("button", name="Pause the run").click()
    expect(seen.notice).to_contain_text("The run is paused")
    seen.page.get_by_role("button", name="Resume").click()
    seen.dialog().get_by_role("button", name="Resume the run").click()
    expect(seen.notice).to_contain_text("The run goes on")
    seen.go("Audit")
    line = seen.page.locator("#audit tbody tr", has_text="applied at version").first
    expect(line).to_contain_text("olga")
    expect(line).to_contain_text("order resume")
    seen.picture("audit-light")


def test_the_run_is_stopped_for_good_only_by_its_name(visit, private_node, logins, tmp_path):
    with (
        founded(private_node, logins, tmp_path / "stopped", (ALONE,)) as federation,
        at_work(federation, (ALONE,)),
        Console(federation.folder, ServerOptions(port=0)) as console,
    ):
        seen = visit(url=console.url)
        expect(seen.page.get_by_role("button", name="Pause")).to_be_visible()
        seen.page.get_by_role("button", name="Stop").click()
        go = seen.dialog().get_by_role("button", name="Stop the run for good")
        expect(go).to_be_disabled()
        seen.dialog().get_by_label("Type heart-disease to confirm").fill("heart-disease")
        seen.picture("stop-dialog", full=False)
        go.click()
        expect(seen.notice).to_contain_text("The run is stopped, as of version")
        with federation.watch() as watch:
            assert watch.head.manifest.phase == "finished"
        expect(seen.page.locator(".tile", has_text="Phase")).to_contain_text("finished")
        expect(seen.page.get_by_role("button", name="Pause")).to_have_count(0)
        expect(seen.page.get_by_role("button", name="Stop")).to_have_count(0)
        seen.go("Institutions")
        expect(seen.page.locator("[data-order]")).to_have_count(0)
        seen.context.close()
