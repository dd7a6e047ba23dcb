"""Certificates that clients trust for the right names only, and keys that stay private."""

import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

from fedit_app.deployment.certificates import (
    AUTHORITY_DAYS,
    SERVER_DAYS,
    Pair,
    expires,
    handshake_problem,
    issue_server_certificate,
    make_authority,
)
from fedit_app.mkv.node_key import key_fingerprint, make_node_key, read_public_key
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import check_private, write_private


@pytest.fixture(scope="module")
def authority() -> Pair:
    return make_authority("Test authority")


@pytest.fixture
def files(authority, tmp_path) -> tuple[Path, Path, Path]:
    """Certificate, key and authority of a server called fedit.example.org and 192.0.2.7."""
    made = issue_server_certificate(authority, ["fedit.example.org", "192.0.2.7"])
    paths = tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "ca.crt"
    for path, content in zip(paths, (made.public, made.private, authority.public), strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize(
    "host", ["fedit.example.org", "192.0.2.7", "localhost", "127.0.0.1", "::1"]
)
def test_a_server_is_trusted_by_its_names_and_on_its_own_machine(files, host):
    assert handshake_problem(*files, host) is None


@pytest.mark.parametrize("host", ["example.org", "other.example.org", "192.0.2.8"])
def test_a_server_is_not_trusted_by_other_names(files, host):
    assert "mismatch" in handshake_problem(*files, host)


def test_another_authority_is_not_trusted(files, tmp_path):
    (tmp_path / "other.crt").write_bytes(make_authority("Test authority").public)

    problem = handshake_problem(*files[:2], tmp_path / "other.crt", "localhost")
    assert "certificate" in problem or "issuer" in problem


def test_a_key_of_another_certificate(files, authority):
    files[1].write_bytes(issue_server_certificate(authority, ["x"]).private)

    assert "cannot be loaded together" in handshake_problem(*files, "localhost")


def test_an_expired_certificate(authority, tmp_path, monkeypatch):
    import fedit_app.deployment.certificates as certificates

    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    made = issue_server_certificate(authority, ["localhost"])
    paths = tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "ca.crt"
    for path, content in zip(paths, (made.public, made.private, authority.public), strict=True):
        path.write_bytes(content)

    assert "expired" in handshake_problem(*paths, "localhost")


def test_validity(files):
    now = datetime.datetime.now(datetime.UTC)
    for file, days in ((files[0], SERVER_DAYS), (files[2], AUTHORITY_DAYS)):
        assert days - 1 <= (expires(file) - now).days <= days
        begin = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_before_utc
        assert begin < now - datetime.timedelta(minutes=30)


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_a_file_without_a_certificate(tmp_path, content):
    (tmp_path / "x.crt").write_bytes(content)
    with pytest.raises(FedEditError, match="x.crt: holds no PEM certificate"):
        expires(tmp_path / "x.crt")
    with pytest.raises(FedEditError, match="y.crt: cannot be read"):
        expires(tmp_path / "y.crt")


def test_an_authority_with_an_rsa_key_signs(tmp_path):
    key = rsa.generate_private_key(65537, 2048)
    given = _self_signed(key, authority=True)
    made = issue_server_certificate(given, ["localhost"])
    for name, content in (("c", made.public), ("k", made.private), ("a", given.public)):
        (tmp_path / name).write_bytes(content)

    problem = handshake_problem(tmp_path / "c", tmp_path / "k", tmp_path / "a", "localhost")
    assert problem is None


def test_what_cannot_sign(authority):
    other = make_authority("Other")
    server = issue_server_certificate(authority, ["localhost"])
    locked = serialization.load_pem_private_key(authority.private, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for pair, told in (
        (Pair(authority.public, other.private), "does not belong to the CA certificate"),
        (server, "may not sign others"),
        (Pair(b"x", authority.private), "not one of an authority"),
        (Pair(authority.public, b"x"), "CA key: cannot be read"),
        (Pair(authority.public, locked), "CA key: cannot be read"),
    ):
        with pytest.raises(FedEditError, match=told):
            issue_server_certificate(pair, ["localhost"])


def _self_signed(key: rsa.RSAPrivateKey, authority: bool) -> Pair:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RSA authority")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(made.public_bytes(serialization.Encoding.PEM), private)


# Node keys


def test_a_node_key_is_what_flower_and_openssh_take(tmp_path):
    pair = make_node_key()
    private = serialization.load_ssh_private_key(pair.private, None)
    assert uses_nist_ec_curve(private.public_key())
    assert private.curve.name == "secp384r1"

    (tmp_path / "a.pub").write_bytes(pair.public)
    public = read_public_key(tmp_path / "a.pub")
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / "a.pub"], capture_output=True, text=True, check=True
    )
    assert key_fingerprint(public) in listed.stdout.split()


def test_what_is_no_public_key_of_a_node(tmp_path):
    pair = make_node_key()
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    line = other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    for content, told in (
        (pair.private, "private key, which must not leave its node"),
        (b"hello", "holds no public key"),
        (b"\xff\xfe", "holds no public key"),
        (line, "elliptic curve key"),
    ):
        (tmp_path / "a.pub").write_bytes(content)
        with pytest.raises(FedEditError, match=told):
            read_public_key(tmp_path / "a.pub")
    with pytest.raises(FedEditError, match="b.pub: cannot be read"):
        read_public_key(tmp_path / "b.pub")


def test_private_files(tmp_path):
    file = tmp_path / "secret.key"
    write_private(file, b"one")
    assert file.stat().st_mode & 0o777 == 0o600
    check_private(file)

    with pytest.raises(FedEditError, match="never overwritten"):
        write_private(file, b"two")
    assert file.read_bytes() == b"one"
    write_private(file, b"three", replace=True)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"three", 0o600)

    file.chmod(0o640)
    with pytest.raises(FedEditError, match="chmod 600"):
        check_private(file)
    with pytest.raises(FedEditError, match="no such file"):
        check_private(tmp_path / "none.key")
