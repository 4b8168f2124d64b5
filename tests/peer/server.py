"""An HBONE server: accepts CONNECT on port 15008 and says what happens, a line of JSON each."""

import argparse
import json
import socket
import ssl
import sys
import threading
import time

import h2.errors
import h2.events

import hbone


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--cert", required=True)
    p.add_argument("--key", required=True)
    p.add_argument("--roots", required=True)
    p.add_argument("--port", type=int, default=15008)
    p.add_argument("--status", type=int, default=200, help="answer every CONNECT with this")
    p.add_argument("--mode", choices=["echo", "banner", "sink", "reset", "upstream"], default="echo")
    p.add_argument("--text", default="hello\n", help="what the banner says")
    p.add_argument("--stall-port", type=int, help="streams to this port are answered and never read")
    p.add_argument("--stream-window", type=int, default=4 << 20)
    p.add_argument("--connection-window", type=int, default=16 << 20)
    p.add_argument("--max-streams", type=int, default=100)
    p.add_argument("--goaway-after", type=int, help="GOAWAY once that many streams were opened; they end in peace")
    p.add_argument("--refuse", choices=["goaway", "stream", "close"], help="what becomes of the first stream, once its data has come")
    p.add_argument("--answer-delay", type=float, default=0, help="seconds between a CONNECT and its answer")
    p.add_argument("--no-session-tickets", action="store_true")
    p.add_argument("--groups", help="one key exchange group, by OpenSSL's name")
    return p.parse_args()


LOCK = threading.Lock()
REFUSED = threading.Event()


def say(event, **more):
    with LOCK:
        print(json.dumps({"event": event, **more}), flush=True)


