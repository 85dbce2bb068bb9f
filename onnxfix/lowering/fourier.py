"""The discrete Fourier transform as a matrix."""

from __future__ import annotations

import numpy as np

LARGEST = 1 << 23  # numbers in a matrix; more is a matter for an FFT


def matrix(taken: int, length: int, parts: int, *, inverse: bool = False, onesided: bool = False) -> np.ndarray:
    """What turns `taken` numbers into their transform of `length`: FLOAT [taken, parts, frequencies, 2].

    `parts` is 1 for real numbers and 2 for complex ones, real part first; what is missing of `length` counts as zero.
    One-sided, a transform has the frequencies up to half of `length` only; an inverse then takes those, and gives
    [taken, parts, length, 1], real numbers.
    """
    full = length if inverse or not onesided else length // 2 + 1
    # The product modulo the length, in whole numbers, keeps angles small and so exact.
    angle = 2 * np.pi * (np.outer(np.arange(taken), np.arange(full)) % length) / length
    cos, sin = np.cos(angle), (np.sin(angle) if inverse else -np.sin(angle))
    cos[np.abs(cos) < 1e-12], sin[np.abs(sin) < 1e-12] = 0, 0  # zero but for the rounding of pi
    of_real, of_imaginary = np.stack([cos, sin], -1), np.stack([0 - sin, cos], -1)
    rows = np.stack([of_real, of_imaginary], 1)[:, :parts]
    if inverse:
        rows = rows / length
        if onesided:
            doubled = np.full((taken, 1, 1, 1), 2.0)  # each stands for its mirror image too
            doubled[0] = 1
            if length % 2 == 0:
                doubled[length // 2 :] = 1
            rows = (rows * doubled)[..., :1]
    return np.asarray(rows, np.float32)
