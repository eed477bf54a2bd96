import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from operator_console.events import Event, write_events
from operator_console.report import write_report
from operator_console.report_tables import ending_text
from operator_console.summary import Comparison, summarise, write_summary
from shared.errors import SettingsError
from shared.plan import Ending
from tests.operator_console.conftest import Finished
from tests.operator_console.test_summary import COMPARISON, figures, spec

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADING = {"src", "srcset", "data", "action", "background", "poster"}


class Page(HTMLParser):
    """A page as its tags, texts and ids; raises where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.fixture
def folder(finished: Finished, tmp_path: Path) -> Path:
    """What a run of three banks leaves behind, with a title that would break a careless page."""
    finished.history.write(tmp_path / "lineage.jsonl")
    write_summary(tmp_path / "summary.json", summarise(spec(), finished.history, COMPARISON, seed=7, wall_seconds=12.3))
    titles = {"bank-a": "A & <script>alert(1)</script>", "bank-b": "Bank $B$", "bank-c": "Bank C"}
    facts = {"institutions": [{"id": institution, "title": title} for institution, title in titles.items()]}
    (tmp_path / "federation.json").write_text(json.dumps(facts))
    return tmp_path


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def add_extras(folder: Path, finished: Finished) -> None:
    at_ms = finished.history.links[2].at_ms
    write_events(folder / "events.json", [Event(at_ms=at_ms, kind="killed", institution="bank-a", text="bank-a was <killed>")])
    rows = [{"epsilon": None, "noise_multiplier": None, "metrics": figures(0.7777)}]
    rows += [{"epsilon": 3.0, "noise_multiplier": 0.875, "metrics": figures(0.7222)}]
    (folder / "epsilon.json").write_text(json.dumps(rows))
    (folder / "aggregator").mkdir()
    report = {"institution": "bank-b", "version": 3, "epsilon": 0.2, "accuracy": 0.7}
    (folder / "aggregator" / "reports.jsonl").write_text(2 * (json.dumps(report) + "\n"))


def test_the_page_asks_for_nothing_from_outside(folder: Path, finished: Finished):
    add_extras(folder, finished)
    text = write_report(folder).read_text()
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in "".join(value for _, name, value in page.attributes if name in {"href", "xlink:href"})
    assert not [name for _, name, _ in page.attributes if name in LOADING]
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert "@import" not in text


def test_the_figures_of_the_run_are_on_the_page(folder: Path, finished: Finished):
    words = page_of(folder).words
    for auc in ("0.700", "0.750", "0.610", "0.720", "0.660", "0.650", "0.657", "0.690"):
        assert auc in words
    for part in finished.history.parts():
        assert f"{part.total_weight:.2f}" in words
        assert f"{part.entry.epsilon_spent:.2f}" in words
    assert any("beats 1 of 2 institutions" in word for word in words)


def test_the_page_tells_who_left_the_plan(folder: Path):
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    summary["institutions"][1]["standing"] = "refuses the plan: mechanisms"
    file.write_text(json.dumps(summary))
    words = page_of(folder).words
    assert "refuses the plan: mechanisms" in words
    assert words.count("takes part") == 2


def test_every_plot_says_in_words_what_it_shows(folder: Path, finished: Finished):
    add_extras(folder, finished)
    page = page_of(folder)
    said = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label") and ":" in value]
    assert page.tags["svg"] == 7
    assert len(said) == page.tags["svg"]
    assert "epsilon none: 0.778; epsilon 3: 0.722" in said[-1]


def test_colours_follow_the_readers_choice_of_light_or_dark(folder: Path):
    text = write_report(folder).read_text()
    drawn = text[text.index("<svg") : text.rindex("</svg>")]
    assert "prefers-color-scheme: dark" in text
    assert "var(--series-1)" in drawn
    assert "fill: #" not in drawn
    assert "stroke: #" not in drawn


def test_parts_that_were_not_made_are_said_to_be_missing(folder: Path):
    words = page_of(folder).words
    assert "The comparison of epsilons was not made for this run." in words
    assert words.count("none") >= 3


def test_extras_are_shown_where_they_were_made(folder: Path, finished: Finished):
    add_extras(folder, finished)
    words = page_of(folder).words
    assert "bank-a was <killed>" in words
    assert {"0.778", "0.722", "0.88"} <= set(words)
    assert "2 of accuracy; epsilon 0.2 each" in words


def test_names_from_outside_are_text_and_never_markup(folder: Path):
    text = write_report(folder).read_text()
    assert "<script" not in text
    assert "A &amp; &lt;script&gt;" in text
    assert ">Bank $B$</text>" in text


def test_own_rows_show_three_models_and_where_the_own_one_is_still_the_best(folder: Path):
    page = page_of(folder)
    said = next(value for _, name, value in page.attributes if name == "aria-label" and value.startswith("Dots: AUC on own rows"))
    assert "Bank $B$ federated 0.680, personalised 0.690, own alone 0.640" in said
    assert "Bank C" not in said  # which was not measured
    assert any("own model is still the best of the three at 1" in word for word in page.words)
    assert any("neither the personalised model nor its figures leave an institution" in word for word in page.words)
    words = [word for word in page.words if word]
    first = words.index("0.690")
    assert words[first - 2 : first + 3] == ["Bank $B$", "0.680", "0.690", "0.640", "personalised"]
    assert page.attributes.count(("tr", "class", "strong")) == 2  # the federated model among all, and bank-a at home


def test_the_page_of_an_older_run_shows_what_it_has(folder: Path):
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    for each in summary["institutions"]:
        del each["own"]["personalised"]
    file.write_text(json.dumps(summary))
    page = page_of(folder)
    assert {"0.660", "0.650"} <= set(page.words)
    assert not [value for _, _, value in page.attributes if "on own rows" in value]


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (Ending(metric="auc"), "when the operator stops it"),
        (Ending(updates=30, updates_each=2), "after 30 updates, at least 2 from each institution"),
        (Ending(metric="auc", target=0.8), "once AUC on held-out rows reaches 0.8"),
        (
            Ending(metric="auc", target=0.8, institutions=5, in_a_row=3, versions=90, patience=9, seconds=60.0),
            "once AUC on held-out rows reaches 0.8, 3 times in a row; or once 5 institutions have given all they could; "
            "or after 90 versions; "
            "or after 9 versions without a better AUC; or after 60 seconds",
        ),
    ],
    ids=["open", "updates", "target", "many"],
)
def test_every_end_that_the_plan_names_is_on_the_page(ending, text):
    assert ending_text(ending.model_dump()) == text
    older = {"updates": ending.updates, "updates_each": ending.updates_each}
    assert ending_text(older) == ("when the operator stops it" if ending.updates is None else text)


def test_a_run_without_its_summary_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"summary\.json is missing"):
        write_report(tmp_path)


def test_a_run_in_which_nothing_was_measured_still_has_a_page(folder: Path, finished: Finished):
    write_summary(folder / "summary.json", summarise(spec(), finished.history, Comparison(), seed=None, wall_seconds=1))
    lines = [json.loads(line) | {"metrics": {}} for line in (folder / "lineage.jsonl").read_text().splitlines()]
    (folder / "lineage.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = page_of(folder).words
    assert "No version was measured: the aggregator had no held-out file." in words
    assert "Own test rows were not measured." in words


def test_a_plot_of_very_many_institutions_shows_those_with_the_most_weight(folder: Path):
    summary = json.loads((folder / "summary.json").read_text())
    bank = summary["institutions"][0]
    many = [bank | {"id": f"bank-{number}", "total_weight": float(number)} for number in range(100)]
    (folder / "summary.json").write_text(json.dumps(summary | {"institutions": many}))
    text = write_report(folder).read_text()
    assert "the 40 of 100 institutions with the most weight" in text
    assert ">bank-60</text>" in text
    assert ">bank-59</text>" not in text
