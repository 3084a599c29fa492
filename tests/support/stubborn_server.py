"""A server that is ready at once, with a worker that ends only by force: its id is its output."""

import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from serve_app.bench.serve.systems.server_arguments import ServerArguments

_WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = subprocess.Popen([sys.executable, "-c", _WORKER])
    print(worker.pid, flush=True)
    arguments = ServerArguments.parse(sys.argv[1:])
    HTTPServer(("127.0.0.1", arguments.port), Ready).serve_forever()
