"""Certify a classifier behind an HTTP endpoint, with randomized smoothing.

    python examples/http_endpoint.py --model mlp-gaussian --inputs 5 --draws 1000

serves a network of the zoo on localhost and certifies it from outside. For your own service, replace `ask`: write a
function from a NumPy batch of inputs to labels.
"""

import argparse
import io
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from numpy.typing import NDArray

import certbench
from certbench import Certificate, Classifier
from certbench.formats import black_box
from certbench.models import data, zoo


def handler(classifier: Classifier) -> type[BaseHTTPRequestHandler]:
    """Make a handler of POST requests: it gets a batch as an .npy file, and answers with labels as JSON."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open

        def do_POST(self) -> None:
            """Classify a batch."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                batch = np.load(io.BytesIO(body), allow_pickle=False)
                content = json.dumps(classifier(torch.from_numpy(batch)).argmax(dim=1).tolist()).encode()
            except (ValueError, TypeError, RuntimeError) as error:
                self.send_error(400, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serve(classifier: Classifier) -> Iterator[str]:
    """Run a server on a free port of localhost while the context lasts; give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(classifier)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def ask(address: str, timeout: float = 30.0) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
    """Make a function that gets the labels of a batch from an endpoint."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # localhost needs no proxy

    def labels(batch: NDArray[np.float32]) -> NDArray[np.int64]:
        file = io.BytesIO()
        np.save(file, batch, allow_pickle=False)
        with opener.open(urllib.request.Request(address, data=file.getvalue()), timeout=timeout) as response:
            return np.array(json.load(response), dtype=np.int64)

    return labels


def certify(address: str, version: str, inputs: torch.Tensor, num_classes: int, draws: int) -> Certificate:
    """Certify the endpoint's classifier, smoothed by Gaussian noise."""
    shape = tuple(inputs.shape[1:])
    endpoint = black_box.labels(ask(address), shape, num_classes, name=address, version=version, batch=500)
    return certbench.certify({"name": "smoothing", "n": draws}, endpoint, inputs, certbench.L2)


def main() -> None:
    """Serve a network, certify it, print the certificates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp-gaussian", help="a network of the zoo")
    parser.add_argument("--inputs", type=int, default=5, help="number of inputs")
    parser.add_argument("--draws", type=int, default=1000, help="number of draws per input")
    given = parser.parse_args()
    classifier, digits = zoo.load(given.model), data.load("digits")
    inputs = digits.inputs[: given.inputs]
    with serve(classifier) as address:
        certificate = certify(address, classifier.fingerprint(), inputs, classifier.num_classes, given.draws)
    print("label  smoothed  L2 radius")
    for label, prediction, radius in zip(digits.labels, certificate.prediction, certificate.radius, strict=False):
        print(f"{int(label):5}  {'abstains' if prediction < 0 else int(prediction):>8}  {float(radius):9.3f}")


if __name__ == "__main__":
    main()
