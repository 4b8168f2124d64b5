"""An HBONE client: opens CONNECT streams through podIP:15008 and reports what came of them, as one JSON document."""

import argparse
import json
import ssl
import sys
import time

import h2.events

import hbone


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--to", required=True, help="ADDRESS:PORT of the tunnel; IPv6 in brackets")
    p.add_argument("--cert")
    p.add_argument("--key")
    p.add_argument("--roots", help="without it any server is believed")
    p.add_argument("--alpn", default="h2", help="empty for none")
    p.add_argument("--tls12", action="store_true", help="offer TLS 1.2 only")
    p.add_argument("--method", default="CONNECT")
    p.add_argument("--authority", default="")
    p.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--streams", type=int, default=1, help="that many at once, all alike")
    p.add_argument("--send", default="ping", help="text to send on each stream")
    p.add_argument("--send-bytes", type=int, default=0, help="send that many bytes instead of the text")
    p.add_argument("--no-end", action="store_true", help="do not end the sending side")
    p.add_argument("--reset-after", type=int, help="reset each stream once that many bytes came back")
    p.add_argument("--late", action="store_true", help="send nothing before the answer is there")
    p.add_argument("--flood-streams", type=int, default=0, help="first open that many streams to --flood-authority and fill them")
    p.add_argument("--flood-authority", default="")
    p.add_argument("--flood-bytes", type=int, default=8 << 20)
    p.add_argument("--unread", action="store_true", help="never give window back for what comes on the flooded streams")
    p.add_argument("--stream-window", type=int, default=4 << 20)
    p.add_argument("--connection-window", type=int, default=16 << 20)
    p.add_argument("--timeout", type=float, default=10, help="seconds for all of it")
    p.add_argument("--hold", type=float, default=0, help="keep the connection that long after the streams")
    p.add_argument("--resume", action="store_true", help="a second connection with the session of the first")
    p.add_argument("--ping", action="store_true", help="send a PING and wait for its answer")
    return p.parse_args()


def connect(args, session=None):
    context = hbone.context(False, args.cert, args.key, args.roots)
    if args.tls12:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if args.alpn != "h2":
        context.set_alpn_protocols([args.alpn] if args.alpn else [])
    address, _, port = args.to.rpartition(":")
    tcp = hbone.dial(address.strip("[]"), int(port))
    return context, tcp


class Run:
    """What happened on one connection."""

    def __init__(self, args):
        self.args = args
        self.report = {"stage": "tcp", "error": None, "streams": [], "goaway": None, "pong": False}
        self.streams = {}
        self.done = set()

    def open(self, tunnel, authority):
        stream = tunnel.h2.get_next_available_stream_id()
        headers = [(":method", self.args.method)]
        if self.args.method != "CONNECT":
            headers += [(":scheme", "https"), (":path", "/")]
        if authority:
            headers.append((":authority", authority))
        headers += [tuple(one.split("=", 1)) for one in self.args.header]
        tunnel.h2.send_headers(stream, headers)
        return stream

    def feed(self, tunnel, stream):
        data = b"\x5a" * self.args.send_bytes if self.args.send_bytes else self.args.send.encode()
        tunnel.send(stream, data)
        if not self.args.no_end:
            tunnel.end(stream)

    def take(self, tunnel, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.PingAckReceived):
            self.report["pong"] = True
        if stream not in self.streams:
            return
        one = self.streams[stream]
        if isinstance(event, h2.events.ResponseReceived):
            one["headers"] = dict(event.headers)
            one["status"] = one["headers"].get(":status")
            if self.args.late:
                self.feed(tunnel, stream)
        elif isinstance(event, h2.events.DataReceived):
            one["received"] += len(event.data)
            if len(one["text"]) < 256:
                one["text"] += event.data[:256].decode("utf-8", "replace")
            if self.args.reset_after and one["received"] >= self.args.reset_after:
                tunnel.reset(stream)
                one["end"] = "we reset"
                self.done.add(stream)
        elif isinstance(event, h2.events.StreamEnded):
            one["end"] = "eof"
            self.done.add(stream)
        elif isinstance(event, h2.events.StreamReset):
            one["end"] = "reset"
            one["code"] = int(event.error_code)
            self.done.add(stream)

    def streams_over(self, tls):
        args = self.args
        tunnel = hbone.Tunnel(tls, True, args.stream_window, args.connection_window)
        end = time.monotonic() + args.timeout
        flooded = []
        for _ in range(args.flood_streams):
            stream = self.open(tunnel, args.flood_authority)
            tunnel.send(stream, b"\x5a" * args.flood_bytes)
            flooded.append(stream)
            if args.unread:
                tunnel.stalled.add(stream)
        flood_end = min(end, time.monotonic() + (2 if flooded else 0))
        while time.monotonic() < flood_end and not tunnel.closed:
            tunnel.pump(0.05)
        self.report["flooded"] = [args.flood_bytes - tunnel.queued(one) for one in flooded]
        if args.ping:
            tunnel.h2.ping(b"8 bytes!")
        while len(self.done) < args.streams and time.monotonic() < end and not tunnel.closed:
            for event in tunnel.pump(0.05)[0]:
                self.report["stage"] = "h2"
                self.take(tunnel, event)
            # Once the server has said how many streams it allows at a time, no more than that.
            if self.report["stage"] == "h2":
                allowed = tunnel.h2.remote_settings.max_concurrent_streams
                while len(self.streams) < args.streams and tunnel.h2.open_outbound_streams < allowed and not tunnel.goaway:
                    stream = self.open(tunnel, args.authority)
                    self.streams[stream] = {"status": None, "headers": {}, "received": 0, "text": "", "end": None}
                    if not args.late:
                        self.feed(tunnel, stream)
        for _ in range(args.streams - len(self.streams)):
            self.streams[len(self.streams) - args.streams] = {"status": None, "end": None, "received": 0, "text": ""}
        hold = time.monotonic() + args.hold
        while time.monotonic() < hold and not tunnel.closed:
            for event in tunnel.pump(0.05)[0]:
                self.take(tunnel, event)
        self.report["streams"] = list(self.streams.values())
        self.report["goaway"] = None if tunnel.goaway is None else int(tunnel.goaway)
        self.report["error"] = tunnel.closed
        self.report["session"] = tls.session is not None
        session = tls.session
        tunnel.close()
        return session

    def once(self, session=None, context=None):
        try:
            made, tcp = connect(self.args)
            context = context or made
            self.report["stage"] = "tls"
            tls = context.wrap_socket(tcp, session=session)
            self.report["tls"] = {
                "version": tls.version(),
                "cipher": tls.cipher()[0],
                "alpn": tls.selected_alpn_protocol(),
                "uris": hbone.uris(tls),
                "resumed": bool(tls.session_reused),
            }
            # TLS 1.3: the server judges our certificate after our side of the handshake is done.
            self.report["stage"] = "tls-client-done"
            return context, self.streams_over(tls)
        except (OSError, ssl.SSLError) as error:
            self.report["error"] = f"{type(error).__name__}: {error}"
            return context, None


def main():
    args = arguments()
    run = Run(args)
    context, session = run.once()
    if args.resume and session is not None:
        again = Run(args)
        again.once(session, context)
        run.report["second"] = again.report
    json.dump(run.report, sys.stdout)
    print()


main()
