"""Says in words what pip-audit found; run by setup/audit with its answer, which is missing where nobody answered, and its log."""

import json
import sys
from pathlib import Path

NOT_ASKED = 3


def report(answer: Path, log: str) -> int:
    """Prints the findings; the exit status as setup/audit gives it."""
    packages = json.loads(answer.read_text())["dependencies"] if answer.exists() else []
    audited = [each for each in packages if "skip_reason" not in each]
    if not audited:
        print(f"Nothing was audited: the list of known vulnerabilities could not be asked; see {log}.", file=sys.stderr)
        return NOT_ASKED
    for each in packages:
        if "skip_reason" in each:
            print(f"{each['name']}: not audited: {each['skip_reason']}")
        for known in each.get("vulns", []):
            repaired = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"{each['name']} {each['version']}: {known['id']}, repaired in {repaired}")
    found = sum(bool(each["vulns"]) for each in audited)
    print(f"{len(audited)} packages were audited, {found} of them have known vulnerabilities.")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(report(Path(sys.argv[1]), sys.argv[2]))
