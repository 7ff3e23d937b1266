"""The options of the server, and what it tells of the weights. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from lightx2v_sgmd.families.features import TakesImage
from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.reading import read_limited

State = Literal["loading", "ready", "restarting", "stopped"]
"""State of the worker."""
LARGEST: Final = 4.0
"""A video may have this many times the pixels of all frames that the student was trained for."""
_UNKNOWN_SIZE: Final = (480, 832, 81)
"""Taken for the trained size where weights do not say it, to bound requests."""
_LEAST_TOKEN: Final = 16


@dataclass(frozen=True)
class ServeOptions:
    """The options of a server.

    Attributes:
        host: The address that it listens on.
        port: The port; 0 takes a free one.
        data: The folder of its queue and videos.
        token_file: A file whose text clients must send as ``Authorization: Bearer TEXT``.
        queue_limit: The most requests that wait; more get status 429.
        batch_size: Videos of one size made together; None leaves it to the engine.
        keep_hours: Finished videos are removed after so long.
        keep_gib: The oldest finished videos are removed when all take more than this.
        most_body_bytes: The largest body of a request.
        most_prompt: The most characters of a prompt.
        lora_folder: A folder of LoRAs that requests may name; None takes none.
        ray: True makes videos on the machines of a Ray cluster.
        replicas: The most engines there; None is one for each GPU.
        nproc: Processes of this machine that make one video together, each on a GPU of its own.
        sync_limit_s: Seconds after which ``/v1/videos/sync`` gives up.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    data: Path = Path("serve")
    token_file: Path | None = None
    queue_limit: int = 100
    batch_size: int | None = None
    keep_hours: float = 168.0
    keep_gib: float = 20.0
    most_body_bytes: int = 2**20
    most_prompt: int = 4000
    sync_limit_s: float = 600.0
    lora_folder: Path | None = None
    nproc: int = 1
    ray: bool = False
    replicas: int | None = None

    def token(self) -> str | None:
        """The token that clients must send; None if none is needed.

        Raises:
            UserError: others can reach the server and there is no token, or the file is unfit.
        """
        if self.token_file is None:
            if not is_loopback(self.host):
                raise UserError(
                    f"host: {self.host} can be reached from other machines, so a token is needed; "
                    "write one (openssl rand -hex 32 > token) and add --token-file token"
                )
            return None
        content = read_limited(self.token_file, 4096)
        token = content.decode("ascii", errors="replace").strip()
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise UserError(
                f"{self.token_file}: is not a token; write one line of printable ASCII without "
                "spaces (openssl rand -hex 32)"
            )
        if len(token) < _LEAST_TOKEN:
            raise UserError(
                f"{self.token_file}: the token has {len(token)} characters, fewer than "
                f"{_LEAST_TOKEN}; write a longer one (openssl rand -hex 32)"
            )
        return token


@dataclass(frozen=True)
class Served:
    """The facts of the weights that requests are checked against.

    Attributes:
        name: The name of the model, as clients may give it.
        trained: Height, width and frames that it was trained for; None if nothing says so.
        fps: Frames per second of its videos.
        steps: The number of its steps.
        shift: The flow shift of its schedule.
        rules: The sizes that it can make.
        loras: The names of LoRAs that requests may give.
        takes_image: Tells if its videos start from an image.
    """

    name: str
    trained: tuple[int, int, int] | None
    fps: float
    steps: int
    shift: float
    rules: SizeRules
    loras: tuple[str, ...] = ()
    takes_image: TakesImage = "never"

    @property
    def most_pixels(self) -> int:
        """The most pixels of all frames of a video together."""
        height, width, num_frames = self.trained or _UNKNOWN_SIZE
        return int(LARGEST * height * width * num_frames)


def is_loopback(host: str) -> bool:
    """True if an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
