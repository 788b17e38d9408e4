"""The Triton kernels themselves; imported when first used, for Triton takes a second to import.

Each says in its docstring, in plain torch, what one program computes. Pointers are to contiguous
tensors unless a stride is given; results are float32, float64 where the input is. ``softcap`` is
annotated: Triton would pass a Python float as float32.

Rows of logits are read and written up to their stride, not up to V: a multiple of 16, as
`logits_buffer` makes it, lets the compiler move 16 bytes at once, as V itself (128264, say) would
not let it. What lies between V and the stride is read, masked in registers, and overwritten.

A row's highest logit and sums are kept by lane, a lane being LANE neighbouring columns in so many,
which one thread reads at once: the threads of a program need not wait for one another before the
row is at its end. What is read first is to stay in the cache for the second reading, which begins
where the first ended.
"""

# Triton reads these functions' source: annotations are Triton's (constexpr), not Python's types.
# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e38)  # stands for -inf where inf - inf would give nan


@triton.jit
def _capped(z, softcap):
    """softcap * tanh(z / softcap); tanh(x) = 1 - 2 / (exp(2 x) + 1) holds at both infinities."""
    return softcap * (1 - 2 / (tl.exp(2 * z / softcap) + 1))


@triton.jit
def _exp(x):
    """exp(x), where float32 is below 2 ** -126, 0: what tl.exp keeps there costs it three
    instructions a number more.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _with_more(highest, total, z, LANE: tl.constexpr):
    """By lane, the highest number and the sum of exp(number - highest), of those before and z."""
    z = tl.reshape(z, (z.shape[0] // LANE, LANE))
    higher = tl.maximum(highest, tl.max(z, axis=1))
    total *= _exp(highest - higher)
    return higher, total + tl.sum(_exp(z - higher[:, None]), axis=1)


@triton.jit
def _logit(raw, cap, exact: tl.constexpr, SOFTCAP: tl.constexpr):
    """In float32 (float64), capped; -inf stays what it is, a number that is not there."""
    z = raw.to(exact)
    if SOFTCAP:
        z = tl.where(z == float("-inf"), z, _capped(z, cap))
    return z


@triton.jit
def _gradient(z, highest, factor, cap, SOFTCAP: tl.constexpr):
    # Not exp(z - logsumexp): the rounding of logsumexp would be an error of every entry.
    gradient = factor * _exp(z - highest)
    if SOFTCAP:
        gradient *= 1 - (z / cap) * (z / cap)
    return gradient


@triton.jit
def row_kernel(
    logits,  # [n, V] in rows of stride, overwritten, by the gradient when BACKWARD
    stride,
    targets,  # [n]
    scale,  # [n]
    contrast_gradient,  # [n, 3], read where the target is a pivot
    nll,  # [n] out
    top,  # [n] out, bool
    V,
    safe,
    unsafe,
    rethink,
    softcap: tl.float64,
    SOFTCAP: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    LANE: tl.constexpr,
):
    """One row of logits z becomes its gradient, and its loss is noted:

    z = softcap * tanh(raw / softcap)
    nll = logsumexp(z) - z[target];  top = z[target] >= max(z)
    raw[:] = scale * (softmax(z) - onehot(target)) * (1 - (z / softcap) ** 2)
    raw[[safe, unsafe, rethink]] += contrast_gradient

    The target's own share is left out of the sums and added at the end: where it is almost 1, its
    gradient, the share of the others, is no difference of two large numbers. It is left out by
    -inf in its place; and what is particular to the target, to pivots and to the row's end is done
    outside of the loops, which would else ask it of each of V numbers.
    """
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * stride
    weight = tl.load(scale + row)
    target = tl.load(targets + row)
    # What is none of the row's numbers is an error that is told later; here it is not to be read.
    target = tl.where((target >= 0) & (target < V), target, 0)
    exact: tl.constexpr = weight.dtype
    cap = tl.full((), softcap, exact)
    # Without pivots their ids are -1, which no target is.
    at_pivot = (target == safe) | (target == unsafe) | (target == rethink)

    of_target = tl.load(z_row + target).to(exact)
    z_safe = tl.load(z_row + safe, mask=at_pivot, other=0.0).to(exact)
    z_unsafe = tl.load(z_row + unsafe, mask=at_pivot, other=0.0).to(exact)
    z_rethink = tl.load(z_row + rethink, mask=at_pivot, other=0.0).to(exact)
    if SOFTCAP:
        of_target = _capped(of_target, cap)
        z_safe = _capped(z_safe, cap)
        z_unsafe = _capped(z_unsafe, cap)
        z_rethink = _capped(z_rethink, cap)
    # Every thread has read the target's logit before one overwrites it; then reads what it wrote.
    tl.debug_barrier()
    tl.store(z_row + target, float("-inf"))
    tl.debug_barrier()

    whole = V // BLOCK * BLOCK
    lane_highest = tl.full((BLOCK // LANE,), LOWEST, exact)
    lane_total = tl.full((BLOCK // LANE,), 0.0, exact)
    for begin in range(0, whole, BLOCK):
        places = z_row + begin + tl.arange(0, BLOCK)
        z = _logit(tl.load(places, eviction_policy="evict_last"), cap, exact, SOFTCAP)
        lane_highest, lane_total = _with_more(lane_highest, lane_total, z, LANE)
    columns = whole + tl.arange(0, BLOCK)
    if whole < V:
        read = tl.load(
            z_row + columns, mask=columns < stride, other=0.0, eviction_policy="evict_last"
        )
        z = tl.where(columns < V, _logit(read, cap, exact, SOFTCAP), float("-inf"))
        lane_highest, lane_total = _with_more(lane_highest, lane_total, z, LANE)

    highest_other = tl.max(lane_highest, axis=0)
    highest = tl.maximum(highest_other, of_target)
    others = tl.sum(lane_total * tl.exp(lane_highest - highest), axis=0)
    total = others + tl.exp(of_target - highest)
    tl.store(nll + row, highest - of_target + tl.log(total))
    tl.store(top + row, of_target >= highest_other)

    if BACKWARD:
        factor = weight / total
        number = logits.dtype.element_ty
        if whole < V:
            places = z_row + columns
            inside = columns < stride
            read = tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")
            z = _logit(read, cap, exact, SOFTCAP)
            gradient = _gradient(z, highest, factor, cap, SOFTCAP)
            tl.store(places, gradient.to(number), mask=inside, cache_modifier=".cs")
        for passed in range(BLOCK, whole + BLOCK, BLOCK):
            places = z_row + (whole - passed) + tl.arange(0, BLOCK)
            z = _logit(tl.load(places, eviction_policy="evict_first"), cap, exact, SOFTCAP)
            gradient = _gradient(z, highest, factor, cap, SOFTCAP)
            tl.store(places, gradient.to(number), cache_modifier=".cs")
        of_target_too = -factor * others
        if SOFTCAP:
            of_target_too *= 1 - (of_target / cap) * (of_target / cap)
        tl.debug_barrier()  # after what the loop wrote in these places
        tl.store(z_row + target, of_target_too.to(number))
        if at_pivot:
            for c in tl.static_range(3):
                pivot = safe if c == 0 else unsafe if c == 1 else rethink
                z = z_safe if c == 0 else z_unsafe if c == 1 else z_rethink
                of_pivot = _gradient(z, highest, factor, cap, SOFTCAP)
                of_pivot = tl.where(target == pivot, of_target_too, of_pivot)
                of_pivot += tl.load(contrast_gradient + 3 * row + c)
                tl.store(z_row + pivot, of_pivot.to(number))


@triton.jit
def contrast_kernel(
    hidden,  # [n, H]
    row_stride,
    column_stride,
    three,  # [3, H]
    targets,  # [n]
    n_items,  # one number
    class_counts,  # [3]
    scale,  # [n] out
    term,  # [n] out
    gradient,  # [n, 3] out
    right,  # [n] out, bool
    H,
    safe,
    unsafe,
    rethink,
    pivot_weight: tl.float64,
    pivot_ce_weight: tl.float64,
    softcap: tl.float64,
    SOFTCAP: tl.constexpr,
    ALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What one row's cross-entropy counts for; and where its target is a pivot the contrast, in
    float64 (elsewhere it is not written):

    scale = (pivot_ce_weight if the target is a pivot else 1) / n_items
    z = softcap * tanh(three @ h / softcap);  own = index of the target among the three
    rivals = the two others if ALL else the opposite pivot
    term = -log(exp(z[own]) / (exp(z[own]) + exp(z[rivals]).sum()))
    gradient = pivot_weight / class_counts[own] * d term / d raw z
    right = z[own] > z of both others
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    items = tl.load(n_items).to(tl.float64)
    if (target != safe) & (target != unsafe) & (target != rethink):
        tl.store(scale + row, 1 / items)
    own = tl.where(target == safe, 0, tl.where(target == unsafe, 1, 2))
    if (target == safe) | (target == unsafe) | (target == rethink):
        tl.store(scale + row, pivot_ce_weight / items)
        # float64, for a few thousand products of the few rows that have a pivot: nothing is lost.
        exact = tl.float64
        cap = tl.full((), softcap, exact)
        # The opposite pivot first: the rival of the paper's contrast.
        first = tl.where(own == 0, 1, 0)
        second = 3 - own - first
        z_own = tl.full((), 0.0, exact)
        first_odds = tl.full((), 0.0, exact)
        second_odds = tl.full((), 0.0, exact)
        for begin in range(0, H, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            inside = columns < H
            place = row * row_stride + columns.to(tl.int64) * column_stride
            h = tl.load(hidden + place, mask=inside, other=0.0).to(exact)
            w_own = tl.load(three + own * H + columns, mask=inside, other=0.0).to(exact)
            w_first = tl.load(three + first * H + columns, mask=inside, other=0.0).to(exact)
            w_second = tl.load(three + second * H + columns, mask=inside, other=0.0).to(exact)
            z_own += tl.sum(h * w_own, axis=0)
            first_odds += tl.sum(h * (w_first - w_own), axis=0)
            second_odds += tl.sum(h * (w_second - w_own), axis=0)

        own_slope = 1.0
        first_slope = 1.0
        second_slope = 1.0
        if SOFTCAP:
            z_first = _capped(z_own + first_odds, cap)
            z_second = _capped(z_own + second_odds, cap)
            z_own = _capped(z_own, cap)
            own_slope = 1 - (z_own / cap) * (z_own / cap)
            first_slope = 1 - (z_first / cap) * (z_first / cap)
            second_slope = 1 - (z_second / cap) * (z_second / cap)
            first_odds = z_first - z_own
            second_odds = z_second - z_own
        tl.store(right + row, (first_odds < 0) & (second_odds < 0))

        if not ALL:
            second_odds = tl.full((), LOWEST, exact)
            if own == 2:
                first_odds = tl.full((), LOWEST, exact)
        highest = tl.maximum(tl.maximum(first_odds, second_odds), 0.0)
        of_first = tl.exp(first_odds - highest)
        of_second = tl.exp(second_odds - highest)
        total = tl.exp(-highest) + of_first + of_second
        tl.store(term + row, highest + tl.log(total))
        average = pivot_weight / tl.load(class_counts + own).to(exact)
        of_first *= average / total
        of_second *= average / total
        tl.store(gradient + 3 * row + own, -(of_first + of_second) * own_slope)
        tl.store(gradient + 3 * row + first, of_first * first_slope)
        tl.store(gradient + 3 * row + second, of_second * second_slope)


@triton.jit
def sum_kernel(
    nll,  # [n]
    top,  # [n] bool
    scale,  # [n]
    term,  # [n], read where the target is a pivot
    right,  # [n] bool, read where the target is a pivot
    targets,  # [n]
    n_items,  # one number
    class_counts,  # [3]
    loss,  # one number, out
    cross_entropy,  # one number, out
    pivot_by_class,  # [3] out
    correct,  # [3] out, int64
    greedy,  # [3] out, int64
    n,
    safe,
    unsafe,
    rethink,
    pivot_weight: tl.float64,
    PIVOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All rows, added in float64 by lane and then over the lanes; without PIVOTS, zeros in the end:

    cross_entropy = nll.sum() / n_items
    pivot_by_class[c] = term[targets == c].sum() / class_counts[c]
    loss = (scale * nll).sum() + pivot_weight * pivot_by_class.sum()
    correct[c] = right[targets == c].sum();  greedy[c] = (right & top)[targets == c].sum()
    """
    exact = tl.float64
    lane_nll = tl.full((BLOCK,), 0.0, exact)
    lane_scaled = tl.full((BLOCK,), 0.0, exact)
    for begin in range(0, n, BLOCK):
        rows = begin + tl.arange(0, BLOCK)
        inside = rows < n
        of_row = tl.load(nll + rows, mask=inside, other=0.0).to(exact)
        lane_nll += of_row
        lane_scaled += of_row * tl.load(scale + rows, mask=inside, other=0.0).to(exact)
    tl.store(cross_entropy, tl.sum(lane_nll, axis=0) / tl.load(n_items).to(exact))
    total = tl.sum(lane_scaled, axis=0)

    for c in tl.static_range(3):
        pivot = safe if c == 0 else unsafe if c == 1 else rethink
        lane_term = tl.full((BLOCK,), 0.0, exact)
        lane_right = tl.full((BLOCK,), 0, tl.int32)
        lane_greedy = tl.full((BLOCK,), 0, tl.int32)
        if PIVOTS:
            for begin in range(0, n, BLOCK):
                rows = begin + tl.arange(0, BLOCK)
                inside = rows < n
                at = tl.load(targets + rows, mask=inside, other=-1) == pivot
                lane_term += tl.load(term + rows, mask=at, other=0.0).to(exact)
                is_right = tl.load(right + rows, mask=at, other=0).to(tl.int32)
                lane_right += is_right
                lane_greedy += is_right * tl.load(top + rows, mask=at, other=0).to(tl.int32)
        of_class = tl.sum(lane_term, axis=0) / tl.load(class_counts + c).to(exact)
        total += pivot_weight * of_class
        tl.store(pivot_by_class + c, of_class)
        tl.store(correct + c, tl.sum(lane_right, axis=0))
        tl.store(greedy + c, tl.sum(lane_greedy, axis=0))
    tl.store(loss, total)