class Connection:
    """One TLS connection and its streams."""

    def __init__(self, args, tls, peer):
        self.args = args
        self.number = tls.getpeername()[1]
        self.peer = peer
        self.uris = hbone.uris(tls)
        self.tunnel = hbone.Tunnel(
            tls, False, args.stream_window, args.connection_window, max_streams=args.max_streams
        )
        self.streams = {}
        self.answers = []
        self.upstreams = {}
        self.gone = set()
        self.last_goaway = None
        self.leaving = False

    def opened(self, event):
        headers = dict(event.headers)
        authority = headers.get(":authority", "")
        self.streams[event.stream_id] = {"authority": authority, "received": 0, "early": []}
        say("stream", peer=self.peer, connection=self.number, uris=self.uris, headers=headers, stream=event.stream_id)
        if self.args.stall_port and authority.endswith(f":{self.args.stall_port}"):
            self.tunnel.stalled.add(event.stream_id)
        self.answers.append((time.monotonic() + self.args.answer_delay, event.stream_id))

    def answer(self, stream):
        status = self.args.status
        if stream in self.gone:
            return
        if self.args.refuse and not REFUSED.is_set():
            REFUSED.set()
            self.refuse(stream)
            return
        if headers_refused := status != 200:
            self.tunnel.h2.send_headers(stream, [(":status", str(status))], end_stream=True)
        elif self.args.mode == "upstream":
            authority = self.streams[stream]["authority"]
            host, _, port = authority.rpartition(":")
            try:
                upstream = hbone.dial(host.strip("[]"), int(port))
                upstream.setblocking(False)
            except OSError:
                self.tunnel.h2.send_headers(stream, [(":status", "503")], end_stream=True)
                return
            self.upstreams[stream] = upstream
            self.tunnel.h2.send_headers(stream, [(":status", "200")])
        else:
            self.tunnel.h2.send_headers(stream, [(":status", "200")])
        if not headers_refused and self.args.mode == "banner":
            self.tunnel.send(stream, self.args.text.encode())
        # Data may follow the CONNECT at once, before its answer.
        early, self.streams[stream]["early"] = self.streams[stream]["early"], None
        for event in early:
            self.take(event)
        opened = len(self.streams)
        if self.args.goaway_after and opened >= self.args.goaway_after and not self.leaving:
            self.leaving = True
            self.goaway()

    def refuse(self, stream):
        early = b"".join(one.data for one in self.streams[stream]["early"] if isinstance(one, h2.events.DataReceived))
        say("refused", peer=self.peer, connection=self.number, stream=stream, how=self.args.refuse, early=early.decode())
        if self.args.refuse == "stream":
            self.gone.add(stream)
            self.tunnel.reset(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        if self.args.refuse == "goaway":
            # Abrupt: in one step, below a stream that is here already, and the connection ends with it.
            self.send_goaway(max(stream - 2, 0))
            self.tunnel.pump(0)
        self.tunnel.closed = "on purpose"

    def goaway(self):
        # In two steps, as RFC 9113, 6.8 recommends: first "no more, please" with the highest id, then, when streams that were under way
        # have arrived, the last one served. h2 offers no graceful GOAWAY (its close_connection ends the state machine): by hand.
        self.send_goaway((1 << 31) - 1)
        self.last_goaway = time.monotonic() + 1

    def send_goaway(self, last):
        self.tunnel.wire += self.tunnel.h2.data_to_send()
        self.tunnel.wire += (8).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + last.to_bytes(4, "big") + bytes(4)
        say("goaway", peer=self.peer, connection=self.number, last=last)

    def take(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            self.opened(event)
        elif stream in self.streams and self.streams[stream]["early"] is not None and isinstance(
            event, (h2.events.DataReceived, h2.events.StreamEnded)
        ):
            self.streams[stream]["early"].append(event)
        elif isinstance(event, h2.events.DataReceived) and stream in self.streams:
            self.data(stream, event.data)
        elif isinstance(event, h2.events.StreamEnded) and stream in self.streams:
            if self.args.status == 200 and self.args.mode in ("echo", "banner", "sink"):
                self.tunnel.end(stream)
            if stream in self.upstreams:
                self.upstreams[stream].shutdown(socket.SHUT_WR)
            say("end", peer=self.peer, stream=stream, end="eof", received=self.streams[stream]["received"])
        elif isinstance(event, h2.events.StreamReset) and stream in self.streams:
            self.gone.add(stream)
            if stream in self.upstreams:
                self.upstreams.pop(stream).close()
            say("end", peer=self.peer, stream=stream, end="reset", received=self.streams[stream]["received"])

    def data(self, stream, data):
        self.streams[stream]["received"] += len(data)
        if self.args.status != 200:
            return
        if self.args.mode == "reset":
            self.tunnel.reset(stream, h2.errors.ErrorCodes.CANCEL)
        elif stream in self.upstreams:
            upstream = self.upstreams[stream]
            upstream.setblocking(True)
            upstream.sendall(data)
            upstream.setblocking(False)
        elif self.args.mode in ("echo", "banner") and stream not in self.tunnel.stalled:
            self.tunnel.send(stream, data)

    def from_upstream(self, upstream):
        stream = next(key for key, value in self.upstreams.items() if value is upstream)
        try:
            data = upstream.recv(1 << 16)
        except OSError:
            self.tunnel.reset(stream)
            self.upstreams.pop(stream).close()
            return
        if data:
            self.tunnel.send(stream, data)
        else:
            self.tunnel.end(stream)
            self.upstreams.pop(stream)

    def run(self):
        while not self.tunnel.closed:
            due = [stream for when, stream in self.answers if when <= time.monotonic()]
            self.answers = [one for one in self.answers if one[1] not in due]
            for stream in due:
                self.answer(stream)
            if self.last_goaway and time.monotonic() > self.last_goaway:
                self.last_goaway = None
                self.send_goaway(max(self.streams))
            events, ready = self.tunnel.pump(0.02, list(self.upstreams.values()))
            for event in events:
                self.take(event)
            for upstream in ready:
                self.from_upstream(upstream)
        say("closed", peer=self.peer, why=self.tunnel.closed)
        self.tunnel.close()


def serve(args, context, tcp, peer):
    try:
        tcp.settimeout(5)
        tls = context.wrap_socket(tcp, server_side=True)
        # The client judges our certificate: what it thinks of it shows in the first read at the latest.
        say(
            "handshake",
            peer=peer,
            ok=True,
            uris=hbone.uris(tls),
            version=tls.version(),
            cipher=tls.cipher()[0],
            alpn=tls.selected_alpn_protocol(),
            resumed=bool(tls.session_reused),
        )
    except (OSError, ssl.SSLError) as error:
        say("handshake", peer=peer, ok=False, error=str(error))
        return
    try:
        Connection(args, tls, peer).run()
    except Exception as error:
        say("closed", peer=peer, why=f"{type(error).__name__}: {error}")
        raise


def main():
    args = arguments()
    context = hbone.context(True, args.cert, args.key, args.roots, args.groups)
    if args.no_session_tickets:
        context.num_tickets = 0
    listener = socket.create_server(("::", args.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    say("listening", port=args.port)
    while True:
        tcp, address = listener.accept()
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(args, context, tcp, address[0].removeprefix("::ffff:")), daemon=True).start()


main()
