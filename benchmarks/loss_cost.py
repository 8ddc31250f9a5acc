"""What the frequency term costs: as a share of a training step in every mode, and its block DCT beside other ways to write it.

Run: python benchmarks/loss_cost.py [--config configs/train-finegrain-s.yaml] [--threads 1] [--rounds 30] [--device cuda]
     [--json FILE]
Network, patch and batch are those of the configuration; the images are random. A step is forward, loss, backward, clipping, AdamW
and the averaged weights, as in `finegrain.train.loop.fit`, without reading patches. Loss and step are timed by themselves, in turn,
and medians are taken, for the difference of two whole steps drowns in their scatter. torch-dct is left out, and said to be, if
not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from finegrain.config import LossConfig, TrainingRun, load_config
from finegrain.frequency import dct_matrix
from finegrain.networks.skeleton import build_network
from finegrain.train.loss import DualDomainLoss

KERNEL_BAND = {"band_unit": "kernel", "band": (0.4, 1.0)}
VARIANTS: dict[str, dict] = {
    "coefficient": {},
    "coefficient, gated": {"smooth_gate": 1.6},
    "coefficient, band of the kernel": KERNEL_BAND,
    "energy": {"mode": "energy"},
    "energy, gated": {"mode": "energy", "smooth_gate": 1.6},
    "adaptive": {"mode": "adaptive"},
    "adaptive, gated, band of the kernel": {"mode": "adaptive", "smooth_gate": 1.6, **KERNEL_BAND},
}
N = 8
OURS = "one matrix product per block (ours)"


def medians_ms(calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median time of each call in ms; one of each in turn, so that a busy machine is busy for all."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 3):
        for name, call in calls.items():
            wait()
            started = time.perf_counter()
            call()
            wait()
            if round_ >= 3:  # warmed up
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(run: TrainingRun, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """A step of the network with the spatial loss alone."""
    network = build_network(run.network, seed=0).to(inputs.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=1e-4, betas=(0.9, 0.99))
    criterion = DualDomainLoss(LossConfig(weight=0.0))

    def step() -> None:
        error = criterion(network(inputs.contiguous(memory_format=torch.channels_last)), targets)
        optimiser.zero_grad(set_to_none=True)
        error.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), run.train.clip)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.005)

    return step


def loss_and_gradient(config: LossConfig, output: Tensor, targets: Tensor, inputs: Tensor) -> Callable[[], object]:
    """The loss and its gradient in the output."""
    criterion = DualDomainLoss(config, torch.Generator().manual_seed(0)).to(output.device)
    return lambda: torch.autograd.grad(criterion(output, targets, inputs), output)


# --- the block DCT of (b, 1, h, w), several ways: all coefficients, (b, block_y, block_x, u, v) ------------------------------


def _blocks(image: Tensor) -> Tensor:
    b, _, rows, columns = image.shape
    return image.reshape(b, rows // N, N, columns // N, N).transpose(2, 3)


def _by_two_products(image: Tensor) -> Tensor:
    basis = BASIS.to(image.device)
    return basis @ _blocks(image) @ basis.T


def _by_einsum(image: Tensor) -> Tensor:
    b, _, rows, columns = image.shape
    basis = BASIS.to(image.device)
    return torch.einsum("uy,bryxc,vc->brxuv", basis, image.reshape(b, rows // N, N, columns // N, N), basis)


def _by_convolution(image: Tensor) -> Tensor:
    found = torch.nn.functional.conv2d(image, FILTERS.to(image.device), stride=N)
    return found.permute(0, 2, 3, 1).unflatten(-1, (N, N))


def _by_fft(image: Tensor) -> Tensor:
    """Even samples, then odd ones backwards, through an FFT of the same length (Makhoul 1980)."""
    return _one_axis_by_fft(_one_axis_by_fft(_blocks(image)).transpose(-1, -2)).transpose(-1, -2)


def _one_axis_by_fft(values: Tensor) -> Tensor:
    order = torch.cat([values[..., ::2], values[..., 1::2].flip(-1)], dim=-1)
    k = torch.arange(N, device=values.device)
    scale = torch.where(k == 0, math.sqrt(1 / N), math.sqrt(2 / N))
    return (torch.fft.fft(order) * torch.exp(-1j * math.pi * k / (2 * N))).real * scale


BASIS = torch.tensor(dct_matrix(N), dtype=torch.float32)
FILTERS = torch.einsum("uy,vx->uvyx", BASIS, BASIS).reshape(N * N, 1, N, N)


def ways(config: LossConfig, device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Mean |coefficient| of the band, of a difference, by each way that is installed."""
    band = torch.from_numpy(config.coefficients()).to(device)
    every: dict[str, Callable[[Tensor], Tensor]] = {
        "two 8 × 8 products": _by_two_products,
        "einsum": _by_einsum,
        "convolution of stride 8": _by_convolution,
        "FFT": _by_fft,
    }
    if importlib.util.find_spec("torch_dct") is not None:
        import torch_dct

        every["torch-dct"] = lambda image: torch_dct.dct_2d(_blocks(image), norm="ortho")
    loss = DualDomainLoss(config).to(device)

    def term(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda image: way(image)[..., band].abs().mean()

    ours = {OURS: lambda image: loss.coefficients(image, (0, 0)).abs().mean()}
    return ours | {name: term(way) for name, way in every.items()}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/train-finegrain-s.yaml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = load_config(arguments.config, TrainingRun)
    generator = torch.Generator().manual_seed(0)
    shape = (run.train.batch, 1, run.train.patch, run.train.patch)
    targets = 0.25 + 0.005 * torch.randn(shape, generator=generator)
    inputs = targets + 0.01 * torch.randn(shape, generator=generator)
    output = targets + 0.003 * torch.randn(shape, generator=generator)
    targets, inputs, output = (images.to(arguments.device) for images in (targets, inputs, output))
    output.requires_grad_(True)

    calls: dict[str, Callable[[], object]] = {"step": training_step(run, inputs, targets)}
    for name, change in {"MSE": {"weight": 0.0}, **VARIANTS}.items():
        calls[name] = loss_and_gradient(LossConfig(**{"weight": 0.05, **change}), output, targets, inputs)
    spent = medians_ms(calls, arguments.rounds, arguments.device)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU thread(s)"
    print(f"{run.name}, batch {run.train.batch} of {run.train.patch}², {where}, torch {torch.__version__}")
    print(f"a training step with the spatial loss: {spent['step']:.1f} ms\n")
    print(f"{'frequency term':<38}{'ms':>8}{'share of the step':>20}")
    shares = {}
    for name in VARIANTS:
        extra = spent[name] - spent["MSE"]
        shares[name] = extra / (spent["step"] + extra)
        print(f"{name:<38}{extra:>8.2f}{shares[name]:>19.2%}")

    terms = ways(LossConfig(weight=0.05), arguments.device)
    values = {name: term(output - targets).item() for name, term in terms.items()}
    for name, value in values.items():
        if abs(value / values[OURS] - 1) > 1e-5:
            raise SystemExit(f"{name} gives {value}, ours {values[OURS]}")
    grads = {name: lambda term=term: torch.autograd.grad(term(output - targets), output) for name, term in terms.items()}
    found = medians_ms(grads, 5 * arguments.rounds, arguments.device)
    print(f"\n{'coefficient term and its gradient by':<38}{'ms':>8}{'over ours':>20}")
    for name, ms in found.items():
        print(f"{name:<38}{ms:>8.2f}{ms / found[OURS]:>19.1f}×")
    if "torch-dct" not in found:
        print("torch-dct                              left out: not installed")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ms": spent, "share": shares, "ways_ms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