@triton.jit
def count_kernel(
    targets,  # [n]
    target_stride,
    counts,  # [5] out, int64
    n,
    V,
    ignored,
    safe,
    unsafe,
    rethink,
    BLOCK: tl.constexpr,
):
    """counts = those not ignored, of each of the three, and those not ignored outside [0, V)."""
    valid = tl.full((BLOCK,), 0, tl.int32)
    of_safe = tl.full((BLOCK,), 0, tl.int32)
    of_unsafe = tl.full((BLOCK,), 0, tl.int32)
    of_rethink = tl.full((BLOCK,), 0, tl.int32)
    wrong = tl.full((BLOCK,), 0, tl.int32)
    for begin in range(0, n, BLOCK):
        rows = begin + tl.arange(0, BLOCK)
        place = rows.to(tl.int64) * target_stride
        target = tl.load(targets + place, mask=rows < n, other=ignored)
        is_valid = target != ignored
        valid += is_valid.to(tl.int32)
        # Without pivots their ids are -1, which is wrong where it is a target.
        of_safe += (target == safe).to(tl.int32)
        of_unsafe += (target == unsafe).to(tl.int32)
        of_rethink += (target == rethink).to(tl.int32)
        wrong += (is_valid & ((target < 0) | (target >= V))).to(tl.int32)
    tl.store(counts, tl.sum(valid, axis=0))
    tl.store(counts + 1, tl.sum(of_safe, axis=0))
    tl.store(counts + 2, tl.sum(of_unsafe, axis=0))
    tl.store(counts + 3, tl.sum(of_rethink, axis=0))
    tl.store(counts + 4, tl.sum(wrong, axis=0))


