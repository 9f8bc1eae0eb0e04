"""A chat completion service for tests: it answers from a list."""

import contextlib
import http.server
import json
import threading


class Service(http.server.BaseHTTPRequestHandler):
    """Answers from a list: text is an answer, a number a status, None no answer in time.

    A pair is a status and its body. Instead of the list there may be a function of the request.
    """

    def do_POST(self):
        """Take the next answer."""
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body, self.headers.get("Authorization")))
        answer = server.answers(body) if callable(server.answers) else server.answers.pop(0)
        if answer is None:
            server.done.wait(5)
            return
        if isinstance(answer, int):
            self.send_response(answer)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if isinstance(answer, str):
            answer = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
        status, answer = answer if isinstance(answer, tuple) else (200, answer)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Stay quiet."""


@contextlib.contextmanager
def running():
    """Run the service; what comes out has `answers` to give, `asked` and `server_port`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.answers, server.asked, server.headers = [], [], {}
    server.done = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
