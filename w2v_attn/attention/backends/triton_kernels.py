"""Triton kernels of steps (2) to (5) and their backward, for packed recordings of different lengths.

The steps are those of `mathematics.py`, a suffix spells the axes of a tile, and there are these additional letters:
    N  packed frames of all recordings                   I  rows (queries) of a tile      J  keys of a tile
    R  radius: distances beyond it have the bias of R                W  distances in a tile

Here (2) is  S = s Q Kᵀ + gᵢ table[clamp(j − i, −R, R)], with a gate g per row and head; or, with A of `relative.py` for
M distances,  S = s Q Kᵀ + A[i, clamp(j − i + left, 0, M − 1)]. In the kernels S and L are in units of log 2 ("bits"),
because the hardware computes exponentials of base 2. Sums, softmax and products accumulate in float32; factors of a
product have the dtype of the inputs, and float32 is never rounded to tf32.

One program computes one tile of one head of one recording and loops over the tiles of the other axis. Consecutive
programs compute the same head and recording, so that their shared inputs stay in the cache. Addresses are 64-bit
numbers for the start of a tile and 32-bit numbers inside it.

This module needs triton; `triton_launch.py` imports it when it launches a kernel.

Source: T. Dao, "FlashAttention-2", algorithms 1 and 2, for the order of the loops; J. Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", for Philox and its rounds.
"""

# The body of a kernel is in Triton's language, with other types than Python's.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from w2v_attn.ops.triton_support import is_interpreted

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# A number of Philox is four words of 32 bits. An entry takes 16 bits, so one number is enough for 8 keys of a row:
# random bits are the main cost of dropout here, and with 16 of them the rate is exact to within 2⁻¹⁷.
KEYS_PER_NUMBER = tl.constexpr(8)
# The smallest number with which Philox passes all its authors' tests of randomness; the default of 10 has a margin.
PHILOX_ROUNDS = tl.constexpr(7)
INTERPRETED = tl.constexpr(is_interpreted())
# Sizes and seeds that change with every batch: if Triton specialised to their values, it would recompile each time.
RUNTIME_SIZES = [
    "num_recordings",
    "num_slots",
    "slots_per_recording",
    "num_frames",
    "seed",
    "threshold",
    "radius",
    "left",
    "distances",
]


# --------------------------------------------------------------------------------------------- tiles and loads


