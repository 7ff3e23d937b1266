from typing import get_args

from lightx2v_sgmd.networks.attention import KERNELS
from lightx2v_sgmd.networks.kernel_names import Attention


def test_the_names_are_those_of_the_kernels() -> None:
    assert set(get_args(Attention)) == {"auto", *KERNELS}
