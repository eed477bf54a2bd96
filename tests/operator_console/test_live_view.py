import io
from dataclasses import replace

import pytest
from rich.console import Console

from operator_console.live_view import plain_line, render, watch
from operator_console.view_state import Row, ViewState

ROWS = tuple(
    Row(
        institution=f"bank-number-{number}",
        state=state,
        updates=10 + number,
        last_staleness=number,
        weight_share=0.1 * number,
        data_share=0.25,
        epsilon_spent=0.5 * number,
        seconds_since_last=1.0,
        refused=0,
    )
    for number, state in enumerate(("killed", "slow", "training", "budget spent"), start=1)
)
VIEW = ViewState(
    title="Loans of four banks",
    version=41,
    phase="running",
    phase_reason="",
    updates=45,
    target=105,
    metric="auc",
    metric_values=(0.5, 0.6125, 0.7134),
    elapsed_seconds=12.3,
    epsilon_budget=3.0,
    rows=ROWS,
    events=("12 s  bank-number-1 was killed with SIGKILL; the others go on",),
    management_url="http://127.0.0.1:15999/#/queues",
    login="viewer / secret-word",
)


def drawn(view: ViewState, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, legacy_windows=False).print(render(view))
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("width", [80, 120])
def test_every_fact_is_on_the_screen_and_no_line_is_too_wide(width: int):
    text = drawn(VIEW, width)
    for fact in ("version 41", "45 of 105", "AUC 0.713", "12 s", "bank-number-4", "budget spent", "epsilon of 3", "2.00", "40%"):
        assert fact in text
    assert "SIGKILL" in text
    assert "http://127.0.0.1:15999/#/queues" in text
    assert "viewer / secret-word" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_refused_plan_is_on_the_screen_with_the_limit_that_refuses_it():
    refusing = replace(ROWS[0], state="plan refused", standing="refuses the plan: max_epsilon")
    for width in (80, 120):
        text = drawn(replace(VIEW, rows=(refusing, *ROWS[1:])), width)
        assert "plan refused" in text
        assert "bank-number-1 refuses the plan: max_epsilon" in text


def test_a_terminal_without_unicode_gets_plain_characters():
    text = drawn(VIEW, 100, encoding="ascii")
    assert text.isascii()
    assert "killed" in text


def test_where_rows_do_not_fit_those_that_need_attention_are_shown():
    calm = [replace(ROWS[2], institution=f"calm-{number}") for number in range(30)]
    crowd = replace(VIEW, rows=(*calm, ROWS[0]))
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(render(crowd))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "bank-number-1" in text
    assert "and 23 more" in text
    assert len(text.splitlines()) <= 24


def test_a_run_without_noise_says_so():
    assert "no noise" in drawn(replace(VIEW, epsilon_budget=None), 100)


def test_the_bar_shows_the_share_of_the_data_beside_the_weight():
    rows = [line for line in drawn(VIEW, 100).splitlines() if "bank-number-" in line]
    assert rows[0].count("━") < rows[3].count("━")
    assert all("┃" in row for row in rows[:4])


def test_a_plain_line_says_where_the_run_stands():
    assert plain_line(VIEW) == (
        "12 s  version 41, 45 of 105 updates, AUC 0.713: bank-number-1 11 (killed), bank-number-2 12 (slow), "
        "bank-number-3 13 (training), bank-number-4 14 (budget spent)"
    )


def test_without_a_terminal_each_event_is_said_once_and_the_end_is_said():
    views = [replace(VIEW, events=()), VIEW, replace(VIEW, version=42), None]
    console = Console(file=io.StringIO(), width=80)
    watch(lambda: views.pop(0), console=console, plain_every_seconds=1000)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split(",")[0] for line in lines] == [
        "12 s  version 41",
        "12 s  bank-number-1 was killed with SIGKILL; the others go on",
        "12 s  version 42",
    ]


def test_ctrl_c_leaves_the_cursor_visible_and_the_last_view_on_the_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, legacy_windows=False)
    views = [VIEW]

    def tick() -> ViewState:
        if not views:
            raise KeyboardInterrupt
        return views.pop()

    with pytest.raises(KeyboardInterrupt):
        watch(tick, console=console)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "bank-number-4" in written
