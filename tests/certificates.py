"""A certificate authority for the tests of TLS, with a certificate for servers and one for clients."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from tests.programs import ServerNotInstalled

_SETTINGS: Final = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[member]
basicConstraints = critical, CA:false
subjectAltName = IP:127.0.0.1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Certificates:
    """An authority that nobody else trusts, and what it has signed; all for 127.0.0.1 and `localhost`, for two days.

    Args:
        folder: Where the files go.

    Raises:
        ServerNotInstalled: There is no openssl.

    Attributes:
        authority: What to trust.
        server: A server's certificate, and `server_key` its key.
        client: A client's certificate, and `client_key` its key.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            raise ServerNotInstalled("openssl", "openssl")
        self._folder = folder
        (folder / "openssl.conf").write_text(_SETTINGS)
        self.authority = self._make("authority", "-extensions", "authority")
        self._authority_key = folder / "authority.key"
        signed = ("-extensions", "member", "-CA", str(self.authority), "-CAkey", str(self._authority_key))
        self.server, self.server_key = self._make("server", *signed), folder / "server.key"
        self.client, self.client_key = self._make("client", *signed), folder / "client.key"

    def _make(self, name: str, *more: str) -> Path:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files = ("-config", str(self._folder / "openssl.conf"), "-keyout", str(key), "-out", str(certificate))
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        subprocess.run(
            ["openssl", "req", "-x509", *kind, "-subj", f"/CN=tests {name}", *files, *more],
            check=True,
            capture_output=True,
            timeout=60,
        )
        return certificate

    def context(self) -> ssl.SSLContext:
        """Return what a client connects with: it trusts the authority alone, and shows its own certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.client, self.client_key)
        return context

    @property
    def redis_options(self) -> str:
        """What follows the `?` of a rediss:// URL."""
        files = {"ssl_ca_certs": self.authority, "ssl_certfile": self.client, "ssl_keyfile": self.client_key}
        return urlencode({name: str(path) for name, path in files.items()}, safe="/")

    @property
    def amqp_options(self) -> str:
        """What follows the `?` of an amqps:// URL."""
        files = {"ca_certs": self.authority, "certfile": self.client, "keyfile": self.client_key}
        return f"ssl_options={quote(repr({name: str(path) for name, path in files.items()}), safe='/')}"
