"""Runs the services of docker-compose.yml without an engine: `unshare --net --mount --pid ... python rehearsing.py FOLDER`.

Each service gets a root folder of its own, read-only, with its volumes in it, and runs as its user with its capabilities. For
the images stand this machine with .venv and its Prometheus, and the Debian of .rabbitmq4; Grafana, which no distribution has, is
left out. All services share a network that leads nowhere. Prints what was found as JSON.
"""

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

PROJECT = Path(__file__).resolve().parent.parent
DEBIAN = Path(os.environ.get("FEDQUEUE_RABBITMQ_ROOT", PROJECT / ".rabbitmq4"))
SYSTEM = ("usr", "opt")
LINKS = ("bin", "sbin", "lib", "lib64")
WORKER = "10001:10001"  # USER of deploy/Dockerfile
ONCE = ("prepare", "found")
BANKS = ("banco-popular", "bank-of-america", "capital-one")
WORKERS = ("aggregator", *BANKS)
FIGURES = "https://localhost:15691/metrics/detailed?family=queue_coarse_metrics"
LEFT_OUT = "grafana"
LISTEN = "FEDQUEUE_MONITORING__LISTEN"
REMOVED = "banco-popular"
PATIENCE_SECONDS = 120
# Another environment with fedqueue in it, for example one made by the commands of deploy/Dockerfile.
ENVIRONMENT = Path(os.environ.get("FEDQUEUE_REHEARSED_ENVIRONMENT", PROJECT / ".venv"))