@triton.jit
def find_tile(cu_seqlens, num_recordings, num_slots, slots_per_recording, TILE: tl.constexpr):
    """Return the tile of this program: head, first frame and length of its recording, first frame of the tile in it.

    If recordings are about equally long, each has `slots_per_recording` slots. If that number is 0, recording b has the
    slots from ⌊cu_seqlens[b] / TILE⌋ + b on: the first slot of the next recording is then ⌈T / TILE⌉ or one more slots
    later, so there are ⌊N / TILE⌋ + B slots for any lengths, and no table of tiles is needed. In unused slots the first
    frame is beyond the end of the recording.
    """
    program = tl.program_id(0)
    head = program // num_slots
    slot = program % num_slots
    if slots_per_recording > 0:
        recording = slot // slots_per_recording
        start = tl.load(cu_seqlens + recording)
        first = (slot - recording * slots_per_recording) * TILE
    else:
        recording = head * 0  # the last one whose first slot is at most this one, by bisection
        high = recording + num_recordings - 1
        while recording < high:
            middle = (recording + high + 1) // 2
            begins_before = tl.load(cu_seqlens + middle) // TILE + middle <= slot
            recording = tl.where(begins_before, middle, recording)
            high = tl.where(begins_before, high, middle - 1)
        start = tl.load(cu_seqlens + recording)
        first = (slot - start // TILE - recording) * TILE
    frames = tl.load(cu_seqlens + recording + 1) - start
    return head.to(tl.int64), start.to(tl.int64), frames, first


@triton.jit
def load_tile(x, frame_stride, first, frames, TILE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return the frames from `first` on, [TILE, PADDED]; 0 beyond the recording's end and beyond WIDTH channels.

    x: address of the recording in one head. Frames beyond its end belong to another recording: they are not read,
    because 0 · NaN is not 0.
    """
    rows = tl.arange(0, TILE)
    channels = tl.arange(0, PADDED)
    real = (rows < frames - first)[:, None]
    if WIDTH < PADDED:
        real = real & (channels < WIDTH)[None, :]
    base = x + tl.cast(first, tl.int64) * frame_stride
    return tl.load(base + rows[:, None] * frame_stride + channels[None, :], mask=real, other=0.0)


@triton.jit
def store_tile(x, frame_stride, first, frames, tile, TILE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store a tile to the frames from `first` on, in the dtype of x; see `load_tile`."""
    rows = tl.arange(0, TILE)
    channels = tl.arange(0, PADDED)
    real = (rows < frames - first)[:, None]
    if WIDTH < PADDED:
        real = real & (channels < WIDTH)[None, :]
    base = x + tl.cast(first, tl.int64) * frame_stride
    place = base + rows[:, None] * frame_stride + channels[None, :]
    tl.store(place, tile.to(x.dtype.element_ty), mask=real)


@triton.jit
def load_row_numbers(x, first, frames, other, TILE: tl.constexpr, stride=1):
    """Return one float32 number for each frame from `first` on, [TILE]; `other` beyond the recording's end."""
    rows = tl.arange(0, TILE)
    base = x + tl.cast(first, tl.int64) * stride
    return tl.load(base + rows * stride, mask=rows < frames - first, other=other)


@triton.jit
def multiply(left, right, total=None):
    """Return left @ right in float32, plus `total` if it is given."""
    if INTERPRETED:  # Triton's interpreter cannot multiply bfloat16
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def table_bias(table, distances, lowest, highest, radius):
    """Return the bias of every distance j − i of a tile, in the shape of `distances`.

    table: address of the head's 2R + 1 numbers. lowest, highest: range of the distances.
    """
    # Most tiles of a long recording are far from the diagonal, where a tile has one bias.
    if lowest >= radius:
        bias = tl.zeros(distances.shape, tl.float32) + tl.load(table + 2 * radius)
    elif highest <= -radius:
        bias = tl.zeros(distances.shape, tl.float32) + tl.load(table)
    else:
        bias = tl.load(table + tl.minimum(tl.maximum(distances, -radius), radius) + radius)
    return bias


@triton.jit
def distance_index(distance, left, distances):
    """Return the index among a row's numbers of a key that is `distance` frames after it."""
    return tl.minimum(tl.maximum(distance + left, 0), distances - 1)


@triton.jit
def key_end_bias(first_key, frames, TILE_J: tl.constexpr):
    """Return 0 for a recording's keys and −∞ beyond its end, [J]; scaling and adding it is one instruction."""
    return tl.where(tl.arange(0, TILE_J) < frames - first_key, 0.0, -float("inf"))


@triton.jit
def keep_mask(seed, head, first_row, first_key, threshold, TILE_I: tl.constexpr, TILE_J: tl.constexpr):
    """Return R of step (4), bool [I, J]: a function of only seed, head, row (among all recordings) and key.

    The counter has four words of 32 bits: key // 8, row, head, 0. Any two entries differ in one of them or in which
    16 bits of the number they take. first_key: a multiple of 8.
    threshold: 2¹⁶ times the dropout rate; entries below it are dropped.
    """
    zeros_IG = tl.zeros([TILE_I, TILE_J // KEYS_PER_NUMBER], tl.int32)
    rows_IG = zeros_IG + (first_row.to(tl.int32) + tl.arange(0, TILE_I))[:, None]
    keys_G = first_key + tl.arange(0, TILE_J // KEYS_PER_NUMBER) * KEYS_PER_NUMBER
    groups_IG = zeros_IG + (keys_G // KEYS_PER_NUMBER)[None, :]
    a, b, c, d = tl.philox(seed, groups_IG, rows_IG, zeros_IG + head.to(tl.int32), zeros_IG, PHILOX_ROUNDS)
    words = tl.join(tl.join(a, b), tl.join(c, d))
    # Compared before it is reordered by key, so that threads exchange bits and not words.
    keep = tl.join((words & 0xFFFF) >= threshold, (words >> 16) >= threshold)
    return tl.reshape(keep, [TILE_I, TILE_J])


# ------------------------------------------------------------------------------------------------- forward


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def attention_kernel(
    q, q_frame, q_head, k, k_frame, k_head, v, v_frame, v_head, o, o_frame, o_head, lse, table, gate, biases_of_rows,
    cu_seqlens, num_recordings, num_slots, slots_per_recording, num_frames, num_heads, scale, seed, threshold,
    keep_rate, radius, left, distances,
    D: tl.constexpr, D_PADDED: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr,
    TILE_I: tl.constexpr, TILE_J: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """Compute o [N, H, E] and the log-sum-exp, float32 [H, N]. Each program computes a tile of rows, over all keys.

    x_frame, x_head: strides of x, in elements. seed: 64 bits; threshold, keep_rate: see `keep_mask`, and 1 − p.
    table: float32 [H, 2R + 1], gate: float32 [N, H], biases_of_rows: float32 [N, H, distances], all contiguous.
    """
    head, start, frames, first_row = find_tile(cu_seqlens, num_recordings, num_slots, slots_per_recording, TILE_I)
    if first_row >= frames:
        return
    q += start * q_frame + head * q_head
    k += start * k_frame + head * k_head
    v += start * v_frame + head * v_head
    q_ID = load_tile(q, q_frame, first_row, frames, TILE_I, D, D_PADDED)
    rows_I = first_row + tl.arange(0, TILE_I)
    keys_J = tl.arange(0, TILE_J)
    if HAS_TABLE:
        table += head * (2 * radius + 1)
    if HAS_GATE:
        gate_I = load_row_numbers(gate + start * num_heads + head, first_row, frames, 0.0, TILE_I, num_heads)
    if HAS_ROWS:
        biases_I = biases_of_rows + ((start + rows_I).to(tl.int64) * num_heads + head) * distances

    max_I = tl.full([TILE_I], -float("inf"), tl.float32)
    sum_I = tl.zeros([TILE_I], tl.float32)
    o_IE = tl.zeros([TILE_I, E_PADDED], tl.float32)
    for first_key in range(0, frames, TILE_J):
        k_JD = load_tile(k, k_frame, first_key, frames, TILE_J, D, D_PADDED)
        s_IJ = multiply(q_ID, tl.trans(k_JD))  # (2)
        s_IJ = s_IJ * (scale * LOG2E) + key_end_bias(first_key, frames, TILE_J)[None, :]
        if HAS_TABLE:
            lowest = first_key - first_row - (TILE_I - 1)
            highest = first_key - first_row + (TILE_J - 1)
            bias_IJ = table_bias(table, first_key + keys_J[None, :] - rows_I[:, None], lowest, highest, radius)
            if HAS_GATE:
                s_IJ += bias_IJ * (gate_I * LOG2E)[:, None]
            else:
                s_IJ += bias_IJ * LOG2E
        if HAS_ROWS:
            index_IJ = distance_index(first_key + keys_J[None, :] - rows_I[:, None], left, distances)
            s_IJ += tl.load(biases_I[:, None] + index_IJ, mask=rows_I[:, None] < frames, other=0.0) * LOG2E
        # (3), relative to the largest score so far; earlier sums are rescaled. Every tile has a key, so the largest is
        # never −∞.
        new_max_I = tl.maximum(max_I, tl.max(s_IJ, 1))
        correction_I = tl.exp2(max_I - new_max_I)
        p_IJ = tl.exp2(s_IJ - new_max_I[:, None])
        sum_I = sum_I * correction_I + tl.sum(p_IJ, 1)
        max_I = new_max_I
        if HAS_DROPOUT:  # (4)
            keep_IJ = keep_mask(seed, head, start + first_row, first_key, threshold, TILE_I, TILE_J)
            p_IJ = tl.where(keep_IJ, p_IJ, 0.0)
        v_JE = load_tile(v, v_frame, first_key, frames, TILE_J, E, E_PADDED)
        o_IE = multiply(p_IJ.to(v_JE.dtype), v_JE, o_IE * correction_I[:, None])  # (5)

    o_IE *= (1.0 / (sum_I * keep_rate))[:, None]
    store_tile(o + start * o_frame + head * o_head, o_frame, first_row, frames, o_IE, TILE_I, E, E_PADDED)
    lse_I = (max_I + tl.log2(sum_I)) * LN2
    tl.store(lse + head * num_frames + start + rows_I, lse_I, mask=rows_I < frames)


# ------------------------------------------------------------------------------------------------ backward


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def row_sums_kernel(
    do, do_frame, do_head, o, o_frame, o_head, delta, num_slots, num_frames,
    E: tl.constexpr, E_PADDED: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Compute δ = rowsum(dO ∘ O), float32 [H, N]. Each program computes a tile of packed rows of one head."""
    head = (tl.program_id(0) // num_slots).to(tl.int64)
    first = (tl.program_id(0) % num_slots).to(tl.int64) * TILE_I
    do_IE = load_tile(do + head * do_head, do_frame, first, num_frames, TILE_I, E, E_PADDED)
    o_IE = load_tile(o + head * o_head, o_frame, first, num_frames, TILE_I, E, E_PADDED)
    delta_I = tl.sum(do_IE.to(tl.float32) * o_IE.to(tl.float32), 1)
    rows = first + tl.arange(0, TILE_I)
    tl.store(delta + head * num_frames + rows, delta_I, mask=rows < num_frames)


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def backward_keys_kernel(
    do, do_frame, do_head, q, q_frame, q_head, k, k_frame, k_head, v, v_frame, v_head, lse, delta, table, gate,
    biases_of_rows, dk, dk_frame, dk_head, dv, dv_frame, dv_head,
    cu_seqlens, num_recordings, num_slots, slots_per_recording, num_frames, num_heads, scale, seed, threshold,
    keep_rate, radius, left, distances,
    D: tl.constexpr, D_PADDED: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr,
    TILE_I: tl.constexpr, TILE_J: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv: the backward for keys and values. Each program computes a tile of keys, over all rows.

    Scores are [J, I] here, so that P̃ᵀ and dSᵀ are left factors without a transposition.
    """
    head, start, frames, first_key = find_tile(cu_seqlens, num_recordings, num_slots, slots_per_recording, TILE_J)
    if first_key >= frames:
        return
    do += start * do_frame + head * do_head
    q += start * q_frame + head * q_head
    lse += head * num_frames + start
    delta += head * num_frames + start
    k_JD = load_tile(k + start * k_frame + head * k_head, k_frame, first_key, frames, TILE_J, D, D_PADDED)
    v_JE = load_tile(v + start * v_frame + head * v_head, v_frame, first_key, frames, TILE_J, E, E_PADDED)
    keys_J = first_key + tl.arange(0, TILE_J)
    rows_I = tl.arange(0, TILE_I)
    if HAS_TABLE:
        table += head * (2 * radius + 1)
    if HAS_GATE:
        gate += start * num_heads + head

    dk_JD = tl.zeros([TILE_J, D_PADDED], tl.float32)
    dv_JE = tl.zeros([TILE_J, E_PADDED], tl.float32)
    for first_row in range(0, frames, TILE_I):
        q_ID = load_tile(q, q_frame, first_row, frames, TILE_I, D, D_PADDED)
        s_JI = multiply(k_JD, tl.trans(q_ID)) * (scale * LOG2E)  # (2)
        if HAS_TABLE:
            lowest = first_key - first_row - (TILE_I - 1)
            highest = first_key - first_row + (TILE_J - 1)
            bias_JI = table_bias(table, keys_J[:, None] - (first_row + rows_I)[None, :], lowest, highest, radius)
            if HAS_GATE:
                gate_I = load_row_numbers(gate, first_row, frames, 0.0, TILE_I, num_heads)
                s_JI += bias_JI * (gate_I * LOG2E)[None, :]
            else:
                s_JI += bias_JI * LOG2E
        if HAS_ROWS:
            frames_I = first_row + rows_I
            biases_I = biases_of_rows + ((start + frames_I).to(tl.int64) * num_heads + head) * distances
            places_JI = distance_index(keys_J[:, None] - frames_I[None, :], left, distances)
            s_JI += tl.load(biases_I[None, :] + places_JI, mask=frames_I[None, :] < frames, other=0.0) * LOG2E
        # (3). L = +∞ beyond the recording's end makes P = 0 in its rows. Keys beyond the end need no care: what they
        # get goes nowhere.
        lse_I = load_row_numbers(lse, first_row, frames, float("inf"), TILE_I) * LOG2E
        p_JI = tl.exp2(s_JI - lse_I[None, :])
        do_IE = load_tile(do, do_frame, first_row, frames, TILE_I, E, E_PADDED)
        dp_JI = multiply(v_JE, tl.trans(do_IE))  # (5)
        if HAS_DROPOUT:  # (4); dV is divided by 1 − p at the end
            keep_JI = tl.trans(keep_mask(seed, head, start + first_row, first_key, threshold, TILE_I, TILE_J))
            dp_JI = tl.where(keep_JI, dp_JI * (1.0 / keep_rate), 0.0)
            dropped_JI = tl.where(keep_JI, p_JI, 0.0)
        else:
            dropped_JI = p_JI
        dv_JE = multiply(dropped_JI.to(do_IE.dtype), do_IE, dv_JE)  # (5)
        ds_JI = p_JI * (dp_JI - load_row_numbers(delta, first_row, frames, 0.0, TILE_I)[None, :])  # (3)
        dk_JD = multiply(ds_JI.to(q_ID.dtype), q_ID, dk_JD)  # (2)

    dk += start * dk_frame + head * dk_head
    dv += start * dv_frame + head * dv_head
    store_tile(dk, dk_frame, first_key, frames, dk_JD * scale, TILE_J, D, D_PADDED)
    store_tile(dv, dv_frame, first_key, frames, dv_JE * (1.0 / keep_rate), TILE_J, E, E_PADDED)


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def backward_rows_kernel(
    do, do_frame, do_head, q, q_frame, q_head, k, k_frame, k_head, v, v_frame, v_head, lse, delta, table, gate,
    biases_of_rows, dq, dq_frame, dq_head, dtable, dgate, dbiases_of_rows,
    cu_seqlens, num_recordings, num_slots, slots_per_recording, num_frames, num_heads, scale, seed, threshold,
    keep_rate, radius, left, distances,
    D: tl.constexpr, D_PADDED: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr,
    TILE_I: tl.constexpr, TILE_J: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """Compute dq, dgate and dA, and add to dtable: the backward for queries and position biases.

    Each program computes a tile of rows, over all keys.
    """
    head, start, frames, first_row = find_tile(cu_seqlens, num_recordings, num_slots, slots_per_recording, TILE_I)
    if first_row >= frames:
        return
    k += start * k_frame + head * k_head
    v += start * v_frame + head * v_head
    q_ID = load_tile(q + start * q_frame + head * q_head, q_frame, first_row, frames, TILE_I, D, D_PADDED)
    do_IE = load_tile(do + start * do_frame + head * do_head, do_frame, first_row, frames, TILE_I, E, E_PADDED)
    # L = +∞ beyond the recording's end makes P = 0 there.
    lse_I = load_row_numbers(lse + head * num_frames + start, first_row, frames, float("inf"), TILE_I) * LOG2E
    delta_I = load_row_numbers(delta + head * num_frames + start, first_row, frames, 0.0, TILE_I)
    rows_I = first_row + tl.arange(0, TILE_I)
    keys_J = tl.arange(0, TILE_J)
    if HAS_TABLE:
        table += head * (2 * radius + 1)
        dtable += head * (2 * radius + 1)
        far_left_I = tl.zeros([TILE_I], tl.float32)
        far_right_I = tl.zeros([TILE_I], tl.float32)
    if HAS_GATE:
        gate += start * num_heads + head
        gate_I = load_row_numbers(gate, first_row, frames, 0.0, TILE_I, num_heads)
        dgate_I = tl.zeros([TILE_I], tl.float32)
    if HAS_ROWS:
        biases_I = biases_of_rows + ((start + rows_I).to(tl.int64) * num_heads + head) * distances
        dbiases_I = dbiases_of_rows + ((start + rows_I).to(tl.int64) * num_heads + head) * distances
        far_left_I = tl.zeros([TILE_I], tl.float32)
        far_right_I = tl.zeros([TILE_I], tl.float32)

    dq_ID = tl.zeros([TILE_I, D_PADDED], tl.float32)
    for first_key in range(0, frames, TILE_J):
        k_JD = load_tile(k, k_frame, first_key, frames, TILE_J, D, D_PADDED)
        s_IJ = multiply(q_ID, tl.trans(k_JD))  # (2)
        s_IJ = s_IJ * (scale * LOG2E) + key_end_bias(first_key, frames, TILE_J)[None, :]
        if HAS_TABLE:
            lowest = first_key - first_row - (TILE_I - 1)  # the distances of this tile
            highest = first_key - first_row + (TILE_J - 1)
            bias_IJ = table_bias(table, first_key + keys_J[None, :] - rows_I[:, None], lowest, highest, radius)
            if HAS_GATE:
                s_IJ += bias_IJ * (gate_I * LOG2E)[:, None]
            else:
                s_IJ += bias_IJ * LOG2E
        if HAS_ROWS:
            index_IJ = distance_index(first_key + keys_J[None, :] - rows_I[:, None], left, distances)
            s_IJ += tl.load(biases_I[:, None] + index_IJ, mask=rows_I[:, None] < frames, other=0.0) * LOG2E
        p_IJ = tl.exp2(s_IJ - lse_I[:, None])  # (3)
        v_JE = load_tile(v, v_frame, first_key, frames, TILE_J, E, E_PADDED)
        dp_IJ = multiply(do_IE, tl.trans(v_JE))  # (5)
        if HAS_DROPOUT:  # (4)
            keep_IJ = keep_mask(seed, head, start + first_row, first_key, threshold, TILE_I, TILE_J)
            dp_IJ = tl.where(keep_IJ, dp_IJ * (1.0 / keep_rate), 0.0)
        ds_IJ = p_IJ * (dp_IJ - delta_I[:, None])  # (3)
        dq_ID = multiply(ds_IJ.to(k_JD.dtype), k_JD, dq_ID)  # (2)
        if HAS_TABLE:
            if HAS_GATE:
                dgate_I += tl.sum(ds_IJ * bias_IJ, 1)
                ds_IJ *= gate_I[:, None]
            if highest <= -radius:  # all distances have the bias of −R, or of R
                far_left_I += tl.sum(ds_IJ, 1)
            elif lowest >= radius:
                far_right_I += tl.sum(ds_IJ, 1)
            else:
                add_diagonals(dtable, ds_IJ, first_key - first_row, radius, TILE_I, TILE_J)
        if HAS_ROWS:  # each distance of a row has one key, except the two that farther keys are clamped to
            first_IJ = index_IJ == 0
            last_IJ = (index_IJ == distances - 1) & (index_IJ > 0)
            far_left_I += tl.sum(tl.where(first_IJ, ds_IJ, 0.0), 1)
            far_right_I += tl.sum(tl.where(last_IJ, ds_IJ, 0.0), 1)
            inner_IJ = (rows_I[:, None] < frames) & (index_IJ > 0) & (index_IJ < distances - 1)
            tl.store(dbiases_I[:, None] + index_IJ, ds_IJ, mask=inner_IJ)

    store_tile(dq + start * dq_frame + head * dq_head, dq_frame, first_row, frames, dq_ID * scale, TILE_I, D, D_PADDED)
    if HAS_TABLE:
        tl.atomic_add(dtable, tl.sum(far_left_I, 0), sem="relaxed")
        tl.atomic_add(dtable + 2 * radius, tl.sum(far_right_I, 0), sem="relaxed")
    if HAS_ROWS:
        tl.store(dbiases_I, far_left_I, mask=rows_I < frames)
        if distances > 1:
            tl.store(dbiases_I + distances - 1, far_right_I, mask=rows_I < frames)
    if HAS_GATE:
        dgate += start * num_heads + head
        tl.store(dgate + rows_I.to(tl.int64) * num_heads, dgate_I, mask=rows_I < frames)


@triton.jit
def add_diagonals(dtable, ds_IJ, offset, radius, TILE_I: tl.constexpr, TILE_J: tl.constexpr):
    """Add a tile's dS to the gradient of its distances: first along the diagonals, then one atomic addition for each.

    Row i is rotated by i columns, so that column c has key (c + i) mod J: its distance is `offset` + c − n J, where
    n = ⌊(c + i) / J⌋ counts the wraps. Down a column, there is one sum for each n.
    """
    columns_J = tl.arange(0, TILE_J)
    keys_IJ = tl.arange(0, TILE_I)[:, None] + columns_J[None, :]
    rotated_IJ = tl.gather(ds_IJ, keys_IJ % TILE_J, 1)
    for n in tl.static_range((TILE_I + TILE_J - 2) // TILE_J + 1):
        sums_J = tl.sum(tl.where(keys_IJ // TILE_J == n, rotated_IJ, 0.0), 0)
        place = tl.minimum(tl.maximum(offset + columns_J - n * TILE_J, -radius), radius) + radius
        tl.atomic_add(dtable + place, sums_J, sem="relaxed")
