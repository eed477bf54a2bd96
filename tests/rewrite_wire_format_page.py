"""python -m tests.rewrite_wire_format_page: after a change of the schema, writes into docs/wire-format.md what the code writes.

That is the bytes of the examples, their hashes and sizes. What stands behind a # there is for people, and theirs to change, but
for hashes. A signed or sealed example that no longer fits is made by hand.
"""

import re

from tests.test_wire_format_page import EXAMPLES, PAGE, PLAN, page_bytes, read_body, sha256, written_by_the_code

ROW_BYTES = 32


def rewritten(page: str) -> str:
    """The page with the examples of today's code."""
    written = written_by_the_code()
    for name in EXAMPLES:
        page = _with_block(page, name, written[name])
        page = _with_row(page, name, sha256(written[name]), str(len(written[name])))
    for version in "01":
        record = written[f"record-{version}"]
        content = read_body(record)[1]["content"]
        page = _with_row(page, f"manifest-{version}", sha256(content), "")
        place = f"starts at byte {record.index(content)} and has {len(content)} bytes"
        before, heading, after = page.partition(f"### The record of version {version}\n")
        page = before + heading + re.sub(r"starts at byte \d+ and has \d+ bytes", place, after, count=1)
    return _with_row(page, "plan", PLAN.hash, "")


def _with_block(page: str, name: str, written: bytes) -> str:
    block = re.compile(rf"(?<=^```hex {re.escape(name)}\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
    (former,) = block.findall(page)
    if page_bytes(name) == written:
        return page
    if len(page_bytes(name)) == len(written):
        pairs = iter(f"{byte:02x}" for byte in written)
        rows = [re.sub(r"\b[0-9a-f]{2}\b", lambda _: next(pairs), row.partition("#")[0]) for row in former.splitlines()]
        lines = [row + "".join(line.partition("#")[1:]) for row, line in zip(rows, former.splitlines(), strict=True)]
    elif "#" in former:
        raise SystemExit(f"{name} has another length than on the page: write it and its explanations by hand\n{written.hex(' ')}")
    else:
        lines = [written[start : start + ROW_BYTES].hex(" ") for start in range(0, len(written), ROW_BYTES)]
    return block.sub("\n".join(lines) + "\n", page)


def _with_row(page: str, name: str, digest: str, size: str) -> str:
    row = re.compile(rf"^\| `{re.escape(name)}` \| `([0-9a-f]{{64}})` \| (\d*) \|$", re.MULTILINE)
    (found,) = row.finditer(page)
    # a hash also stands where another example names it
    page = page.replace(found[0], f"| `{name}` | `{digest}` | {size} |").replace(found[1], digest)
    return page.replace(f'"{found[1][:12]}..."', f'"{digest[:12]}..."')


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
