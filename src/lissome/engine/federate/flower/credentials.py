"""Certificates and keys of a federation: one authority, the server's certificate, and a key pair for each client.

The server keeps ``ca.key`` and ``server.key`` for itself; a client is given its own folder, in which ``key`` is secret
and ``ca.crt`` tells it whom to trust. Nothing is ever overwritten: a key that is replaced locks somebody out.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lissome.core.errors import ConfigError
from lissome.core.files import check_writable, write_text
from lissome.core.optional import optional_import
from lissome.engine.federate.flower.deployment import Security

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*_.-]{0,252}|[0-9a-fA-F.:]*:[0-9a-fA-F.:]*")
_OWN = ("127.0.0.1", "localhost")  # the server's own commands reach it so
_SKEW = datetime.timedelta(hours=1)  # clocks of machines differ


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where the files lie.

    Attributes:
        folder: Folder of all of them.
    """

    folder: Path

    @property
    def server(self) -> Security:
        """What a server needs."""
        return Security(
            authority=self.folder / "ca.crt", certificate=self.folder / "server.crt", key=self.folder / "server.key"
        )

    def client(self, name: str) -> Path:
        """Folder of a client: ``key``, ``key.pub`` and ``ca.crt``."""
        return self.folder / "clients" / name

    def clients(self) -> dict[str, Path]:
        """Public keys of all clients, by name."""
        return {path.parent.name: path for path in sorted((self.folder / "clients").glob("*/key.pub"))}


def make_credentials(
    folder: Path, clients: Sequence[str], *, hosts: Sequence[str] = (), days: int = 365
) -> Credentials:
    """Make what is not there yet: the authority, the server's certificate, and the keys of clients.

    Args:
        folder: Where they go.
        clients: Names of the clients.
        hosts: Names and addresses by which clients reach the server, besides this machine's own; of a certificate that
            is there they stay.
        days: How long certificates hold.

    Raises:
        ConfigError: When the folder cannot be written, a name cannot be a folder's, or differs from another in case
            alone.
        MissingExtraError: When the library `cryptography` is not installed.
    """
    for name in clients:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not a name of a client; use letters, digits, '.', '_' and '-'.")
    _require_apart(clients, there=(path.name for path in (folder / "clients").glob("*")))
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{host!r} is not a host; give --host a name such as fed.example.org, or an address.")
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the credentials.")
    made = Credentials(folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    authority = _authority(made, days)
    if not made.server.certificate.exists():
        _serve(made, authority, list(dict.fromkeys([*hosts, *_OWN])), days)
    for name in clients:
        _admit(made, name)
    return made


def check_own(folder: Path) -> None:
    """Refuse a client's folder that Flower could not use: its node would not end, and say so in its log alone.

    Raises:
        ConfigError: When the key or the certificate is missing or damaged; names the file.
        MissingExtraError: When the library `cryptography` is not installed.
    """
    key, certificate = folder / "key", folder / "ca.crt"
    if not key.exists():
        raise ConfigError(f"{folder} holds no key; give the folder that the server's owner made for this client.")
    if not certificate.exists():
        raise ConfigError(f"{folder} holds no ca.crt, by which the server is known; have its owner give it again.")
    unsupported = optional_import("cryptography.exceptions", extra="federate").UnsupportedAlgorithm
    for file, what, read in ((key, "private key", _read_key), (certificate, "certificate", _read_certificate)):
        try:
            read(file)
        except (OSError, ValueError, TypeError, unsupported) as error:  # an SSLError is an OSError
            why = " ".join(str(error).split())
            raise ConfigError(f"{file} cannot be read as a {what} ({why}); have its owner give it again.") from error


def _read_key(file: Path) -> None:
    _library("hazmat.primitives.serialization").load_ssh_private_key(file.read_bytes(), None)


def _read_certificate(file: Path) -> None:
    _library("x509").load_pem_x509_certificate(file.read_bytes()).public_key()
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)  # is stricter, and what Flower does


def _require_apart(names: Sequence[str], there: Iterable[str]) -> None:
    """Refuse names that are one folder on a disk which does not tell cases apart: two clients would share a key."""
    known = {name.casefold(): name for name in there}
    for name in names:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(f"{name!r} differs from {other!r} in case alone; give each client a name of its own.")


def _authority(made: Credentials, days: int) -> tuple[Any, Any]:
    """Certificate and key of the authority, made when they are not there."""
    x509, serialization = _library("x509"), _library("hazmat.primitives.serialization")
    file = made.folder / "ca.key"
    if made.server.authority.exists():
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), None)
            return x509.load_pem_x509_certificate(made.server.authority.read_bytes()), key
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{file} or {made.server.authority.name} beside it is missing or damaged; restore them, or make new "
                "credentials in another folder, which all clients then need."
            ) from error
    key, name = _new_key(), _named("lissome federation authority")
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = _certificate(name, name, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = _signed(builder.add_extension(identifier, critical=False), key)
    _secret(file, _pem(key))
    write_text(made.server.authority, _pem_certificate(certificate))
    return certificate, key


def _serve(made: Credentials, authority: tuple[Any, Any], hosts: Sequence[str], days: int) -> None:
    """Make the server's certificate."""
    x509 = _library("x509")
    certificate, signer = authority
    key = _new_key()
    builder = _certificate(_named(hosts[0]), certificate.subject, key, days)
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(purpose, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    issued = _signed(builder.add_extension(issuer, critical=False), signer)
    _secret(made.server.key, _pem(key))
    write_text(made.server.certificate, _pem_certificate(issued))


def _admit(made: Credentials, name: str) -> None:
    """Make the key pair of a client, in the format that Flower reads."""
    serialization = _library("hazmat.primitives.serialization")
    folder = made.client(name)
    if (folder / "ca.crt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    key = _new_key()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _secret(folder / "key", private)
    write_text(folder / "key.pub", public.decode() + "\n")
    write_text(folder / "ca.crt", made.server.authority.read_text())


def _library(name: str) -> Any:
    return optional_import(f"cryptography.{name}", extra="federate")


def _new_key() -> Any:
    curves = _library("hazmat.primitives.asymmetric.ec")
    return curves.generate_private_key(curves.SECP384R1())


def _named(name: str) -> Any:
    x509 = _library("x509")
    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name[:64])])


def _certificate(subject: Any, issuer: Any, key: Any, days: int) -> Any:
    x509 = _library("x509")
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + datetime.timedelta(days=days))


def _signed(builder: Any, key: Any) -> Any:
    return builder.sign(key, _library("hazmat.primitives.hashes").SHA384())


def _alternative(host: str) -> Any:
    x509 = _library("x509")
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: Any) -> bytes:
    serialization = _library("hazmat.primitives.serialization")
    found: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return found


def _pem_certificate(certificate: Any) -> str:
    found: bytes = certificate.public_bytes(_library("hazmat.primitives.serialization").Encoding.PEM)
    return found.decode()


def _secret(file: Path, content: bytes) -> None:
    """Write what only its owner may read; it is never readable by others, not even for a moment.

    Certificates are written after their keys, so that a key without one is of a command that was cut short.
    """
    file.unlink(missing_ok=True)
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(content)
