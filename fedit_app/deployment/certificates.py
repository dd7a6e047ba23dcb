"""TLS certificates of a federation's server, with P-384 keys."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedit_app.mkv.node_key import Pair
from fedit_app.support.errors import FedEditError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EARLIER = timedelta(hours=1)  # for nodes whose clock is slow


def make_authority(name: str) -> Pair:
    """Make a certificate authority for one federation, valid for ten years.

    Args:
        name: common name of its certificate.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return _signed(builder, key, key)


def issue_server_certificate(authority: Pair, hosts: Sequence[str]) -> Pair:
    """Make a server certificate, valid for 825 days.

    Args:
        authority: certificate and key of the authority that signs it.
        hosts: host names and IP addresses of the server; localhost, 127.0.0.1 and ::1 are added.

    Raises:
        FedEditError: certificate and key of the authority do not belong together or cannot be read,
            or the certificate is not that of an authority.
    """
    issuer, issuer_key = _authority_certificate(authority), _authority_key(authority)
    if issuer_key.public_key() != issuer.public_key():
        raise FedEditError("CA key: does not belong to the CA certificate")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    builder = _builder(subject, issuer.subject, key.public_key(), SERVER_DAYS)
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(usage, critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
    )
    return _signed(builder, key, issuer_key)


def _authority_certificate(authority: Pair) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificate(authority.public)
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise FedEditError(f"CA certificate: not one of an authority ({error})") from None
    if not constraints.ca:
        raise FedEditError("CA certificate: may not sign others; name the authority's own")
    return found


def _authority_key(authority: Pair) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(authority.private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedEditError(f"CA key: cannot be read, PEM without a password? ({error})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise FedEditError("CA key: must be an elliptic or an RSA key")
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) - _EARLIER
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> Pair:
    certificate = builder.sign(signer, hashes.SHA384())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), private)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def expires(certificate: Path) -> datetime:
    """The end of validity of the first certificate in a PEM file.

    Raises:
        FedEditError: the file cannot be read, or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except OSError as error:
        raise FedEditError(
            f"certificate {certificate}: cannot be read ({error.strerror})"
        ) from None
    except ValueError:
        raise FedEditError(f"certificate {certificate}: holds no PEM certificate") from None


def handshake_problem(certificate: Path, key: Path, authority: Path, host: str) -> str | None:
    """Try a TLS handshake in memory; the reason if a client would not trust the server.

    Args:
        certificate: the server's certificate, followed by intermediate ones, if any.
        key: its private key.
        authority: the authority's certificate, as clients have it.
        host: host name or IP address under which clients reach the server.

    Returns:
        The reason in one line, or None.
    """
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate, key)
        client = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        return f"certificate, key and CA certificate cannot be loaded together ({error})"
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except ssl.SSLError as error:
                return str(error)
    return None