class Service:
    """One service of the file, in its root folder."""

    def __init__(self, name: str, settings: dict, folder: Path) -> None:
        self.name, self.settings, self.folder = name, settings, folder
        self.is_broker = settings["image"].startswith("rabbitmq")
        self.root = folder / "roots" / name
        self._fill(DEBIAN if self.is_broker else Path("/"))

    def _fill(self, image: Path) -> None:
        self.root.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", self.root)
        for name in LINKS:
            if (image / name).is_symlink():
                (self.root / name).symlink_to(os.readlink(image / name))
        shutil.copytree(image / "etc", self.root / "etc", symlinks=True, ignore_dangling_symlinks=True)
        hosts = self.root / "etc" / "hosts"
        hosts.unlink(missing_ok=True)
        hosts.write_text("127.0.0.1 localhost rabbitmq\n")
        for place in [image / name for name in SYSTEM]:
            self._bind(place, f"/{place.name}", "bind,ro")
        for name in ("/tmp", "/var/log/rabbitmq", "/proc", "/dev"):
            self._at(name).mkdir(parents=True)
        for place in self.settings["tmpfs"]:
            mount("-t", "tmpfs", "tmpfs", self._at(place))
        mount("-t", "proc", "proc", self.root / "proc")
        mount("--rbind", "/dev", self.root / "dev")
        if not self.is_broker:
            for place in (PROJECT, ENVIRONMENT, Path(sys.base_prefix)):
                self._bind(place, str(place), "bind,ro")
        self._fill_volumes()
        mount("-o", "remount,ro", self.root)

    def _fill_volumes(self) -> None:
        for volume in self.settings["volumes"]:
            source, target, *read_only = volume.split(":")
            held = PROJECT / source if source.startswith("./") else self.folder / "volumes" / source
            if not held.exists():
                held.mkdir(parents=True)
            self._bind(held, target, "bind,ro" if read_only else "bind")

    def _at(self, place: str) -> Path:
        return self.root / place.lstrip("/")

    def _bind(self, source: Path, target: str, options: str) -> None:
        place = self._at(target)
        if source.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        mount("--bind", source, place)
        mount("-o", f"remount,{options}", place)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Starts a command in the service's place; its output goes to a file."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                self._confined(command), env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def ask(self, command: list[str]) -> str:
        """What a command in the service's place prints."""
        asked = subprocess.run(self._confined(command), env=self._environment(), capture_output=True, text=True, check=True)
        return asked.stdout

    def _confined(self, command: list[str]) -> list[str | Path]:
        user = self.settings.get("user", WORKER).replace("root", "0:0")
        uid, gid = user.split(":")
        allowed = ",".join(["-all", *(f"+{each.lower()}" for each in self.settings.get("cap_add", []))])
        confined = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"]
        return ["chroot", self.root, *confined, "--bounding-set", allowed, "--inh-caps", "-all", *command]

    def _environment(self) -> dict[str, str]:
        path = "/usr/lib/rabbitmq/bin" if self.is_broker else ENVIRONMENT / "bin"
        home = {"HOME": "/var/lib/rabbitmq", "RABBITMQ_LOGS": "-"} if self.is_broker else {"HOME": "/var/lib/fedqueue"}
        own = {name: str(value) for name, value in self.settings.get("environment", {}).items()}
        if self.name in BANKS:  # a container has a loopback of its own, these services share one
            own[LISTEN] = own[LISTEN].replace("127.0.0.1:", f"127.0.0.{2 + BANKS.index(self.name)}:")
        return {"PATH": f"{path}:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **home, **own}

    def run(self) -> None:
        """The service's own command, to its end."""
        if self.start(self.settings["command"]).wait(PATIENCE_SECONDS) != 0:
            raise SystemExit(f"{self.name} failed:\n{(self.folder / f'{self.name}.log').read_text()}")

    def is_healthy(self) -> bool:
        """What the service's healthcheck says."""
        kind, *test = self.settings["healthcheck"]["test"]
        return self.start(["sh", "-c", *test] if kind == "CMD-SHELL" else test).wait(PATIENCE_SECONDS) == 0

    def is_let_in(self) -> bool:
        """Whether the broker takes the service's certificate, as its `--check` finds."""
        return self.start([*self.settings["command"], "--check"]).wait(PATIENCE_SECONDS) == 0

    def wait_until_healthy(self) -> None:
        """Returns when the healthcheck is content."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.is_healthy():
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} is not healthy:\n{(self.folder / f'{self.name}.log').read_text()}")
            time.sleep(1)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def addresses(settings: dict) -> list[str]:
    """Those that the services have by name in the file."""
    networks = [each["networks"] for each in settings.values() if isinstance(each.get("networks"), dict)]
    return [place["ipv4_address"] for each in networks for place in each.values() if place]


def listening() -> list[str]:
    """Addresses and ports on which anything listens."""
    shown = subprocess.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"], capture_output=True, text=True, check=True)
    return sorted({line.split()[3] for line in shown.stdout.splitlines()})


def files(folder: Path) -> dict[str, dict[str, str]]:
    """The files of every volume but RabbitMQ's own, with a hash of each."""
    return {
        volume.name: {
            str(file.relative_to(volume)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(volume.rglob("*"))
            if file.is_file()
        }
        for volume in sorted((folder / "volumes").iterdir())
        if volume.name != "rabbitmq"
    }


def secrets_shown(folder: Path) -> list[str]:
    """The programs in whose command line or environment a password of the federation stands."""
    users = json.loads((folder / "volumes" / "federation" / "broker.json").read_text())["users"]
    passwords = [word.encode() for word in users.values() if word]
    shown = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if any(word in said for word in passwords):
            shown.append((process / "comm").read_text())
    return shown


def version_made(operator: Service) -> int:
    """The newest version, once there is one beyond that of the founding, as `fedqueue status` tells it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    version = 0
    while version == 0 and time.monotonic() < deadline:
        version = json.loads(operator.ask(["fedqueue", "status", "--dir", "/federation", "--json"]))["version"]
    return int(version)


def asked_by(prometheus: Service) -> dict[str, str]:
    """How each of Prometheus' jobs is, once all are up or patience ends."""
    process = prometheus.start(prometheus.settings["entrypoint"] + prometheus.settings["command"])
    prometheus.wait_until_healthy()
    place = prometheus.settings["networks"]["screens"]["ipv4_address"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    health: dict[str, str] = {}
    while set(health.values()) != {"up"} and time.monotonic() < deadline:
        time.sleep(1)
        targets = httpx.get(f"http://{place}:9090/api/v1/targets").json()["data"]["activeTargets"]
        health = {each["labels"]["job"]: each["lastError"] or each["health"] for each in targets}
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE_SECONDS)
    return health


def passwords_in(folder: Path) -> list[str]:
    """Whose passwords stand in the file of logins."""
    return [user for user, word in json.loads((folder / "broker.json").read_text())["users"].items() if word]


def console_answers(console: Service) -> dict[str, object]:
    """Whether the console, once somebody may log in, is healthy, and what its page is for somebody who is not logged in."""
    shown = console.ask(["fedqueue", "console-user", "add", "olga", "--role", "operator", "--draw", "--dir", "/console"])
    process = console.start(console.settings["command"])
    console.wait_until_healthy()
    page = httpx.get("https://localhost:8080/", verify=str(console.folder / "volumes" / "console" / "ca" / "ca.pem"))
    process.send_signal(signal.SIGTERM)
    return {"password drawn": "shown this once" in shown, "leads to": page.headers.get("location"), "ended": process.wait(30)}


def figures_shown(party: Path) -> bool:
    """Whether the broker tells its figures to whoever has the certificate in this folder or below it."""
    (certificate,) = party.rglob("certificate.pem")
    context = ssl.create_default_context(cafile=certificate.with_name("ca.pem"))
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    try:
        return "rabbitmq_detailed_queue_messages" in httpx.get(FIGURES, verify=context).text
    except httpx.NetworkError:
        return False


def wait_until_all_are_healthy(places: dict[str, Service]) -> None:
    """Returns when the aggregator leads and every bank was greeted."""
    for name in WORKERS:
        places[name].wait_until_healthy()


def after_removal(places: dict[str, Service]) -> dict[str, dict[str, bool]]:
    """Who is let in by the broker, and who is healthy, once a bank was removed."""
    places["found"].ask(["fedqueue", "institution", "remove", REMOVED, "--dir", "/federation"])
    let_in = {name: places[name].is_let_in() for name in WORKERS}
    return {"let in after removal": let_in, "healthy after removal": {name: places[name].is_healthy() for name in WORKERS}}


def rehearse(folder: Path) -> dict:
    """What `docker compose up` does, until the federation has made a version, and what `docker compose stop` does."""
    settings = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
    for volume, owner in (("rabbitmq", 999), ("prometheus", 65534)):
        (folder / "volumes" / volume).mkdir(parents=True)
        os.chown(folder / "volumes" / volume, owner, owner)  # as the image has it
    for address in addresses(settings):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    places = {name: Service(name, each, folder) for name, each in settings.items() if name != LEFT_OUT}
    found: dict = {}
    places["prepare"].run()
    broker = places["rabbitmq"].start(["rabbitmq-server"])
    places["rabbitmq"].wait_until_healthy()
    found["listening"] = listening()
    places["found"].run()
    found["files"] = files(folder)
    for name in ONCE:
        places[name].run()
    again = files(folder)
    found["changed by a second start"] = [name for name, each in found["files"].items() if again[name] != each]
    workers = {name: places[name].start(settings[name]["command"]) for name in WORKERS}
    found["secrets shown"] = secrets_shown(folder)
    wait_until_all_are_healthy(places)
    found["version"] = version_made(places["found"])
    found["figures shown to"] = {name: figures_shown(folder / "volumes" / name) for name in ("monitoring", *WORKERS)}
    found["asked by Prometheus"] = asked_by(places["prometheus"]) if shutil.which("prometheus") else None
    found["console"] = console_answers(places["console"])
    found["passwords of the console"] = passwords_in(folder / "volumes" / "console")
    found |= after_removal(places)
    for process in workers.values():
        process.send_signal(signal.SIGTERM)
    found["ended"] = {name: process.wait(PATIENCE_SECONDS) for name, process in workers.items()}
    broker.send_signal(signal.SIGTERM)
    broker.wait(PATIENCE_SECONDS)
    return found


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(json.dumps(rehearse(Path(sys.argv[1]))))
