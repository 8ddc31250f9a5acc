"""What runs a network: NumPy in, NumPy out. Torch is imported only where it is used, for `denoise` needs the type without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Engine = Callable[..., NDArray[np.float32]]
"""One padded slice in unit range → the same denoised. Shape: (1, 1, h, w), h and w multiples of the network's stride.

Where the network listens to it, `Acquisition.numbers` is a second argument. Shape: (1, 4).
"""


def torch_engine(network: Any) -> Engine:
    """An engine on a torch network, for the networks of a study and the card of a training run."""
    import torch

    network.eval()

    def run(unit: NDArray[np.float32], acquisition: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        given = (unit,) if acquisition is None else (unit, acquisition)
        with torch.inference_mode():
            return network(*(torch.from_numpy(np.ascontiguousarray(one)) for one in given)).numpy()

    return run
