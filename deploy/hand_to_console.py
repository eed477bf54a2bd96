"""What the web console needs of the federation's folder, in a volume of its own: the operator's login and keys, and names.

Neither the authority's key nor anybody else's password is among it. Run at each `up`, so that new members have names there.
"""

import json
import os
import shutil
from pathlib import Path

from broker_config import logins as login_file
from broker_config.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE, write_issued
from broker_config.definitions import OPERATOR
from broker_config.written import write_private
from operator_console.broker_tls import authority_of

FEDERATION = Path("/federation")
CONSOLE = Path("/parties/console")
PLAIN = ("federation.json", "members.txt", "task.toml")
PRIVATE = (
    *(
        "run.secret",
        f"tls/{OPERATOR}/{KEY_FILE}",
        f"tls/{OPERATOR}/{CERTIFICATE_FILE}",
        f"tls/{OPERATOR}/{CA_FILE}",
        f"ca/{CA_FILE}",
    ),
    *(f"keys/{OPERATOR}/{name}" for name in ("signing.pem", "sealing.pem", "trust.json")),
)
HOSTS = ("localhost", "127.0.0.1", "console")
USER = 10001


def main() -> None:
    """Copies what is needed, and makes the certificate that browsers see where there is none."""
    for name in PLAIN:
        shutil.copy(FEDERATION / name, CONSOLE / name)
    for name in PRIVATE:
        if (FEDERATION / name).exists():
            (CONSOLE / name).parent.mkdir(parents=True, exist_ok=True)
            write_private(CONSOLE / name, (FEDERATION / name).read_bytes())
    logins = json.loads((FEDERATION / login_file.FILE).read_text())
    logins["users"] = {user: word if user == OPERATOR else "" for user, word in logins["users"].items()}
    write_private(CONSOLE / login_file.FILE, json.dumps(logins, indent=2).encode())
    if not (CONSOLE / "server" / CERTIFICATE_FILE).exists():
        authority = authority_of(FEDERATION)
        write_issued(CONSOLE / "server", authority.issue_server(HOSTS), authority.certificate)
    for file in (CONSOLE, *CONSOLE.rglob("*")):
        os.chown(file, USER, USER)


if __name__ == "__main__":
    main()
