"""ASSG's slopes in C: the same bits as in Python (`assg`), in one pass over memory instead of twenty."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustspike.bench.api import compiled

if TYPE_CHECKING:
    from robustspike.attacks.gradients.assg import Assg

FORMS = {"atan": 0, "triangle": 1, "rectangle": 2}
"""Densities that are additions and multiplications: an exponential is not the same in every library."""

_SOURCE = r"""
#include <float.h>
#include <math.h>
#include <stdint.h>

#define BLOCK 512

typedef struct {
    float level, spread; /* weights of what is new */
    float relax, floor, scale, turn;
    int32_t form, frozen, first, fma;
} Settings;

/* mean [steps, total, size] and deviation are moved at the given rows, for the pairs (step, row) from..to-1;
 * u and out [steps, n, size]. */
#define ARGUMENTS const Settings *own, int64_t n, int64_t total, int64_t size, int64_t from, int64_t to, \
                  const int64_t *rows, const float *u, float *mean, float *deviation, float *out
#define GIVEN own, n, total, size, from, to, rows, u, mean, deviation, out

static inline __attribute__((always_inline)) void steps(ARGUMENTS)
{
    const float a = own->level, b = own->spread, relax = own->relax, low = own->floor, scale = own->scale;
    const float turn = own->turn;
    const int frozen = own->frozen, first = own->first, fma = own->fma, form = own->form;
    float far[BLOCK], sharp[BLOCK], z[BLOCK];
    for (int64_t pair = from; pair < to; pair++) {
        const int64_t there = (pair / n * total + rows[pair % n]) * size;
        for (int64_t start = 0; start < size; start += BLOCK) {
            const int64_t many = size - start < BLOCK ? size - start : BLOCK;
            const float *x = u + pair * size + start;
            float *m = mean + there + start, *d = deviation + there + start, *s = out + pair * size + start;
            if (!frozen) {
                for (int64_t i = 0; i < many; i++) {
                    const float known = m[i] != m[i] ? 1.0f : m[i] > FLT_MAX ? FLT_MAX : m[i];
                    const float size_of = fabsf(x[i]);
                    far[i] = size_of <= FLT_MAX ? size_of : known;
                }
                if (first)
                    for (int64_t i = 0; i < many; i++) m[i] = m[i] != m[i] ? far[i] : m[i];
                if (fma)
                    for (int64_t i = 0; i < many; i++) {
                        const float now = __builtin_fmaf(a, far[i] - m[i], m[i]);
                        m[i] = now;
                        d[i] = __builtin_fmaf(b, fabsf(far[i] - now) - d[i], d[i]);
                    }
                else
                    for (int64_t i = 0; i < many; i++) {
                        const float now = m[i] + a * (far[i] - m[i]);
                        m[i] = now;
                        d[i] = d[i] + b * (fabsf(far[i] - now) - d[i]);
                    }
            }
            for (int64_t i = 0; i < many; i++) {
                sharp[i] = 1.0f / (d[i] * relax + m[i] + low) * scale;
                z[i] = sharp[i] * x[i];
            }
            if (form == 0)
                for (int64_t i = 0; i < many; i++) {
                    const float wide = z[i] * turn;
                    s[i] = sharp[i] * (1.0f / (1.0f + wide * wide) * 0.5f);
                }
            else if (form == 1)
                for (int64_t i = 0; i < many; i++) {
                    const float high = 1.0f - fabsf(z[i]);
                    s[i] = sharp[i] * (high < 0.0f ? 0.0f : high);
                }
            else
                for (int64_t i = 0; i < many; i++)
                    s[i] = sharp[i] * (0.5f * (fabsf(z[i]) < 1.0f ? 1.0f : 0.0f));
        }
    }
}

#ifdef __x86_64__ /* a fused multiplication and addition is an instruction of its own, or a slow function */
static __attribute__((target("avx2,fma"))) void wide(ARGUMENTS) { steps(GIVEN); }
#endif

void assg(ARGUMENTS)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        wide(GIVEN);
        return;
    }
#endif
    steps(GIVEN);
}
"""
_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p
_FUNCTIONS = {"assg": (_POINTER, *[_SIZE] * 5, *[_POINTER] * 5)}


class _Settings(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("level", "spread", "relax", "floor", "scale", "turn")),
        *((name, ctypes.c_int32) for name in ("form", "frozen", "first", "fma")),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled slopes, or None where they cannot be had or are not wanted."""
    return compiled.load(_SOURCE, _FUNCTIONS)


@cache
def rounds_once() -> bool | None:
    """Say whether torch's `lerp_` rounds once (a fused multiplication and addition); None: neither way.

    Found by trying, on the machine that it is asked on; None too where there is no library.
    """
    if library() is None:
        return None
    u = torch.linspace(-2.0, 3.0, 1001).roll(3)
    start, far = u.abs().add(0.1), u.square()
    moved = start.clone().lerp_(far, 0.3)
    for fma in (True, False):
        level, spread, own = start.clone(), torch.zeros_like(start), _Settings()
        own.level, own.fma, own.relax, own.floor, own.scale, own.form = 0.3, fma, 1.0, 1.0, 1.0, 2
        rows = torch.zeros(1, dtype=torch.int64)
        _call(own, far.view(1, 1, -1), level.view(1, 1, -1), spread.view(1, 1, -1), rows)
        if torch.equal(level, moved):
            return fma
    return None


def slopes(
    settings: Assg, u: Tensor, level: Tensor, spread: Tensor, rows: Tensor, *, frozen: bool
) -> Tensor | None:
    """Return ASSG's slopes and move its statistics, or None (and nothing moved) where C cannot.

    Args:
        u: distances to the threshold [T, N, ...].
        level, spread: moving averages [T, n, ...] of |u| and of its deviation, changed at `rows`.
        rows: their rows [N], none twice.
        frozen: whether the statistics stay as they are.
    """
    small = 1 - settings.beta_level < 0.5 and 1 - settings.beta_spread < 0.5  # another formula of lerp beyond
    if settings.form not in FORMS or not small or not compiled.readable(u, level, spread):
        return None
    if rounds_once() is None:
        return None
    own = _Settings(
        1 - settings.beta_level,
        1 - settings.beta_spread,
        settings.relax,
        settings.floor,
        settings.scale,
        torch.pi / 2,
        FORMS[settings.form],
        frozen,
        settings.start is None,
        bool(rounds_once()),
    )
    return _call(own, u, level, spread, rows.contiguous())


def _call(own: _Settings, u: Tensor, level: Tensor, spread: Tensor, rows: Tensor) -> Tensor:
    found = library()
    assert found is not None
    run, out = found.assg, torch.empty_like(u)
    steps, n, total = len(u), u.shape[1], level.shape[1]
    size = u.numel() // max(1, steps * n)
    pointers = [t.data_ptr() for t in (rows, u, level, spread, out)]
    compiled.shared(
        lambda start, stop: run(ctypes.byref(own), n, total, size, start, stop, *pointers),
        steps * n,
        u.numel(),
    )
    return out
