"""The scanned digits of scikit-learn.

They come from Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI repository: 1797 images of
8x8 pixels in 0..16. The scikit-learn package contains them, so nothing is downloaded.
"""

import hashlib

import numpy as np
import torch

from certbench.models.data.base import Dataset

DIGITS_TEST = 500
"""Number of the 1797 digits that are the test split; `read_digits` says which ones."""


def read_digits(split: str) -> Dataset:
    """Read digits as `(1, 8, 8)` in [0, 1]: 1297 for training, 500 for tests.

    The split depends on the images alone, not on a random generator or on their order in scikit-learn. Within each
    class images are ranked by the sha256 of their 64 bytes; the image of rank r among n goes to place (r + 1/2) / n;
    all images are sorted by place, then class. The first 500 are the test split, in this order. So each class has
    its share of both splits, and also of the first 10, 50 or 100 test images.
    """
    from sklearn.datasets import load_digits  # 1.6 s

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    order = []
    for label in range(10):
        members = sorted(np.flatnonzero(digits.target == label), key=hashes.__getitem__)
        order += [((rank + 0.5) / len(members), label, index) for rank, index in enumerate(members)]
    index = np.array([index for _, _, index in sorted(order)])
    index = index[:DIGITS_TEST] if split == "test" else index[DIGITS_TEST:]
    inputs = torch.from_numpy(images[index]).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(digits.target[index]).long()
    return Dataset(f"digits/{split}", inputs, labels, 10, done=("pixels divided by 16, channels first",))
