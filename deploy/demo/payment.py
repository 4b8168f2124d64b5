#!/usr/bin/env python3
"""An ordinary web service that knows nothing of any mesh: it says who, as far as it can see, its client is.

POST /charge          takes a payment
GET  /statement?n=5   sends one line every 0.2 s, n lines: a connection that lives for a while
"""

import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse


class Payment(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def peer(self):
        return self.client_address[0].removeprefix("::ffff:")

    def answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(f"payment: accepted {len(body)} bytes from {self.peer()}\n")

    def do_GET(self):
        url = urlparse(self.path)
        if url.path != "/statement":
            self.answer(f"payment: hello {self.peer()}\n")
            return
        lines = min(int(parse_qs(url.query).get("n", ["5"])[0]), 1000)
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
        for line in range(lines):
            self.wfile.write(f"line {line}\n".encode())
            self.wfile.flush()
            time.sleep(0.2)
        self.close_connection = True

    def log_message(self, form, *args):
        print(f"{self.peer()} {form % args}", file=sys.stderr, flush=True)


class DualStack(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


if __name__ == "__main__":
    DualStack(("::", 8080), Payment).serve_forever()
