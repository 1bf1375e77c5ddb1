"""How fast a torch DataLoader is: python -m benchmarks.torch_loader FOLDER SECONDS WORKERS

Written as users of PyTorch write it: Pillow decodes, the crop is torchvision's RandomResizedCrop
(whose code is not needed for that: a box, and a bilinear resize with antialiasing), pixels become
normalised float32 tensors, and the collate function draws multi-block masks for the batch. The last
line, on standard output, is images a second.
"""

import math
import pathlib
import random
import sys

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.jpeg_set import BATCH_SIZE, IMAGE_SIZE, speed
from benchmarks.peer_masks import draw_masks
from jepa_jax.config import resolve
from jepa_jax.config.files import load_config


class Images(Dataset):
    """As torchvision's ImageFolder with RandomResizedCrop, ToTensor and Normalize."""

    def __init__(self, folder: pathlib.Path):
        self.files = sorted(folder.rglob("*.jpg"))
        self.mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with open(self.files[i % len(self.files)], "rb") as file:
            image = Image.open(file).convert("RGB")
        width, height = image.size
        left, top, w, h = self.box(width, height)
        image = image.crop((left, top, left + w, top + h))
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return x.sub_(self.mean).div_(self.std), 0

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * random.uniform(0.3, 1.0)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, width - w), random.randint(0, height - h), w, h
        return 0, 0, width, height


def main() -> None:
    folder, seconds, workers = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    config = resolve(load_config("configs/in1k_vitb16_ep600.py", []))
    masks, grid = config.objective.masks, config.grid

    def collate(examples: list[tuple[torch.Tensor, int]]):
        seed = int(torch.randint(2**31, ()).item())
        drawn, _ = draw_masks(masks, grid, len(examples), num_batches=1, seed=seed)
        return default_collate(examples), drawn[0]

    loader = DataLoader(
        Images(folder),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
    )
    print(speed(iter(loader), seconds))


if __name__ == "__main__":
    main()
