"""The management API of RabbitMQ, as far as an operator of a federation needs it."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from broker_config.definitions import Document, Permission, permission_document
from shared.broker import Message
from shared.errors import BrokerUnavailableError, TopologyError

_TIMEOUT_SECONDS = 30.0


class Management:
    """One administrator's (or monitoring user's) view of one virtual host; use it in a `with` statement.

    Every method raises BrokerUnavailableError where the API does not answer, TopologyError where it refuses.
    """

    def __init__(self, url: str, *, user: str, password: str, vhost: str, ca_file: Path | None = None) -> None:
        """`ca_file` is believed for https beside the authorities that the system believes."""
        self.vhost = vhost
        self.user = user
        self._url = url
        context = httpx.create_ssl_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        auth = (user, password)
        self._client = httpx.Client(base_url=url, auth=auth, verify=context, timeout=_TIMEOUT_SECONDS, trust_env=False)

    def __enter__(self) -> "Management":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._client.close()

    def version(self) -> str:
        """RabbitMQ's version."""
        return str(self._call("GET", "overview")["rabbitmq_version"])

    def time(self) -> datetime:
        """What the clock of the broker's machine says."""
        return parsedate_to_datetime(self._answer("GET", "whoami").headers["Date"])

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes, with `disk_free` and `disk_free_limit` in bytes."""
        return list(self._call("GET", "nodes"))

    def definitions(self) -> dict[str, Any]:
        """All that the broker holds, of all virtual hosts."""
        return dict(self._call("GET", "definitions"))

    def import_definitions(self, document: Document) -> None:
        """Creates what is missing; queues that exist stay as they are."""
        self._call("POST", "definitions", body=document)

    def permit(self, right: Permission) -> None:
        """Sets one user's rights in the virtual host."""
        self._call("PUT", "permissions", self.vhost, right.user, body=permission_document(right))

    def users(self) -> dict[str, dict[str, Any]]:
        """Users by name, with their password hashes."""
        return {str(user["name"]): user for user in self._call("GET", "users")}

    def permitted_vhosts(self, user: str) -> list[str]:
        """The virtual hosts in which a user has rights."""
        return [str(each["vhost"]) for each in self._call("GET", "users", user, "permissions")]

    def queues(self) -> list[dict[str, Any]]:
        """The queues of the virtual host with their statistics, which may be some seconds old; none where it is not there."""
        return list(self._call("GET", "queues", self.vhost, missing_is_fine=True) or [])

    def queue(self, name: str) -> dict[str, Any]:
        """One queue with its statistics, which may be some seconds old."""
        return dict(self._call("GET", "queues", self.vhost, name))

    def connections(self, user: str) -> list[dict[str, Any]]:
        """The open connections of one user."""
        return [each for each in self._call("GET", "connections") if each.get("user") == user]

    def clients(self) -> list[dict[str, Any]]:
        """The open connections to the virtual host, of everybody."""
        return list(self._call("GET", "vhosts", self.vhost, "connections"))

    def publish(self, exchange: str, message: Message) -> None:
        """Publishes a message with a body of text; raises TopologyError where no queue is bound."""
        properties = {"type": message.kind, "message_id": message.message_id, "delivery_mode": 2}
        payload = {"payload": message.body.decode(), "payload_encoding": "string"}
        body = {"properties": properties, "routing_key": "", **payload}
        if not self._call("POST", "exchanges", self.vhost, exchange, "publish", body=body)["routed"]:
            raise TopologyError(f"publish to {exchange}: no queue is bound to that exchange")

    def delete_queue(self, name: str) -> None:
        """Deletes a queue and what it holds; one that is not there is fine."""
        self._call("DELETE", "queues", self.vhost, name, missing_is_fine=True)

    def delete_exchange(self, name: str) -> None:
        """Deletes an exchange; one that is not there is fine."""
        self._call("DELETE", "exchanges", self.vhost, name, missing_is_fine=True)

    def delete_user(self, name: str) -> None:
        """Deletes a login; one that is not there is fine."""
        self._call("DELETE", "users", name, missing_is_fine=True)

    def delete_vhost(self) -> None:
        """Deletes the virtual host and all that is in it."""
        self._call("DELETE", "vhosts", self.vhost, missing_is_fine=True)

    def close_connections(self, user: str) -> None:
        """Closes every connection of a user."""
        for connection in self.connections(user):
            try:
                self._close_connection(connection["name"])
            except BrokerUnavailableError:  # one that ends by itself at this moment is answered with a 500, and then with a 404
                self._close_connection(connection["name"])

    def _close_connection(self, name: str) -> None:
        self._call("DELETE", "connections", name, missing_is_fine=True)

    def _call(self, method: str, *path: str, body: object = None, missing_is_fine: bool = False) -> Any:
        answer = self._answer(method, *path, body=body)
        if answer.status_code == httpx.codes.NOT_FOUND and missing_is_fine:
            return None
        if not answer.is_success:
            raise TopologyError(f"{method} {answer.url}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    def _answer(self, method: str, *path: str, body: object = None) -> httpx.Response:
        place = "/api/" + "/".join(quote(part, safe="") for part in path)
        try:
            answer = self._client.request(method, place, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise BrokerUnavailableError(f"the management API at {self._url} does not answer: {reason}") from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise TopologyError(f"the management API at {self._url} refused the user {self.user}, its password or its tags")
        if answer.is_server_error:
            raise BrokerUnavailableError(f"{method} {self._url}{place}: {answer.status_code} {answer.text[:300]}")
        return answer
