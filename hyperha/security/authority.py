"""The cluster's certificate authority and the certificates of its nodes.

Keys are EC P-256. Certificates are valid from 1970 to 9999, so that a node whose clock is wrong
is still known (S4): a node is refused because it is not of this cluster, never because of a date.
A node's name stands in CN and SAN, the cluster's id in O.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hyperha.errors import ConfigError, NotFoundError

_BEGIN = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate with its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a certificate names."""

    node: str
    cluster_id: str


class Authority:
    """Signs the certificates of one cluster's nodes."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, cluster: str, cluster_id: str) -> Authority:
        """A new authority for one cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"hyperha {cluster}", cluster_id)
        certificate = (
            _builder(name, name, key.public_key(), key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """The authority kept in two PEM files; only the node of `cluster init` has the key."""
        try:
            private = serialization.load_pem_private_key(key.read_bytes(), None)
            public = x509.load_pem_x509_certificate(certificate.read_bytes())
        except FileNotFoundError as problem:
            raise NotFoundError(
                f"the cluster's authority is not on this node: {problem.filename} does not exist",
                "Run the command on the node where `cluster init` was run.",
            ) from problem
        except ValueError as problem:
            raise ConfigError(f"{key} or {certificate} is not PEM of this authority") from problem
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{key} is not an EC key")
        if private.public_key() != public.public_key():
            raise ConfigError(f"{key} is not the key of {certificate}")
        return cls(public, private)

    @property
    def credentials(self) -> Credentials:
        """The authority's own certificate and key."""
        return Credentials(_pem(self._certificate), _private_pem(self._key))

    def issue(self, node: str, addresses: Iterable[str]) -> Credentials:
        """A certificate for `node`, usable as server and client, with its LAN addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(node, _text(self._certificate.subject, NameOID.ORGANIZATION_NAME))
        names: list[x509.GeneralName] = [x509.DNSName(node)]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(_pem(certificate), _private_pem(key))


def self_signed(name: str) -> Credentials:
    """A certificate that vouches for itself: of a service that is known by its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name, "")
    certificate = (
        _builder(subject, subject, key.public_key(), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credentials(_pem(certificate), _private_pem(key))


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of a certificate, as people compare it: pairs of digits with colons."""
    digest = x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256())
    return digest.hex(":").upper()


def holder_of(certificate_der: bytes) -> Holder:
    """Whom a certificate names; its signature must have been verified before."""
    subject = x509.load_der_x509_certificate(certificate_der).subject
    return Holder(_text(subject, NameOID.COMMON_NAME), _text(subject, NameOID.ORGANIZATION_NAME))


def issued_by(certificate_pem: bytes, authority_pem: bytes) -> bool:
    """Whether this authority signed this certificate."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    authority = x509.load_pem_x509_certificate(authority_pem)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _name(common: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
        ]
    )


def _text(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value) if found else ""


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
