"""`python -m broker_config.watch FOLDER PARENT [--remove]`: ends the node of FOLDER once process PARENT is gone.

A parent that is killed with -9 cannot stop its node. This process can: it waits for the parent's end, whatever its cause.
"""

import argparse
import shutil
import signal
from pathlib import Path

from broker_config.processes import end_all, wait_for_end

_WEEK_SECONDS = 7 * 24 * 3600


def main() -> None:
    """Waits, then cleans up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("parent", type=int)
    parser.add_argument("--remove", action="store_true", help="remove the folder too")
    arguments = parser.parse_args()
    # Ctrl-C goes to the whole terminal; the parent then stops the node in its own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not wait_for_end(arguments.parent, _WEEK_SECONDS):
        pass
    end_all(arguments.folder, grace_seconds=0 if arguments.remove else 30)
    if arguments.remove:
        shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
