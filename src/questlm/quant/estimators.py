"""Where gradients pass.

Rounding has no useful derivative. The trust estimator (arXiv 2502.05003, section 3.3) passes the gradient of an entry
unchanged where the quantisation error is one that rounding could make, |x_q - x_h| <= T rms with T half a step, and
drops it elsewhere: there the entry was clipped, and its gradient with respect to the unclipped value is not to be
trusted. On a uniform grid of n levels half a step beyond the outermost level is the place where that begins, so

    |x_h| <= (n - 1)/2 steps + 1/2 step = n/2 steps.

One bit is the exception: its two levels stand so far inside the distribution that this rule drops entries that still
learn. The published runs pass |x_h| <= s a* rms with s = 1.30 after the Hadamard transform and 1.25 without it
(s = 2 would be the rule above); a* rms is half a step.
"""

from __future__ import annotations

from questlm.ops import Grid

__all__ = ["trust_bound"]

_ONE_BIT_TRUST = {True: 1.30, False: 1.25}


def trust_bound(grid: Grid, rotates: bool) -> float:
    """Bound of the trust mask in steps: gradients pass where |x_h| <= bound * step."""
    if grid.levels == 2:
        return _ONE_BIT_TRUST[rotates] / 2
    return grid.levels / 2
