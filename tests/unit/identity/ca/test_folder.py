"""An authority on disk: who may read it, the root's key taken away, and a roll-over."""

import stat

import pytest
from cryptography import x509

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.authority import Authority, Root
from dpmesh.identity.ca.folder import add_root, create_folder, open_folder, open_root, replace_intermediate
from dpmesh.identity.keys import new_key

DOMAIN = "fleet.example.org"
NOW = 1_800_000_000.0
FILES = {"root.pem", "root.key", "intermediate.pem", "intermediate.key", "issuer.db"}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "ca"
    create_folder(path, DOMAIN, now=NOW)
    return path


def authority_in(folder) -> Authority:
    authority, enrolments = open_folder(folder)
    enrolments.close()
    return authority


def leaf_of(authority):
    chain = authority.issue(new_key().public_key(), now=NOW, life=60)
    return x509.load_pem_x509_certificate(chain)


def test_everything_is_for_its_owner_only(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_that_is_there_is_closed_to_others(tmp_path):
    tmp_path.chmod(0o755)
    create_folder(tmp_path, DOMAIN, now=NOW)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_an_issuer_works_without_the_roots_key(folder):
    (folder / "root.key").unlink()
    authority, enrolments = open_folder(folder)
    assert authority.trust_domain == DOMAIN
    assert authority.has_issued(leaf_of(authority))
    assert enrolments.invite(now=NOW).token
    enrolments.close()
    with pytest.raises(IdentityError) as caught:
        open_root(folder)
    assert caught.value.reason == "MALFORMED"


def test_the_roots_key_can_have_a_password(tmp_path):
    path = tmp_path / "ca"
    create_folder(path, DOMAIN, now=NOW, password=b"secret")
    assert b"ENCRYPTED" in (path / "root.key").read_bytes()
    assert open_root(path, b"secret").certificate == (path / "root.pem").read_bytes()
    for password in (None, b"another"):
        with pytest.raises(IdentityError) as caught:
            open_root(path, password)
        assert caught.value.reason == "MALFORMED"
        assert "secret" not in str(caught.value)


def test_creating_never_overwrites(folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="empty"):
        create_folder(folder, DOMAIN, now=NOW)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ConfigError, match="host name"):
        create_folder(tmp_path / "other", "Not a domain", now=NOW)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["intermediate.key", "intermediate.pem", "root.pem", "issuer.db"])
def test_a_file_that_is_open_to_others_or_missing_is_refused(folder, name):
    (folder / name).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod"):
        open_folder(folder)
    (folder / name).unlink()
    with pytest.raises(IdentityError, match="missing"):
        open_folder(folder)


def test_files_of_another_folder_are_refused(folder, tmp_path):
    create_folder(tmp_path / "other", DOMAIN, now=NOW)
    for name, reason in (("intermediate.key", "MALFORMED"), ("root.pem", "UNTRUSTED")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(IdentityError) as caught:
            open_folder(folder)
        assert caught.value.reason == reason
        (folder / name).write_bytes(kept)
    open_folder(folder).enrolments.close()


def test_a_new_intermediate_under_the_same_root(folder):
    old = authority_in(folder)
    leaf = leaf_of(old)
    replace_intermediate(folder, open_root(folder), now=NOW)
    new = authority_in(folder)
    assert new.chain != old.chain
    assert new.trust_bundle == old.trust_bundle
    assert new.has_issued(leaf)
    assert new.has_issued(leaf_of(new))
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_roll_over_of_the_root(folder):
    old = authority_in(folder)
    leaf = leaf_of(old)
    root = Root.create(DOMAIN, now=NOW)
    with pytest.raises(IdentityError) as caught:
        replace_intermediate(folder, root, now=NOW)
    assert caught.value.reason == "UNTRUSTED"
    add_root(folder, root)
    between = authority_in(folder)
    assert between.chain == old.chain
    assert between.trust_bundle == old.trust_bundle + root.certificate
    replace_intermediate(folder, root, now=NOW)
    new = authority_in(folder)
    assert new.trust_bundle == between.trust_bundle
    assert new.chain != old.chain
    assert new.has_issued(leaf)
    assert {path.name for path in folder.iterdir()} == FILES
    # The first root's key is still the folder's, and is found among several.
    assert open_root(folder).certificate == old.trust_bundle


def test_a_root_of_another_trust_domain_is_not_added(folder):
    before = (folder / "root.pem").read_bytes()
    with pytest.raises(IdentityError) as caught:
        add_root(folder, Root.create("other.example.org", now=NOW))
    assert caught.value.reason == "UNTRUSTED"
    assert (folder / "root.pem").read_bytes() == before
