"""The grids of gradient estimators that an evaluation takes the per-sample worst case over.

How robust a spiking network looks depends on the surrogate and its width more than on the optimiser;
no single one is strongest on every victim. The grids cover the shapes and widths of the papers, the
same for every victim, and a sample's verdict is its worst case over them: which entry is best is never
chosen on the samples that are reported. (Their ends were set while the shipped digits victims were at
hand.) Entries are written calls, as every `estimator` parameter takes them.
"""

from __future__ import annotations

from robustspike.attacks.gradients.assg import ASSG_FORMS
from robustspike.attacks.gradients.hart import HART_GAMMAS

SURROGATE_SWEEP: tuple[str, ...] = (
    *(f"atan(alpha={alpha})" for alpha in (1, 2, 5, 10, 20)),
    *(f"triangle(gamma={gamma})" for gamma in (0.3, 0.5, 1, 2)),
    *(f"rectangle(a={a})" for a in (0.15, 0.3, 0.5, 1)),
    *(f"sigmoid(alpha={alpha})" for alpha in (2, 4, 8, 12)),
    *(f"erf(alpha={alpha})" for alpha in (1, 2, 4)),
    *(f"piecewise_exp(alpha={alpha})" for alpha in (1, 2, 4)),
    *(f"fast_sigmoid(alpha={alpha})" for alpha in (1, 5, 25)),
    "damped_triangle(gamma=0.3)",
    "slayer(width=10)",
    "straight_through",
)
"""Fixed surrogates, wide to narrow; each family includes its published default."""

RESET_SWEEP: tuple[str, ...] = ("native(detach_reset=true)", "native(detach_reset=false)")
"""The victim's own surrogate with the gradient through the reset cut and kept."""

HART_SWEEP: tuple[str, ...] = tuple(f"hart(gamma={gamma})" for gamma in HART_GAMMAS)
"""Six attacks where the release runs 49."""

ASSG_SWEEP: tuple[str, ...] = (
    *(f"assg(form={form})" for form in ASSG_FORMS),
    "assg(start=none)",
)
"""Every form of the adaptive surrogate at the one bound of 0.85, and the form for short attacks."""

RATE_SWEEP: tuple[str, ...] = ("rga", "rga(saturation=1)", "bptr", "bptr(variant=slope)", "cba")
"""Gradients without time: for neurons that process whole sequences."""
