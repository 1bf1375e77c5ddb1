"""Bytes that each device holds while a training state is created: its share, or a whole copy?

    python -m benchmarks.startup_memory --size g --devices 8

Compiles the creation of the state for virtual CPU devices with all parameters divided over the
`fsdp` axis, and asks the compiler what a device holds: what it is left with, and what it needs on
the way. With --run the state is created too, and the memory of the process (all devices) is
measured; it then has to fit into this machine. The last line, on standard output, is JSON.
"""

import argparse
import json
import resource
import time

import jax

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.config.sizes import vit_size
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["ti", "s", "b", "l", "h", "g"], default="g")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--run", action="store_true", help="create the state, too")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.devices)

    config = load_config("configs/fashion_mnist.py", [])
    encoder, predictor = vit_size(arguments.size)
    config["data"]["image_size"] = (224, 224)
    config["model"] |= {**encoder, "patch_size": 16}
    config["compute"] = {"scan_layers": True}
    config["objective"]["predictor"] = predictor
    config["mesh"] = {"data": 1, "fsdp": arguments.devices, "tensor": 1}
    config = resolve(config)
    setup = set_up(config, make_objective(config), steps_per_epoch=100)
    leaves = jax.tree.leaves(setup.like)
    memory = setup.create.lower().compile().memory_analysis()
    result = {
        "size": arguments.size,
        "devices": arguments.devices,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "largest_array_bytes": max(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "device_state_bytes": memory.output_size_in_bytes,
        "device_temporary_bytes": memory.temp_size_in_bytes,
    }
    if arguments.run:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        jax.block_until_ready(setup.create())
        result["process_bytes"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        ) * 1024
        result["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
