"""Augmentations of one image, stated in float64, and the random numbers that they take."""

import colorsys
import itertools

import numpy as np
import scipy.ndimage

NUM_DRAWS = 11


def draws(seed, epoch, index, view):
    """An example's random numbers: SplitMix64 in Python's integers, keyed by a chain of itself."""
    mask = (1 << 64) - 1

    def step(state):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return state, z ^ (z >> 31)

    state, numbers = 0, []
    for part in (5, seed, epoch, index, view):
        _, state = step(state + part)
    for _ in range(NUM_DRAWS):
        state, number = step(state)
        numbers.append((number >> 11) / 2**53)
    return numbers


def order_of(u):
    return list(itertools.permutations(range(4)))[int(u * 24)]


def gray(x):
    return x if x.shape[-1] == 1 else x @ np.array([[0.2989], [0.587], [0.114]])


def brightness(x, factor):
    return np.clip(x * factor, 0, 255)


def contrast(x, factor):
    mean = gray(x).mean()
    return np.clip(mean + factor * (x - mean), 0, 255)


def saturation(x, factor):
    return np.clip(gray(x) + factor * (x - gray(x)), 0, 255)


def hue(x, shift):
    if x.shape[-1] == 1:
        return x
    turned = np.empty_like(x)
    for place in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(x[place] / 255))
        turned[place] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
    return turned * 255


def blur(x, sigma):
    radius = max(1, min(x.shape[:2]) // 20)
    for axis in (0, 1):
        x = scipy.ndimage.gaussian_filter1d(x, sigma, axis, mode="mirror", radius=radius)
    return x


def expected(x, a, u):
    """One image in float64: one change after the other, with the random numbers given."""
    x = x.astype(np.float64)
    if u[0] < a.flip:
        x = x[:, ::-1]
    if u[1] < a.jitter:
        strengths = (a.brightness, a.contrast, a.saturation, a.hue)
        for number in order_of(u[2]):
            strength, position = strengths[number], u[7 + number]
            if number == 3:
                x = hue(x, (2 * position - 1) * strength)
            else:
                low = max(0, 1 - strength)
                factor = low + position * (1 + strength - low)
                x = (brightness, contrast, saturation)[number](x, factor)
    if u[3] < a.grayscale:
        x = np.broadcast_to(gray(x), x.shape)
    if u[4] < a.blur:
        x = blur(x, a.blur_sigma[0] + u[5] * (a.blur_sigma[1] - a.blur_sigma[0]))
    if u[6] < a.solarize:
        x = np.where(x < a.solarize_threshold * 255, x, 255 - x)
    return x
