"""Bits and nats; log1p, expm1 and tanh for kernels: the hardware's exp and log alone lose all digits near zero."""

# A jit function is typed as the Python it is written in: pyright knows neither launches nor constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import triton
import triton.language as tl

LN2 = tl.constexpr(math.log(2.0))
LOG2_E = 1.0 / math.log(2.0)


@triton.jit
def log1p(x):
    """For x >= 0; relative error below 1e-7 on both sides of the switch."""
    r = x / (2.0 + x)
    q = r * r
    near = 2.0 * r * (1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q / 11)))))
    return tl.where(x < 0.5, near, tl.log(1.0 + x))


@triton.jit
def expm1(x):
    """For x <= 0."""
    near = x * (1.0 + x * (1.0 / 2 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720 + x / 5040))))))
    return tl.where(x > -0.25, near, tl.exp(x) - 1.0)


@triton.jit
def tanh_and_slope(u):
    """tanh(u) and 1 - tanh(u)^2."""
    q = u * u
    near = u * (1.0 - q * (1.0 / 3 - q * (2.0 / 15 - q * (17.0 / 315 - q * (62.0 / 2835)))))
    e = tl.exp(-2.0 * tl.abs(u))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(u < 0, -far, far)
    return tl.where(q < 0.0625, near, far), 4.0 * e / ((1.0 + e) * (1.0 + e))
