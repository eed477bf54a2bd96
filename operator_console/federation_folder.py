"""The operator's folder of one federation: logins, secrets, settings files of every worker, and what a run leaves behind."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict

from broker_config import logins as login_file
from broker_config.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from broker_config.definitions import AGGREGATOR, OPERATOR
from broker_config.keyring import SIGNING_FILE
from broker_config.logins import Logins
from broker_config.secret_files import demand_private
from broker_config.written import write_private
from operator_console.kit import EXPLAINED, KEYS, PASSWORD_FILE
from shared.did_you_mean import suggestion
from shared.errors import SettingsError
from shared.messages import pseudonym
from shared.plan import Plan

SECRET_BYTES = 32
NO_NOISE = "yes, updates may leave without noise"
_TEMPLATES = Environment(  # noqa: S701 - the templates are TOML, YAML and text: their values are quoted as JSON strings, not as HTML
    loader=PackageLoader("operator_console", "settings_templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


class InstitutionFacts(BaseModel):
    """What the operator knows of an institution; a removed one keeps its name, which its updates go by."""

    model_config = ConfigDict(extra="forbid")

    id: str
    title: str
    incarnation: int = 1
    removed: bool = False


class Facts(BaseModel):
    """`federation.json`: what this federation is."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    task: str
    title: str
    institutions: list[InstitutionFacts]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What goes into one institution's settings file beyond its identity; files are relative to that file."""

    num_examples: int | None = None
    training_file: str = "training.csv"
    validation_file: str | None = None
    at_least_seconds: float = 0.0
    reports_at_most: int = 0


