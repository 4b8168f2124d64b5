"""What an ordinary test program does not do: odd sockets, raw packets, stolen ports, BPF programs of others.

Run inside pods by the suite `evasion`; each verb prints JSON. It knows nothing of the mesh.
"""

import argparse
import ctypes
import errno
import json
import os
import select
import socket
import struct
import sys
import threading
import time

IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
TCP_FASTOPEN_NO_COOKIE = 34
SO_REUSEPORT = 15
AF_PACKET_IP = {4: 0x0800, 6: 0x86DD}
LIBC = ctypes.CDLL(None, use_errno=True)


def say(**what):
    print(json.dumps(what), flush=True)


def name_of(error):
    return errno.errorcode.get(error.errno, str(error)) if error.errno else str(error)


def shown(address):
    """ADDRESS:PORT, v4-mapped addresses as IPv4."""
    host = address[0].removeprefix("::ffff:").partition("%")[0]
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def peer_of(sock):
    """getpeername(); none where a reset has come already."""
    try:
        return shown(sock.getpeername())
    except OSError:
        return None


def open_socket(args):
    family = socket.AF_INET6 if ":" in args.to or args.mapped else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP if args.mptcp else 0)
    limit(sock, args)
    if args.device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, args.device.encode())
    if args.no_cookie:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    return sock


def limit(sock, args):
    """Blocking, with a limit: Python's own timeouts make sockets non-blocking, which Fast Open answers otherwise."""
    for option in [socket.SO_RCVTIMEO, socket.SO_SNDTIMEO]:
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(args.timeout), 0))


def talk(sock, args):
    """Connects, sends the text, ends the sending side, receives to the end. What happened, as a dictionary."""
    host = f"::ffff:{args.to}" if args.mapped else args.to
    # With the scope of a link-local address.
    to = socket.getaddrinfo(host, args.port, sock.family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4]
    text, report = args.text.encode(), {"error": None, "text": "", "end": None}
    start = time.monotonic()
    try:
        if args.fast_open == "sendto":
            sock.sendto(text, socket.MSG_FASTOPEN, to)
        else:
            if args.fast_open == "connect":
                sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect(to)
            sock.sendall(text)
        report["peer"], report["local"] = shown(sock.getpeername()), shown(sock.getsockname())
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
        report["text"], report["end"] = received.decode(), "eof"
        report["fast"] = bool(sock.getsockopt(socket.IPPROTO_TCP, 11, 8)[5] & 32)  # tcpi_options: SYN data acknowledged
    except OSError as error:
        late = error.errno in (errno.EAGAIN, errno.EINPROGRESS, errno.ETIMEDOUT)
        report["error"] = "TIMEOUT" if late else name_of(error)
    report["millis"] = int((time.monotonic() - start) * 1000)
    return report


def dial(args):
    try:
        sock = open_socket(args)
    except OSError as error:
        return say(error="socket: " + name_of(error), text="", end=None)
    reports = [talk(sock, args)]
    for _ in range(args.times - 1):
        sock.close()
        sock = open_socket(args)
        reports.append(talk(sock, args))
    say(**reports[-1], all=[report["text"] for report in reports])


