"""Times the VAE's decode against diffusers' in turns, in one process, with random weights.

``python -m tools.benchmarks.bench_decode --out FILE.json`` appends one record; the ratio is the
median of the turns' ratios, each of neighbouring runs. The result file says machine, versions and
command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer.vae.decoder import DecodeSettings, VaeDecoder
from infer.vae.decoding import FRAMES_AT_ONCE, decode_stream
from lightx2v_sgmd.families.wan.forward import decode_latents
from lightx2v_sgmd.families.wan.opening import open_wan
from tools.benchmarks.machines import describe
from tools.own_files import check_own, write_own


def wan21_vae(device: torch.device) -> Any:
    """A VAE of Wan2.1's shape (diffusers' defaults) with random weights, norms and biases too."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan().eval().requires_grad_(False)
    for name, weight in vae.named_parameters():
        if name.endswith(("gamma", "bias")):
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return vae.to(device)


def measure(
    vae: Any, latents: Tensor, settings: DecodeSettings, frames_at_once: int, turns: str
) -> dict[str, Any]:
    """Seconds of both decoders in turns, after a warm-up on one latent frame.

    Returns:
        ``seconds`` of ``diffusers`` and ``engine``, ``processor_seconds``, which tell whether other
        programs were running, ``ratio``, the median of diffusers' time over
        the engine's in each pair of neighbouring turns, and how far the frames differ, of 255.
    """
    decoder = VaeDecoder(vae, settings)

    def ours(latents: Tensor) -> Tensor:
        chunks = decode_stream(decoder, latents, frames_at_once=frames_at_once)
        return torch.cat(list(chunks), dim=1)

    decoders: dict[str, Callable[[Tensor], Tensor]] = {
        "diffusers": lambda latents: decode_latents(vae, latents),
        "engine": ours,
    }
    names = {"A": "diffusers", "B": "engine"}
    for decode in decoders.values():
        decode(latents[:, :, :1])
    times: list[tuple[str, float]] = []
    processor: list[float] = []
    frames: dict[str, Tensor] = {}
    for turn in turns:
        name = names[turn]
        start, used = time.perf_counter(), time.process_time()
        frames[name] = decoders[name](latents)
        if latents.is_cuda:
            torch.cuda.synchronize()
        times.append((name, time.perf_counter() - start))
        processor.append(time.process_time() - used)
        print(f"{name}: {times[-1][1]:.2f} s", file=sys.stderr, flush=True)
    pairs = [dict(times[i : i + 2]) for i in range(0, len(times), 2)]
    difference = (frames["diffusers"].int() - frames["engine"].int()).abs()
    return {
        "seconds": {name: [s for who, s in times if who == name] for name in names.values()},
        "processor_seconds": {
            name: [s for (who, _), s in zip(times, processor, strict=True) if who == name]
            for name in names.values()
        },
        "ratio": statistics.median(pair["diffusers"] / pair["engine"] for pair in pairs),
        "largest_difference": int(difference.max()),
        "share_that_differs": float((difference > 0).float().mean()),
    }


def main() -> None:
    """Runs the turns and appends the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--size", type=int, nargs=3, default=(240, 416, 17), metavar=("H", "W", "FRAMES")
    )
    parser.add_argument(
        "--turns", default="ABBA", help="A diffusers, B the engine, in pairs; default ABBA"
    )
    parser.add_argument("--sprites", action="store_true", help="use the bundled model's VAE")
    parser.add_argument(
        "--contiguous", action="store_true", help="compute without the layout channels_last_3d"
    )
    parser.add_argument("--compile", action="store_true", help="compile between the convolutions")
    parser.add_argument("--frames-at-once", type=int, default=FRAMES_AT_ONCE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file of records to append to")
    args = parser.parse_args()
    if not args.turns or any(
        args.turns[i : i + 2] not in ("AB", "BA") for i in range(0, len(args.turns), 2)
    ):
        parser.error("--turns: must be pairs of AB or BA, for example ABBA")
    if args.out is not None:
        check_own(args.out, "bench_decode")
    device = torch.device(args.device)
    vae = open_wan("sprites").load_vae().to(device) if args.sprites else wan21_vae(device)
    height, width, num_frames = args.size
    ratio = vae.config.scale_factor_spatial
    shape = (1, vae.config.z_dim, (num_frames - 1) // 4 + 1, height // ratio, width // ratio)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    settings = DecodeSettings(not args.contiguous, args.compile)
    result = measure(vae, latents, settings, args.frames_at_once, args.turns)
    record = {
        "command": "python -m tools.benchmarks.bench_decode " + " ".join(sys.argv[1:]),
        "machine": describe(device),
        "size": list(args.size),
        **result,
    }
    print(f"ratio {result['ratio']:.2f}, largest difference {result['largest_difference']} of 255")
    if args.out is not None:
        records = json.loads(args.out.read_text()) if args.out.exists() else []
        write_own(args.out, json.dumps([*records, record], indent=1) + "\n", "bench_decode")


if __name__ == "__main__":
    main()
