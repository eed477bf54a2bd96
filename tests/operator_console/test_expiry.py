"""Until when certificates hold, with the authority's key and without it."""

from datetime import UTC, datetime, timedelta

from broker_config.authority import Authority, write_issued
from broker_config.logins import create, save
from operator_console.expiry import expiries
from operator_console.federation_folder import FederationFolder


def test_where_the_authoritys_key_is_elsewhere_the_ends_of_the_authority_and_the_operator_are_still_told(tmp_path):
    folder = FederationFolder(tmp_path)
    authority = Authority.create(folder.authority, name="test")
    write_issued(folder.tls("operator"), authority.issue("operator"), authority.certificate)
    authority.issue("north")
    place = {"node": "localhost:5671", "management": "https://localhost:15671", "admin_password": "x"}
    save(create(**place, tls=True), tmp_path)
    with_key = expiries(folder)
    assert set(with_key) == {"the authority itself", "operator", "north"}
    (folder.authority / "ca.key").unlink()
    without = expiries(folder)
    assert without == {who: with_key[who] for who in ("the authority itself", "operator")}
    assert without["operator"] > datetime.now(UTC) + timedelta(days=30)
