"""What one accelerator can do at best, by its data sheet."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Limits of one accelerator. Programs reach a part of them, seldom more than half.

    Attributes:
      peak: bfloat16 floating-point operations per second, dense.
      memory: bytes of HBM.
      memory_bandwidth: bytes per second from and to HBM.
      link_bandwidth: bytes per second that it can send over all of its links together.
      device_kind: as JAX calls it.
    """

    peak: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    device_kind: str


_GIB = 1 << 30

# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026. Their links are stated in
# both directions together ("bidirectional"); half of it is sent. For v4 it is the pod's all-reduce
# bandwidth, 1.1 PB/s, over its 4,096 chips, which on the other pages equals the half.
# GPU: the SXM models, without sparsity, as other pages quote NVIDIA's data sheets; half of NVLink's
# total is sent.
# NVLink ends at the host (eight GPUs, as a rule); between hosts the network is far slower.
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1200e9, 268e9, "TPU v4"),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, "TPU v5 lite"),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, "TPU v5"),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 400e9, "TPU v6 lite"),
    "A100-80G": Chip(312e12, 80e9, 2039e9, 300e9, "NVIDIA A100-SXM4-80GB"),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9, "NVIDIA H100 80GB HBM3"),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9, "NVIDIA H200"),
}
