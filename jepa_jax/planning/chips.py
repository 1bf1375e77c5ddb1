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
      clock: cycles per second of a TPU: the peak over what its matrix units do in a cycle, as the
        compiler counts cycles (both cores of a chip together); None: not a TPU.
    """

    peak: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    device_kind: str
    clock: float | None = None


_GIB = 1 << 30

# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026. Their links are stated in
# both directions together ("bidirectional"); half of it is sent. For v4 it is the pod's all-reduce
# bandwidth, 1.1 PB/s, over its 4,096 chips, which on the other pages equals the half.
# Matrix units: v4, v5p: 2 cores x 4 of 128 x 128; v5e: 4 of 128 x 128; v6e: 4 of 256 x 256 by what
# its compiler takes for a product of 8192 x 8192: 369,000 FLOP a cycle (v5e 115,000, v5p 236,000).
# GPU: the SXM models, without sparsity, as other pages quote NVIDIA's data sheets; half of NVLink's
# total is sent.
# NVLink ends at the host (eight GPUs, as a rule); between hosts the network is far slower.
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1200e9, 268e9, "TPU v4", 1.05e9),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, "TPU v5 lite", 1.5e9),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, "TPU v5", 1.75e9),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 400e9, "TPU v6 lite", 1.75e9),
    "A100-80G": Chip(312e12, 80e9, 2039e9, 300e9, "NVIDIA A100-SXM4-80GB"),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9, "NVIDIA H100 80GB HBM3"),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9, "NVIDIA H200"),
}
