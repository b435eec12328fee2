"""What the servers of the tests have in common: on loopback, in a thread of their own, from
construction to `close`."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback(ThreadingHTTPServer):
    """url: where it is reached."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections from now on.

        The port stays bound, so that no other server gets it.
        """
        self.shutdown()
        self.server_close()
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def __exit__(self, *_) -> None:
        self.close()
