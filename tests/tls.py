"""TLS before a server that speaks none: a certificate authority, a certificate of `localhost`, and a proxy."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

READ_BYTES = 65_536
STARTED_SECONDS_MAX = 30


def write_certificates(folder: Path, name: str) -> Path:
    """An authority and, signed by it, a certificate of `localhost`; returns the authority's file."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate(f"authority {name}", authority_key, None)
    server = _certificate("localhost", server_key, (authority, authority_key))
    (folder / f"{name}-ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}-server.pem").write_bytes(
        server_key.private_bytes(serialization.Encoding.PEM, *plain) + server.public_bytes(serialization.Encoding.PEM)
    )
    return folder / f"{name}-ca.pem"


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signed_by: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by[0].subject if signed_by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signed_by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", "-"))]), critical=False)
        .sign(signed_by[1] if signed_by else key, hashes.SHA256())
    )


@contextmanager
def tls_before(port: int, certificate: Path | None, *, host: str = "127.0.0.1") -> Iterator[int]:
    """A proxy before a port of this machine, with TLS where a certificate is given; yields its own port."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def opened() -> asyncio.Server:
        return await asyncio.start_server(lambda r, w: _served(r, w, port), host, 0, ssl=context)

    try:
        server = asyncio.run_coroutine_threadsafe(opened(), loop).result(STARTED_SECONDS_MAX)
        yield server.sockets[0].getsockname()[1]
        asyncio.run_coroutine_threadsafe(_ended(server), loop).result(STARTED_SECONDS_MAX)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _ended(server: asyncio.Server) -> None:
    server.close()
    mine = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not mine]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    ends = [writer]
    try:
        behind, before = await asyncio.open_connection("127.0.0.1", port)
        ends.append(before)
        await asyncio.gather(_copied(reader, before), _copied(behind, writer))
    except OSError:
        pass
    except asyncio.CancelledError:  # the proxy ends: nobody waits for what is on its way
        for one in ends:
            one.transport.abort()
    for one in ends:
        one.close()
        with suppress(OSError):
            await one.wait_closed()  # so that no connection outlives the loop


async def _copied(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(READ_BYTES):
        target.write(data)
        await target.drain()
    target.close()