@triton.jit
def scale_kernel(
    source,  # n numbers in a row
    upstream,  # one number
    out,  # n numbers in a row, out; those of source where IN_PLACE
    n,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[:] = source * upstream, rounded once; every program takes one block in so many."""
    factor = tl.load(upstream)
    end = tl.cast(n, tl.int64)
    if IN_PLACE and factor == 1:
        end *= 0
    for begin in range(tl.program_id(0).to(tl.int64) * BLOCK, end, tl.num_programs(0) * BLOCK):
        places = begin + tl.arange(0, BLOCK)
        inside = places < n
        number = tl.load(source + places, mask=inside, other=0.0).to(factor.dtype)
        tl.store(out + places, (number * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def readout_kernel(
    logits,  # [n, V] in rows of stride
    stride,
    log_probs,  # [n, 3] out
    entropy,  # [n] out
    V,
    safe,
    unsafe,
    rethink,
    softcap: tl.float64,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    LANE: tl.constexpr,
):
    """One row: log_softmax(z)[[safe, unsafe, rethink]] and -(p * log p).sum(), in one reading."""
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * stride
    exact = entropy.dtype.element_ty
    cap = tl.full((), softcap, exact)

    lane_highest = tl.full((BLOCK // LANE,), LOWEST, exact)
    lane_total = tl.full((BLOCK // LANE,), 0.0, exact)
    lane_moment = tl.full((BLOCK // LANE,), 0.0, exact)  # sum of exp(z - highest) * (z - highest)
    for begin in range(0, V, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        z = tl.load(z_row + columns, mask=columns < stride, other=0.0).to(exact)
        if SOFTCAP:
            z = _capped(z, cap)
        z = tl.reshape(tl.where(columns < V, z, LOWEST), (BLOCK // LANE, LANE))
        higher = tl.maximum(lane_highest, tl.max(z, axis=1))
        fall = lane_highest - higher
        z -= higher[:, None]
        share = _exp(z)
        shrink = _exp(fall)
        lane_moment = shrink * (lane_moment + fall * lane_total) + tl.sum(share * z, axis=1)
        lane_total = shrink * lane_total + tl.sum(share, axis=1)
        lane_highest = higher
    highest = tl.max(lane_highest, axis=0)
    # A lane that lies beyond V as a whole has no part; its fall would be infinite.
    fall = tl.where(lane_highest > LOWEST, lane_highest - highest, 0.0)
    shrink = tl.where(lane_highest > LOWEST, tl.exp(fall), 0.0)
    total = tl.sum(shrink * lane_total, axis=0)
    moment = tl.sum(shrink * (lane_moment + fall * lane_total), axis=0)
    tl.store(entropy + row, tl.log(total) - moment / total)

    z_safe = tl.load(z_row + safe).to(exact)
    z_unsafe = tl.load(z_row + unsafe).to(exact)
    z_rethink = tl.load(z_row + rethink).to(exact)
    if SOFTCAP:
        z_safe = _capped(z_safe, cap)
        z_unsafe = _capped(z_unsafe, cap)
        z_rethink = _capped(z_rethink, cap)
    tl.store(log_probs + 3 * row, z_safe - highest - tl.log(total))
    tl.store(log_probs + 3 * row + 1, z_unsafe - highest - tl.log(total))
    tl.store(log_probs + 3 * row + 2, z_rethink - highest - tl.log(total))
