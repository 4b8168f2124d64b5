"""An HBONE server with a good certificate and bad manners: it does one wrong thing to each connection, once a CONNECT has come or at
once, and says what happens, a line of JSON each."""

import argparse
import json
import socket
import ssl
import threading
import time

import frames
import hbone
from frames import ACK, CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PUSH, RST, SETTINGS, UNKNOWN, frame, window, word

MANY = 300_000
LOCK = threading.Lock()


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--cert", required=True)
    p.add_argument("--key", required=True)
    p.add_argument("--roots", required=True)
    p.add_argument("--port", type=int, default=15008)
    p.add_argument("--attack", choices=sorted(AT_ONCE) + sorted(ON_CONNECT), required=True)
    return p.parse_args()


def say(event, **more):
    with LOCK:
        print(json.dumps({"event": event, **more}), flush=True)


# At once, before any stream: what is sent after the TLS handshake.
AT_ONCE = {
    "goaway": lambda: frames.settings() + frames.goaway(0),
    "no-streams": lambda: frames.settings(streams=0),
    "no-settings": lambda: b"",
    "garbage": lambda: bytes(range(256)) * 100,
}


def informational(wire, stream):
    one = wire.headers(stream, [(":status", "103"), ("link", "x" * 200)])
    more = wire.headers(stream, [(":status", "103"), ("link", "x" * 200)])
    return one + more * MANY


def accepted(wire, stream):
    return wire.headers(stream, [(":status", "200")])


# On the first CONNECT: what is sent then.
ON_CONNECT = {
    "ping": lambda wire, stream: frame(PING, payload=b"12345678") * MANY,
    "settings": lambda wire, stream: (frames.settings(window=1 << 20) + frames.settings(window=1 << 16)) * (MANY // 2),
    "unknown": lambda wire, stream: frame(UNKNOWN) * MANY,
    "big-unknown": lambda wire, stream: frame(UNKNOWN, payload=b"x" * (1 << 20)),
    "resets": lambda wire, stream: frames.reset(stream) * (4 * MANY),
    "reset-idle": lambda wire, stream: frames.reset(stream + 1000),
    "goaways": lambda wire, stream: frames.goaway(stream) * MANY,
    "goaways-growing": lambda wire, stream: frames.goaway(stream) + frames.goaway(stream + 2),
    "informational": informational,
    "continuation": lambda wire, stream: frame(HEADERS, 0, stream, b"\x00\x7f\xff\xff\xff\x07") + frame(CONTINUATION, 0, stream, b"x" * 16384) * 2000,
    "header-bomb": lambda wire, stream: frame(
        HEADERS, END_HEADERS, stream, wire.encoder.encode([(":status", "200"), ("bomb", "x" * 4000)], huffman=False) + b"\xbe" * 1000
    ),
    "push": lambda wire, stream: frame(PUSH, END_HEADERS, stream, word(2) + wire.encoder.encode([(":method", "GET")])),
    "window-overflow": lambda wire, stream: window(0, (1 << 31) - 1) * 2,
    "window-zero": lambda wire, stream: window(0, 0),
    "data-on-idle": lambda wire, stream: frame(DATA, 0, stream + 1000, b"x"),
    "data-before-headers": lambda wire, stream: frame(DATA, 0, stream, b"x"),
    "empty-data": lambda wire, stream: accepted(wire, stream) + frame(DATA, 0, stream) * 5000,
    "big-frame": lambda wire, stream: accepted(wire, stream) + (2 << 20).to_bytes(3, "big") + bytes([DATA, 0]) + word(stream) + b"x" * 70000,
}


class Connection:
    def __init__(self, args, tls):
        self.args, self.wire = args, frames.Wire(tls)

    def run(self):
        attack = self.args.attack
        if attack in AT_ONCE:
            self.wire.send(AT_ONCE[attack]())
        else:
            self.wire.send(frames.settings(streams=100, window=4 << 20, frame=1 << 20) + window(0, (16 << 20) - 65535))
        # The client's preface is no frame.
        rest = len(frames.PREFACE)
        self.wire.tls.settimeout(10)
        while rest:
            got = self.wire.tls.recv(rest)
            if not got:
                return say("closed", why="eof")
            rest -= len(got)
        done, end = False, time.monotonic() + 20
        while not self.wire.end and time.monotonic() < end:
            for kind, flags, stream, payload in self.wire.read(0.2):
                if kind == SETTINGS and not flags & ACK and attack != "no-settings":
                    self.wire.send(frame(SETTINGS, ACK))
                elif kind == PING and not flags & ACK:
                    self.wire.send(frame(PING, ACK, 0, payload))
                elif kind == HEADERS and not done and attack in ON_CONNECT:
                    done = True
                    say("stream", stream=stream)
                    self.wire.send(ON_CONNECT[attack](self.wire, stream))
        seen = self.wire.seen
        say("closed", why=self.wire.end, goaway=seen["goaway"], resets=seen["resets"])


def serve(args, context, tcp):
    try:
        tcp.settimeout(5)
        tls = context.wrap_socket(tcp, server_side=True)
        say("handshake", ok=True)
        Connection(args, tls).run()
        tls.close()
    except (OSError, ssl.SSLError) as error:
        say("closed", why=str(error))


def main():
    args = arguments()
    context = hbone.context(True, args.cert, args.key, args.roots)
    listener = socket.create_server(("::", args.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    say("listening", port=args.port)
    while True:
        tcp, _ = listener.accept()
        threading.Thread(target=serve, args=(args, context, tcp), daemon=True).start()


main()