@dataclass(frozen=True, slots=True)
class FederationFolder:
    """Paths in the folder, and what is read from and written to them."""

    path: Path

    @property
    def task_file(self) -> Path:
        """The task, the same file for everybody."""
        return self.path / "task.toml"

    @property
    def aggregator_file(self) -> Path:
        """Settings of the aggregator worker."""
        return self.path / "aggregator.toml"

    @property
    def aggregator(self) -> Path:
        """The folder of the aggregator worker: credentials, keys, checkpoint."""
        return self.path / AGGREGATOR

    @property
    def authority(self) -> Path:
        """The federation's certificate authority, with TLS."""
        return self.path / "ca"

    @property
    def console(self) -> Path:
        """The web console's own files: who may log in, and what was done there."""
        return self.path / "console"

    @property
    def operator_keys(self) -> Path:
        """The operator's message keys, and whom it believes."""
        return self.path / "keys" / OPERATOR

    @property
    def has_tls(self) -> bool:
        """Whether the broker is reached with TLS, and so with certificates instead of passwords. Raises SettingsError."""
        return self.logins().over_tls

    def tls(self, user: str) -> Path:
        """The certificate of a login of the operator's own."""
        return self.path / "tls" / user

    def kit(self, institution: str) -> Path:
        """The archive with everything that an institution needs but its data."""
        return self.path / "kits" / f"{institution}.tar.gz"

    def renewal_kit(self, institution: str) -> Path:
        """The archive with what another certificate changes."""
        return self.path / "kits" / f"{institution}.renewal.tar.gz"

    def institution(self, institution: str) -> Path:
        """The folder that goes to one institution."""
        return self.path / "institutions" / institution

    def client_file(self, institution: str) -> Path:
        """Settings of one client worker."""
        return self.institution(institution) / "client.toml"

    def log_file(self, worker: str) -> Path:
        """Where a worker that the demo starts writes its log."""
        return self.path / "logs" / f"{worker}.log"

    def logins(self) -> Logins:
        """The broker's addresses and logins. Raises SettingsError."""
        return login_file.load(self.path)

    def run_secret(self) -> bytes:
        """The secret that pseudonyms are made with. Raises SettingsError."""
        secret = self._read("run.secret").strip().encode()
        demand_private(self.path / "run.secret", "the run's secret")
        return secret

    def facts(self) -> Facts:
        """What this federation is. Raises SettingsError."""
        return Facts.model_validate_json(self._read("federation.json"))

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError as error:
            raise SettingsError(f"{self.path / name}: {error.strerror}; `fedqueue init --dir {self.path}` writes it") from error

    def names(self) -> dict[str, str]:
        """Institution by pseudonym."""
        secret = self.run_secret()
        return {pseudonym(secret, each.id): each.id for each in self.facts().institutions}

    def stranger(self, institution: str) -> SettingsError:
        """The error for a name that is no institution of this federation: whom was meant, and who there is."""
        known = [each.id for each in self.facts().institutions if not each.removed and each.id != institution]
        return SettingsError(f"{institution} is not a member: {suggestion(institution, known)}")

    def demand_known(self, institution: str) -> None:
        """Raises SettingsError for a name that no institution of this federation has, nor a removed one had."""
        if institution not in [each.id for each in self.facts().institutions]:
            raise self.stranger(institution)

    def demand_empty(self) -> None:
        """Raises SettingsError where a federation is here already."""
        if (self.path / "federation.json").exists():
            raise SettingsError(f"{self.path} already holds a federation; choose another folder, or delete this one")

    def prepare(self, task_text: str, broker: Logins) -> None:
        """Writes what a new federation needs before it exists. Raises SettingsError where another one is there already."""
        self.demand_empty()
        self.path.mkdir(parents=True, exist_ok=True)
        self.task_file.write_text(task_text)
        write_private(self.path / "run.secret", f"{secrets.token_hex(SECRET_BYTES)}\n".encode())
        login_file.save(broker, self.path)

    def keep(self, facts: Facts) -> None:
        """Writes the facts and the list of members that the aggregator reads."""
        self.path.joinpath("members.txt").write_text("".join(f"{each.id}\n" for each in facts.institutions if not each.removed))
        self.path.joinpath("federation.json").write_text(facts.model_dump_json(indent=2) + "\n")

    def write_aggregator(self, broker: Logins, *, held_out: str | None = None) -> None:
        """Settings of the aggregator, and its password where it needs one."""
        login = self._login(AGGREGATOR, self.aggregator, seen=f"{AGGREGATOR}/")
        text = _TEMPLATES.get_template("aggregator.toml.j2").render(url=broker.amqp, login=login, held_out=held_out)
        self.aggregator_file.write_text(text)

    def write_client(self, facts: InstitutionFacts, plan: Plan, options: ClientOptions) -> Path:
        """Settings, the task, what starts the worker and what explains it, and a password where there is one.

        Certificates and message keys come before.
        """
        folder = self.institution(facts.id)
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "facts": facts,
            "run_id": self.facts().run_id,
            "pseudonym": pseudonym(self.run_secret(), facts.id),
            "url": self.logins().amqp,
            "login": self._login(facts.id, folder),
            "keys_made_there": not (folder / KEYS / SIGNING_FILE).exists(),
            "plan": plan,
            "options": options,
            "no_noise": NO_NOISE,
            "version": metadata.version("fedqueue"),
        }
        (folder / "task.toml").write_text(self.task_file.read_text())
        for name in (self.client_file(facts.id).name, *EXPLAINED):
            (folder / name).write_text(_TEMPLATES.get_template(f"{name}.j2").render(values))
        return self.client_file(facts.id)

    def _login(self, user: str, folder: Path, seen: str = "") -> dict[str, str | bool]:
        """The settings by which a worker logs in and signs, with paths that begin with `seen`; writes its password."""
        logins, keys = self.logins(), {"keys_folder": seen + KEYS}
        if logins.over_tls:
            files = {"ca_file": CA_FILE, "certificate_file": CERTIFICATE_FILE, "key_file": KEY_FILE}
            return {**{name: seen + file for name, file in files.items()}, **keys}
        write_private(folder / PASSWORD_FILE, f"{logins.users[user]}\n".encode())
        clear = "everybody_on_the_network_may_read_and_change_what_i_send"
        return {"password_file": seen + PASSWORD_FILE, **keys, **({clear: True} if getattr(logins, clear) else {})}


def named(institutions: Sequence[str]) -> list[InstitutionFacts]:
    """Facts of institutions that have no title but their id."""
    return [InstitutionFacts(id=each, title=each) for each in institutions]
