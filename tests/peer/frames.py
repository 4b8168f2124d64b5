"""HTTP/2 frames by hand, right and wrong ones, for the hostile peers. Knows neither windows nor states: who sends these wants trouble."""

import ssl

import hpack

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
UNKNOWN = 0xBE
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def word(number):
    return number.to_bytes(4, "big")


def settings(**values):
    codes = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "headers": 6}
    return frame(SETTINGS, payload=b"".join(codes[k].to_bytes(2, "big") + word(v) for k, v in values.items()))


def window(stream, increment):
    return frame(WINDOW, stream=stream, payload=word(increment))


def reset(stream, code=8):
    return frame(RST, stream=stream, payload=word(code))


def goaway(last, code=0):
    return frame(GOAWAY, payload=word(last) + word(code))


class Wire:
    """A TLS socket with a reader for frames. Headers are decoded, so that the compression's state stays right."""

    def __init__(self, tls):
        self.tls = tls
        self.buffer = bytearray()
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.seen = {"goaway": None, "resets": {}, "statuses": {}, "data": 0, "pongs": 0}
        self.end = None

    def headers(self, stream, headers, flags=END_HEADERS):
        return frame(HEADERS, flags, stream, self.encoder.encode(headers))

    def connect(self, stream, authority, flags=END_HEADERS):
        return self.headers(stream, [(":method", "CONNECT"), (":authority", authority)], flags)

    def send(self, data, timeout=10):
        """Sends all of it; False when the peer has cut us meanwhile or takes no more."""
        self.tls.settimeout(timeout)
        try:
            view = memoryview(data)
            while view:
                view = view[self.tls.send(view[: 1 << 18]) :]
            return True
        except (OSError, ssl.SSLError) as error:
            self.end = self.end or f"{type(error).__name__}: {error}"
            return False

    def read(self, timeout):
        """The frames that come within `timeout` seconds of silence, as (kind, flags, stream, payload). Sets `end` when it is the end."""
        self.tls.settimeout(timeout)
        try:
            data = self.tls.recv(1 << 16)
            if data:
                self.buffer += data
            else:
                self.end = self.end or "eof"
        except (TimeoutError, ssl.SSLWantReadError):
            return []
        except (OSError, ssl.SSLError) as error:
            self.end = self.end or f"{type(error).__name__}: {error}"
        frames = []
        while len(self.buffer) >= 9:
            length = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + length:
                break
            kind, flags = self.buffer[3], self.buffer[4]
            stream = int.from_bytes(self.buffer[5:9], "big")
            payload = bytes(self.buffer[9 : 9 + length])
            del self.buffer[: 9 + length]
            self.note(kind, flags, stream, payload)
            frames.append((kind, flags, stream, payload))
        return frames

    def note(self, kind, flags, stream, payload):
        if kind == GOAWAY:
            self.seen["goaway"] = int.from_bytes(payload[4:8], "big")
        elif kind == RST:
            code = str(int.from_bytes(payload, "big"))
            self.seen["resets"][code] = self.seen["resets"].get(code, 0) + 1
        elif kind == HEADERS:
            for name, value in self.decoder.decode(payload):
                if name == ":status":
                    self.seen["statuses"][value] = self.seen["statuses"].get(value, 0) + 1
        elif kind == DATA:
            self.seen["data"] += len(payload)
        elif kind == PING and flags & ACK:
            self.seen["pongs"] += 1