def serve(args):
    """Echoes, as a server with odd sockets; says who came and with what."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, IPPROTO_MPTCP if args.mptcp else 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", args.port))
    refused = None
    if args.fast_open:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 128)
    if args.no_cookie:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        except OSError as error:
            refused = name_of(error)
    sock.listen(4096)
    say(event="listening", refused=refused)

    def one(connection, peer):
        received = b""
        say(event="accepted", peer=shown(peer), peer_name=peer_of(connection), local=shown(connection.getsockname()))
        try:
            while chunk := connection.recv(65536):
                received += chunk
                say(event="received", text=chunk.decode(errors="replace"), peer=shown(peer))
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            say(event="failed", error=name_of(error))
        connection.close()

    while True:
        try:
            connection, peer = sock.accept()
            threading.Thread(target=one, args=(connection, peer), daemon=True).start()
        except OSError as error:
            say(event="failed", error=name_of(error))


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(args, source_port):
    """A SYN, with data if asked for, from any source: a whole Ethernet frame."""
    family, version = (socket.AF_INET6, 6) if ":" in args.to else (socket.AF_INET, 4)
    source, target = socket.inet_pton(family, args.source), socket.inet_pton(family, args.to)
    data = args.data.encode()
    # TCP Fast Open (RFC 7413): kind 34, here with a cookie that nobody has given.
    options = {"none": b"", "ask": b"\x22\x02\x01\x01", "forged": b"\x22\x0a" + b"\x5a" * 8 + b"\x01\x01"}[args.cookie]
    header = struct.pack("!HHIIBBHHH", source_port, args.port, 1000, 0, (20 + len(options)) // 4 << 4, 2, 65535, 0, 0)
    tcp = header + options + data
    pseudo = source + target + struct.pack("!II" if version == 6 else "!HH", *((len(tcp), 6) if version == 6 else (6, len(tcp))))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    if version == 6:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + source + target
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + source + target
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    mac = bytes.fromhex(args.mac.replace(":", ""))
    return mac + b"\x02\0\0\0\0\x01" + struct.pack("!H", AF_PACKET_IP[version]) + ip + tcp


def raw(args):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((args.device, 0))
    for number in range(args.times):
        sock.send(packet(args, 20000 + number))
    say(sent=args.times)


def hand(args):
    """Makes a socket here and passes it to whoever listens at the Unix socket."""
    sock = socket.socket(socket.AF_INET6 if args.six else socket.AF_INET, socket.SOCK_STREAM)
    way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end = time.monotonic() + 10
    while True:
        try:
            way.connect(args.path)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
    socket.send_fds(way, [b"x"], [sock.fileno()])
    say(handed=True)


def take(args):
    """Takes a socket that somebody passes and connects with it."""
    way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    way.bind(args.path)
    way.listen(1)
    way.settimeout(15)
    _, fds, _, _ = socket.recv_fds(way.accept()[0], 1, 1)
    sock = socket.socket(fileno=fds[0])
    limit(sock, args)
    say(**talk(sock, args))


def move(args):
    """Makes a socket, moves into another cgroup, connects with that socket and with one made there."""
    before = open_socket(args)
    with open(os.path.join(args.cgroup, "cgroup.procs"), "w") as procs:
        procs.write("0")
    after = open_socket(args)
    say(before=talk(before, args), after=talk(after, args))


def unshare(args):
    """Connects out of a network namespace of its own."""
    if LIBC.unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    say(**talk(open_socket(args), args))


def steal(args):
    """Binds and joins every port that it can, on every address, and says when anything comes."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    poll, kept, taken, refused = select.epoll(), {}, [], []

    def bind(host, port):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
        try:
            sock.bind((host, port))
            sock.listen(128)
        except OSError:
            sock.close()
            return False
        sock.setblocking(False)
        kept[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
        return True

    agents = listeners_on_loopback()
    for port in agents:
        got = [host for host in ["::ffff:127.0.0.1", "::1", "::", *args.address] if bind(host, port)]
        (taken if "::ffff:127.0.0.1" in got else refused).append(port)
    # On the pod's own addresses too: the kernel prefers the more precise.
    count = sum(bind(host, port) for host in args.address for port in [15001, 15006, 15008, *range(15104, 15168)])
    # The agent's ports first: should descriptors run out, it is the others that are missing.
    ports = sorted(range(args.first, args.last + 1), key=lambda port: not 15000 <= port < 15200)
    count += sum(bind("::", port) for port in ports if port not in args.spare)
    say(event="ready", bound=count, agents=agents, joined=taken, refused=refused)
    stolen = 0
    while True:
        for fd, _ in poll.poll():
            try:
                connection, peer = kept[fd].accept()
            except OSError:
                continue
            stolen += 1
            say(event="stolen", count=stolen, peer=shown(peer), local=shown(connection.getsockname()))
            connection.close()


def listeners_on_loopback():
    """Ports on which somebody listens at 127.0.0.1 (as such or v4-mapped)."""
    ports = set()
    for name in ["tcp", "tcp6"]:
        with open(f"/proc/self/net/{name}") as table:
            for line in list(table)[1:]:
                _, local, _, state = line.split()[:4]
                host, port = local.rsplit(":", 1)
                if state == "0A" and host.endswith("0100007F"):
                    ports.add(int(port, 16))
    return sorted(ports)


# BPF by hand: opcodes of linux/bpf.h, attributes of bpf(2).
MOV, MOV_IMM, LOAD, JNE, STORE, EXIT = 0xBF, 0xB7, 0x61, 0x56, 0x63, 0x95
ATTACH = {"connect4": 10, "connect6": 11, "getpeername4": 29, "getpeername6": 30}
USER_IP4, USER_IP6, USER_PORT = 4, 8, 24


def instruction(code, to=0, source=0, offset=0, value=0):
    return struct.pack("<BBhi", code, to | source << 4, offset, value)


def words(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw_address = socket.inet_pton(family, host)
    start = USER_IP6 if family == socket.AF_INET6 else USER_IP4
    return [(start + at, struct.unpack_from("<i", raw_address, at)[0]) for at in range(0, len(raw_address), 4)]


def rewriter(was, now):
    """A program that turns one address and port into another, and lets everything pass."""
    port = lambda number: socket.htons(number)
    change = [(at, value) for at, value in words(now[0])] + [(USER_PORT, port(now[1]))]
    store = lambda at, value: instruction(MOV_IMM, to=3, value=value) + instruction(STORE, to=6, source=3, offset=at)
    body = b"".join(store(at, value) for at, value in change)
    wanted = words(was[0]) + [(USER_PORT, port(was[1]))]
    code = instruction(MOV, to=6, source=1)
    for number, (at, value) in enumerate(wanted):
        rest = (len(wanted) - number - 1) * 2 + len(change) * 2
        code += instruction(LOAD, to=2, source=6, offset=at) + instruction(JNE, to=2, offset=rest, value=value)
    return code + body + instruction(MOV_IMM, to=0, value=1) + instruction(EXIT)


def bpf(command, attributes):
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    done = LIBC.syscall(number, command, buffer, len(attributes))
    if done < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return done


def attach_program(kind, code, name, attach, target):
    """Loads a program and attaches it for as long as the descriptor that this gives is open."""
    text, log = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(1 << 16)
    licence = ctypes.create_string_buffer(b"GPL")
    at = ctypes.addressof
    load = struct.pack("<IIQQIIQII", kind, len(code) // 8, at(text), at(licence), 1, len(log), at(log), 0, 0)
    load += name.ljust(16, b"\0") + struct.pack("<II", 0, attach)
    try:
        program = bpf(5, load)
    except OSError:
        sys.stderr.write(log.value.decode())
        raise
    return bpf(28, struct.pack("<IIII", program, target, attach, 0))


def look(args):
    """A program of somebody else that sees the packets of this network namespace, and lets everything pass."""
    code = instruction(MOV_IMM, to=0, value=1) + instruction(EXIT)
    kept = attach_program(30, code, b"look_on", 36, os.open("/proc/self/ns/net", os.O_RDONLY))
    say(event="ready", link=kept)
    threading.Event().wait()


def balance(args):
    """A socket-level load balancer: on a cgroup, turns service addresses into a backend's, and names back. Stays as long as it runs."""
    cgroup = os.open(args.cgroup, os.O_RDONLY)
    kept = []
    for service, backend in zip(args.services, args.backends, strict=True):
        six = "6" if ":" in service else "4"
        for hook, was, now in [("connect", service, backend), ("getpeername", backend, service)]:
            ports = (args.port, args.target) if hook == "connect" else (args.target, args.port)
            code = rewriter((was, ports[0]), (now, ports[1]))
            attach = ATTACH[hook + six]
            kept.append(attach_program(18, code, b"balance_" + hook.encode()[:7], attach, cgroup))
    say(event="ready")
    threading.Event().wait()


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(required=True)

    def verb(name, function):
        one = verbs.add_parser(name)
        one.set_defaults(run=function)
        return one

    def client(name, function):
        one = verb(name, function)
        one.add_argument("to")
        one.add_argument("port", type=int)
        one.add_argument("--mapped", action="store_true")
        one.add_argument("--mptcp", action="store_true")
        one.add_argument("--no-cookie", action="store_true")
        one.add_argument("--fast-open", choices=["sendto", "connect"])
        one.add_argument("--device")
        one.add_argument("--text", default="ping")
        one.add_argument("--timeout", type=float, default=5)
        one.add_argument("--times", type=int, default=1)
        return one

    client("dial", dial)
    client("unshare", unshare)
    client("take", take).add_argument("path")
    client("move", move).add_argument("cgroup")
    one = verb("serve", serve)
    one.add_argument("port", type=int)
    one.add_argument("--mptcp", action="store_true")
    one.add_argument("--fast-open", action="store_true")
    one.add_argument("--no-cookie", action="store_true")
    one = verb("raw", raw)
    for argument in ["device", "mac", "source", "to"]:
        one.add_argument(argument)
    one.add_argument("port", type=int)
    one.add_argument("--data", default="")
    one.add_argument("--cookie", choices=["none", "ask", "forged"], default="none")
    one.add_argument("--times", type=int, default=1)
    one = verb("hand", hand)
    one.add_argument("path")
    one.add_argument("--six", action="store_true")
    one = verb("steal", steal)
    one.add_argument("--address", action="append", default=[])
    one.add_argument("--spare", type=int, action="append", default=[])
    one.add_argument("--first", type=int, default=1)
    one.add_argument("--last", type=int, default=32767)
    verb("look", look)
    one = verb("balance", balance)
    one.add_argument("cgroup")
    one.add_argument("port", type=int)
    one.add_argument("target", type=int)
    one.add_argument("--services", nargs="+")
    one.add_argument("--backends", nargs="+")
    args = parser.parse_args()
    args.run(args)


main()
