"""LSTM, GRU and simple recurrent layers, whose gates ONNX keeps in another order than torch."""

from typing import Any

import torch

from certbench.errors import UnsupportedError
from certbench.formats.onnx.operators.base import Operator


def _weights(w: Any, r: Any, b: Any, order: tuple[int, ...]) -> list[Any]:
    """Return each direction's weights and biases in torch's order of gates."""
    gates = len(order)
    if b is None:
        b = torch.zeros(w.shape[0], 2 * w.shape[1], dtype=w.dtype, device=w.device)
    found = []
    for direction in range(w.shape[0]):
        for part in (w[direction], r[direction], *b[direction].chunk(2)):
            blocks = part.chunk(gates)
            found.append(torch.cat([blocks[gate] for gate in order]))
    return found


def _checked(direction: str, activations: Any, usual: tuple[str, ...], lengths: Any, layout: int, clip: Any) -> int:
    """Return the number of directions."""
    count = 2 if direction == "bidirectional" else 1
    if direction not in ("forward", "bidirectional") or lengths is not None or layout or clip is not None:
        raise UnsupportedError("has a direction, lengths, a layout or a clip that is not known here")
    if activations is not None and tuple(name.lower() for name in activations) != usual * count:
        raise UnsupportedError(f"has other activations than {', '.join(usual)}")
    return count


def _text(parts: Any) -> Any:
    return None if parts is None else [part.decode() if isinstance(part, bytes) else part for part in parts]


def _start(state: Any, x: Any, count: int, hidden_size: int) -> Any:
    """Return the state before the first step, the same for each input where the file has one."""
    start = x.new_zeros(count, x.shape[1], hidden_size)
    return start if state is None else start + state


def _steps(found: Any, count: int, hidden_size: int) -> Any:
    """Return the outputs as (time, directions, inputs, size)."""
    return found.reshape(*found.shape[:2], count, hidden_size).permute(0, 2, 1, 3)


def lstm(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    hidden: Any = None,
    cell: Any = None,
    peepholes: Any = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Any = None,
    clip: Any = None,
    input_forget: int = 0,
    layout: int = 0,
) -> Any:
    """Run an LSTM; ONNX has its gates in the order input, output, forget, cell."""
    count = _checked(direction, _text(activations), ("sigmoid", "tanh", "tanh"), lengths, layout, clip)
    if peepholes is not None or input_forget:
        raise UnsupportedError("has peepholes or coupled gates, which are not known here")
    states = (_start(hidden, x, count, hidden_size), _start(cell, x, count, hidden_size))
    found, last, cells = torch.lstm(x, states, _weights(w, r, b, (0, 2, 3, 1)), True, 1, 0.0, False, count == 2, False)
    return _steps(found, count, hidden_size), last, cells


def gru(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    hidden: Any = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Any = None,
    clip: Any = None,
    linear_before_reset: int = 0,
    layout: int = 0,
) -> Any:
    """Run a GRU; ONNX has its gates in the order update, reset, hidden."""
    count = _checked(direction, _text(activations), ("sigmoid", "tanh"), lengths, layout, clip)
    if not linear_before_reset:
        raise UnsupportedError("resets before the matrix product (linear_before_reset=0), which is not known here")
    state = _start(hidden, x, count, hidden_size)
    found, last = torch.gru(x, state, _weights(w, r, b, (1, 0, 2)), True, 1, 0.0, False, count == 2, False)
    return _steps(found, count, hidden_size), last


def rnn(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    hidden: Any = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Any = None,
    clip: Any = None,
    layout: int = 0,
) -> Any:
    """Run a simple recurrent layer with tanh or ReLU."""
    names = _text(activations)
    relu = names is not None and names[0].lower() == "relu"
    count = _checked(direction, names, ("relu",) if relu else ("tanh",), lengths, layout, clip)
    function = torch.rnn_relu if relu else torch.rnn_tanh
    state = _start(hidden, x, count, hidden_size)
    found, last = function(x, state, _weights(w, r, b, (0,)), True, 1, 0.0, False, count == 2, False)
    return _steps(found, count, hidden_size), last


TABLE: dict[tuple[str, str], Operator] = {
    ("", "LSTM"): Operator(lstm),
    ("", "GRU"): Operator(gru),
    ("", "RNN"): Operator(rnn),
}
"""Operators of this file, by their domain and name."""
