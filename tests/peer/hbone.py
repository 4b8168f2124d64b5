"""HTTP/2 over TLS for the test peers: one connection, moved by select(2), without threads.

Owns the connection's windows and buffers. Knows nothing of agents, policies or addresses.
"""

import select
import socket
import ssl
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings


def uris(tls):
    """The URI SANs of the certificate that the other side proved; empty when it showed none."""
    certificate = tls.getpeercert() or {}
    return [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]


class Tunnel:
    """An HTTP/2 connection over a TLS socket whose handshake is done."""

    def __init__(self, tls, client, stream_window, connection_window, max_frame=1 << 20, max_streams=100):
        self.tls = tls
        tls.setblocking(False)
        # Validation is off: it wants :scheme and :path, which CONNECT does not have, and the tests send wrong requests on purpose.
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding="utf-8",
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        codes = h2.settings.SettingCodes
        settings = {codes.INITIAL_WINDOW_SIZE: stream_window, codes.MAX_FRAME_SIZE: max_frame}
        if client:
            settings[codes.ENABLE_PUSH] = 0
        else:
            settings[codes.MAX_CONCURRENT_STREAMS] = max_streams
        # Settings changed on the connection would be pending and not part of the preface: replace them as a whole.
        self.h2.local_settings = h2.settings.Settings(client=client, initial_values=settings)
        self.h2.max_inbound_frame_size = max_frame
        self.h2.initiate_connection()
        if connection_window > 65535:
            self.h2.increment_flow_control_window(connection_window - 65535)
        self.wire = bytearray()
        self.pending = {}
        self.ending = set()
        self.stalled = set()
        self.closed = None

    def send(self, stream, data):
        """Queues bytes; they go out as the windows allow."""
        self.pending.setdefault(stream, bytearray()).extend(data)

    def end(self, stream):
        """Ends the sending side of a stream once its queue is empty."""
        self.ending.add(stream)
        self.pending.setdefault(stream, bytearray())

    def reset(self, stream, code=h2.errors.ErrorCodes.CANCEL):
        """Resets a stream at once."""
        self.pending.pop(stream, None)
        self.h2.reset_stream(stream, code)

    def queued(self, stream):
        """Bytes that have not been handed to HTTP/2 yet, for want of window."""
        return len(self.pending.get(stream, b""))

    def _fill(self):
        for stream, data in list(self.pending.items()):
            try:
                while data:
                    room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
                    if room <= 0 or len(self.wire) > 1 << 20:
                        break
                    self.h2.send_data(stream, bytes(data[:room]))
                    del data[:room]
                    self.wire += self.h2.data_to_send()
                if not data and stream in self.ending:
                    self.h2.end_stream(stream)
                    self.ending.discard(stream)
                    del self.pending[stream]
            except (h2.exceptions.StreamClosedError, h2.exceptions.ProtocolError):
                self.pending.pop(stream, None)
                self.ending.discard(stream)

    def _write(self):
        while self.wire:
            try:
                sent = self.tls.send(self.wire)
                del self.wire[:sent]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return

    def _read(self):
        events = []
        for _ in range(64):
            try:
                data = self.tls.recv(1 << 16)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                self.closed = self.closed or "eof"
                break
            try:
                events += self.h2.receive_data(data)
            except h2.exceptions.ProtocolError as error:
                self.closed = f"protocol: {error}"
                break
        return events

    def pump(self, timeout, also=()):
        """Moves bytes for at most `timeout` seconds. Gives HTTP/2 events, and which of the sockets `also` can be read."""
        ready = []
        try:
            self._fill()
            self.wire += self.h2.data_to_send()
            self._write()
            wait = 0 if self.tls.pending() else timeout
            want = [self.tls] if self.wire else []
            readable, _, _ = select.select([self.tls, *also], want, [], wait)
            ready = [one for one in readable if one is not self.tls]
            events = self._read()
        except (ssl.SSLError, OSError) as error:
            self.closed = self.closed or f"{type(error).__name__}: {error}"
            events = []
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.stalled:
                try:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                except h2.exceptions.ProtocolError:
                    pass
            if isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event.error_code
        try:
            self._fill()
            self.wire += self.h2.data_to_send()
            self._write()
        except (ssl.SSLError, OSError) as error:
            self.closed = self.closed or f"{type(error).__name__}: {error}"
        return events, ready

    goaway = None

    def close(self, code=0):
        """GOAWAY, then the end of the connection."""
        try:
            self.h2.close_connection(code)
            self.wire += self.h2.data_to_send()
            end = time.monotonic() + 1
            while self.wire and time.monotonic() < end:
                self._write()
            self.tls.setblocking(True)
            self.tls.settimeout(1)
            self.tls.unwrap()
        except (ssl.SSLError, OSError, ValueError, h2.exceptions.ProtocolError):
            pass
        self.tls.close()


def context(server, cert, key, roots, groups=None):
    """A TLS 1.3 context that shows `cert` and believes `roots` only; names are for the caller to check."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.set_alpn_protocols(["h2"])
    made.check_hostname = False
    if cert:
        made.load_cert_chain(cert, key)
    if roots:
        made.load_verify_locations(roots)
        made.verify_mode = ssl.CERT_REQUIRED
    elif not server:
        made.verify_mode = ssl.CERT_NONE
    if groups:
        made.set_ecdh_curve(groups)
    return made


def dial(address, port, source=None, timeout=5):
    """A TCP connection."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM)
    tcp.settimeout(timeout)
    if source:
        tcp.bind((source, 0))
    tcp.connect((address, port))
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp
