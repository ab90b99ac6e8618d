// The four-direction selective scan of channels-last maps, forward, for the kernels that contain it.
//
// For every direction k (0 rows, 1 columns, 2 and 3 their reverses) and every channel d, along the pixel sequence l:
//     a_l  = dt_bias + sum_r dt_weight[r] * proj_dt_l[r]          dt_l = softplus(a_l)
//     h_l  = exp(dt_l * A[n]) * h_{l-1} + dt_l * x_l * B_l[n]     (one state per n)
//     y_l  = sum_n C_l[n] * h_l[n] + D * x_l                      added to y at the pixel of l

#pragma once

#include "pool.h"
#include "product.h"
#include "simd.h"

namespace iconet {

constexpr int kSteps = 32;  // time steps in a chunk: the distance between kept states
constexpr int kDirections = 4;
constexpr int kBlockMax = kLanes == 16 ? 8 : 4;  // states advanced together: as many as the registers hold

// Parameters as PyTorch has them: dt_weight (4, Di, R), dt_bias and d (4, Di), a (4, Di, N).
struct ScanParameters {
    const float *dt_weight, *dt_bias, *a, *d;
    int64_t channels, n_state, rank;
    int64_t row() const { return rank + 2 * n_state; }
    int64_t vectors() const { return (channels + kLanes - 1) / kLanes; }
};

// The same in lane order, of `vectors` vectors of channels: [k][vector][row][lane], zero past the last channel.
struct ScanWeights {
    vf *w, *bias, *a, *a2, *a2_max, *d;

    void carve(Arena& arena, const ScanParameters& p, int64_t vectors) {
        w = arena.take<vf>(kDirections * vectors * p.rank);
        bias = arena.take<vf>(kDirections * vectors);
        a = arena.take<vf>(kDirections * vectors * p.n_state);
        a2 = arena.take<vf>(kDirections * vectors * p.n_state);
        a2_max = arena.take<vf>(kDirections * vectors);
        d = arena.take<vf>(kDirections * vectors);
    }
    // Direction k of the channels [first, first + live).
    void fill(const ScanParameters& p, int k, int64_t first, int64_t live, int64_t vectors);
};

// (rows of `count` per channel) -> [vector][row][lane], zero in the lanes past the last channel.
inline void to_lanes(const float* src, int64_t live, int64_t count, vf* dst) {
    std::memset(dst, 0, sizeof(vf) * ((live + kLanes - 1) / kLanes) * count);
    float* out = reinterpret_cast<float*>(dst);
    for (int64_t c = 0; c < live; ++c)
        for (int64_t j = 0; j < count; ++j) out[((c / kLanes) * count + j) * kLanes + c % kLanes] = src[c * count + j];
}

inline void ScanWeights::fill(const ScanParameters& p, int k, int64_t first, int64_t live, int64_t vectors) {
    const int64_t at = k * p.channels + first, kv = k * vectors;
    to_lanes(p.dt_weight + at * p.rank, live, p.rank, w + kv * p.rank);
    to_lanes(p.dt_bias + at, live, 1, bias + kv);
    to_lanes(p.a + at * p.n_state, live, p.n_state, a + kv * p.n_state);
    to_lanes(p.d + at, live, 1, d + kv);
    for (int64_t v = 0; v < (live + kLanes - 1) / kLanes; ++v) {
        vf top = splat(0.0f);
        for (int64_t n = 0; n < p.n_state; ++n) {
            const int64_t i = (kv + v) * p.n_state + n;
            a2[i] = a[i] * splat(kLog2e);
            top = larger(top, magnitude(a2[i]));
        }
        a2_max[kv + v] = top;
    }
}

// 2**v of kCount vectors, side by side: one alone would wait for itself. With kAny any v is right; without, those that
// exp2_in_range takes.
template <int kCount, bool kAny>
ICONET_INLINE void exponentials(const vf* v, vf* out) {
#if defined(__AVX512DQ__)
    vf f[kCount], p[kCount];
    for (int j = 0; j < kCount; ++j) f[j] = (vf)_mm512_reduce_ps((__m512)v[j], 0);  // v less the nearest integer
    for (int j = 0; j < kCount; ++j) p[j] = splat(0.00132663874f) * f[j] + splat(0.00966899842f);
    for (int j = 0; j < kCount; ++j) p[j] = p[j] * f[j] + splat(0.0555069968f);
    for (int j = 0; j < kCount; ++j) p[j] = p[j] * f[j] + splat(0.240222946f);
    for (int j = 0; j < kCount; ++j) p[j] = p[j] * f[j] + splat(0.693147063f);
    for (int j = 0; j < kCount; ++j) p[j] = p[j] * f[j] + splat(1.0f);
    for (int j = 0; j < kCount; ++j) out[j] = (vf)_mm512_scalef_ps((__m512)p[j], (__m512)(v[j] - f[j]));
#else
    for (int j = 0; j < kCount; ++j) out[j] = kAny ? exp2_clamped(v[j]) : exp2_in_range(v[j]);
#endif
}

// Rows of floats, one for each step; a negative stride walks backwards.
struct Rows {
    const float* at;
    int64_t stride;
    const float* operator[](int64_t t) const { return at + t * stride; }
};

// 1 / v for v in [1, 2**126], relative error 1e-7 or less.
ICONET_INLINE vf inverse(vf v) {
#if defined(__AVX512F__)
    const vf guess = (vf)_mm512_rcp14_ps((__m512)v);
    return guess * (splat(2.0f) - v * guess);
#else
    return splat(1.0f) / v;
#endif
}

// log1p(z) / z for z in [0, 1], relative error 3e-8.
ICONET_INLINE vf log1p_over(vf z) {
    vf q = splat(0.00523269465f) * z + splat(-0.029505242f);
    q = q * z + splat(0.0782259604f);
    q = q * z + splat(-0.136632469f);
    q = q * z + splat(0.191060075f);
    q = q * z + splat(-0.248429825f);
    q = q * z + splat(0.333190969f);
    q = q * z + splat(-0.499994931f);
    return q * z + splat(0.99999997f);
}

// dt = softplus(a), du = dt * x and out = D * x of kCount steps from t; returns the larger of `top` and the time steps.
template <int kCount>
ICONET_INLINE vf prepare_some(int t, Rows proj, int64_t rank, const vf* w, vf bias, vf skip, Rows x, int64_t live, vf top,
                              vf* dt, vf* du, vf* out) {
    vf a[kCount], z[kCount], q[kCount];
    for (int j = 0; j < kCount; ++j) a[j] = bias;
    for (int64_t r = 0; r < rank; ++r)
        for (int j = 0; j < kCount; ++j) a[j] += w[r] * splat(proj[t + j][r]);
    for (int j = 0; j < kCount; ++j) q[j] = at_least(magnitude(a[j]) * splat(-kLog2e), -126.0f);
    exponentials<kCount, false>(q, z);
    for (int j = 0; j < kCount; ++j) q[j] = log1p_over(z[j]);
    for (int j = 0; j < kCount; ++j) {
        const vf step = at_least(a[j], 0.0f) + z[j] * q[j];
        const vf value = live >= kLanes ? load(x[t + j]) : load_part(x[t + j], live);
        dt[t + j] = step;
        du[t + j] = step * value;
        out[t + j] = skip * value;
        top = larger(step, top);
    }
    return top;
}

ICONET_INLINE vf prepare(Rows proj, int64_t rank, const vf* w, vf bias, vf skip, Rows x, int64_t live, int steps, vf* dt,
                         vf* du, vf* out) {
    vf top = splat(0.0f);
    int t = 0;
    for (; t + 4 <= steps; t += 4) top = prepare_some<4>(t, proj, rank, w, bias, skip, x, live, top, dt, du, out);
    for (; t < steps; ++t) top = prepare_some<1>(t, proj, rank, w, bias, skip, x, live, top, dt, du, out);
    return top;
}

// True when no exponent of the chunk leaves the range of exp2_in_range (NaN answers false).
ICONET_INLINE bool exponents_in_range(vf dt_max, vf a2_max) {
#if defined(__AVX512DQ__)
    return true;  // `exponentials` takes any
#else
    const vf product = dt_max * a2_max;
    for (int i = 0; i < kLanes; ++i)
        if (!(product[i] < 126.0f)) return false;
    return true;
#endif
}

// The recurrence of kBlock states over a chunk. The exponentials do not depend on each other: the processor computes
// those of later steps while the states wait for each other.
template <int kBlock, bool kAny>
void recur(const vf* dt, const vf* du, const vf* a2, Rows b, Rows c, int steps, vf* h, vf* out) {
    vf s[kBlock], rate[kBlock];
    for (int j = 0; j < kBlock; ++j) s[j] = h[j];
    for (int j = 0; j < kBlock; ++j) rate[j] = a2[j];
    for (int t = 0; t < steps; ++t) {
        const float *b_t = b[t], *c_t = c[t];
        vf e[kBlock];
        for (int j = 0; j < kBlock; ++j) e[j] = dt[t] * rate[j];
        exponentials<kBlock, kAny>(e, e);
        const vf u = du[t];
        for (int j = 0; j < kBlock; ++j) s[j] = e[j] * s[j] + u * splat(b_t[j]);
        // Two short chains of sums, not one long one.
        vf even = s[0] * splat(c_t[0]), odd = out[t];
        for (int j = 1; j < kBlock; ++j) (j % 2 ? odd : even) += s[j] * splat(c_t[j]);
        out[t] = even + odd;
    }
    for (int j = 0; j < kBlock; ++j) h[j] = s[j];
}

template <int kBlock>
int64_t recur_blocks(const vf* dt, const vf* du, const vf* a2, Rows b, Rows c, int64_t n, int64_t n_state, int steps,
                     bool in_range, vf* h, vf* out) {
    for (; n + kBlock <= n_state; n += kBlock)
        (in_range ? recur<kBlock, false> : recur<kBlock, true>)(dt, du, a2 + n, {b.at + n, b.stride},
                                                                {c.at + n, c.stride}, steps, h + n, out);
    return n;
}

// All directions of one image, as the workers share them. x, y: channels last, `pitch` floats from pixel to pixel.
struct Scan {
    ScanParameters p;
    ScanWeights weights;  // of all channels
    int64_t height, width, pitch;
    const float* x;
    const float* proj;  // (H, W, 4, R + 2N); null: the scan makes it from x with
    const vf* x_proj;   // the packed maps of the four directions, each (R + 2N, channels)
    float* y;
    float* states;  // (4, chunks, channels rounded up to 16, N): the state at each chunk's start; null: not kept
    vf* carry;      // [k][vector][n], zero at first: the state between the parts of a direction
};

// Memory of one worker.
struct ScanBuffers {
    vf *dt, *du, *out;         // [step]
    float* proj;               // [step][R + 2N rounded up to vectors]
    float *x, *y, *strip_proj; // a strip of columns
    int64_t columns;           // in a strip

    void carve(Arena& arena, const Scan& s) {
        const int64_t channels = s.p.vectors() * kLanes;
        dt = arena.take<vf>(kSteps);
        du = arena.take<vf>(kSteps);
        out = arena.take<vf>(kSteps);
        proj = arena.take<float>(s.proj ? 0 : kSteps * round_up(s.p.row(), kLanes));
        constexpr int64_t kStripFloats = 1 << 16;  // of x: with y it stays in the second-level cache
        columns = kStripFloats / (s.height * channels);
        columns = columns < 2 ? 2 : columns > 16 ? 16 : columns;
        if (columns > s.width) columns = s.width;
        x = arena.take<float>(columns * s.height * channels);
        y = arena.take<float>(columns * s.height * channels);
        strip_proj = arena.take<float>(s.proj ? columns * s.height * s.p.row() : 0);
    }
};

// Pixels [begin, end) in the order of the rows (or columns) of the image, at equal distances in memory. The pointers are
// at `begin`; x and y at the first channel of the task, `all` at the first channel.
struct Stretch {
    int64_t begin, end;
    const float *x, *all, *proj;
    float* y;
    int64_t x_pitch, y_pitch, proj_pitch;
    bool add;  // to y, instead of writing it
};

ICONET_INLINE float* states_at(const Scan& s, int k, int64_t chunk, int64_t vector) {
    const int64_t chunks = (s.height * s.width + kSteps - 1) / kSteps;
    return s.states + ((k * chunks + chunk) * round_up(s.p.channels, 16) + vector * kLanes) * s.p.n_state;
}

// One vector of channels over a chunk: rows at the first step, strides signed.
inline void advance_vector(const Scan& s, const ScanBuffers& b, int k, int64_t vector, Rows x, Rows proj, int steps,
                           float* y, int64_t y_stride, bool add) {
    const int64_t kv = k * s.p.vectors() + vector, n_state = s.p.n_state, rank = s.p.rank;
    const int64_t live = s.p.channels - vector * kLanes;
    const vf top = prepare(proj, rank, s.weights.w + kv * rank, s.weights.bias[kv], s.weights.d[kv], x, live, steps,
                           b.dt, b.du, b.out);
    const bool in_range = exponents_in_range(top, s.weights.a2_max[kv]);
    const vf* a2 = s.weights.a2 + kv * n_state;
    vf* h = s.carry + kv * n_state;
    const Rows in{proj.at + rank, proj.stride}, read{proj.at + rank + n_state, proj.stride};
    int64_t n = recur_blocks<kBlockMax>(b.dt, b.du, a2, in, read, 0, n_state, steps, in_range, h, b.out);
    n = recur_blocks<4>(b.dt, b.du, a2, in, read, n, n_state, steps, in_range, h, b.out);
    n = recur_blocks<2>(b.dt, b.du, a2, in, read, n, n_state, steps, in_range, h, b.out);
    recur_blocks<1>(b.dt, b.du, a2, in, read, n, n_state, steps, in_range, h, b.out);
    if (live >= kLanes) {
        for (int t = 0; t < steps; ++t) store(y + t * y_stride, add ? load(y + t * y_stride) + b.out[t] : b.out[t]);
    } else {
        for (int t = 0; t < steps; ++t) {
            float* to = y + t * y_stride;
            store_part(to, add ? load_part(to, live) + b.out[t] : b.out[t], live);
        }
    }
}

// The vectors [first, last) along direction k over a stretch.
inline void advance(const Scan& s, const ScanBuffers& b, int k, int64_t first, int64_t last, const Stretch& st) {
    const bool reverse = k >= 2;
    const int64_t length = s.height * s.width, sign = reverse ? -1 : 1, row = s.p.row();
    const int64_t made = round_up(row, kLanes), end = reverse ? length - st.begin : st.end;
    for (int64_t l = reverse ? length - st.end : st.begin, steps; l < end; l += steps) {
        steps = kSteps - l % kSteps < end - l ? kSteps - l % kSteps : end - l;
        const int64_t at = (reverse ? length - 1 - l : l) - st.begin, low = reverse ? at - steps + 1 : at;
        Rows proj{st.proj + at * st.proj_pitch, sign * st.proj_pitch};
        if (!s.proj) {
            product(st.all + low * st.x_pitch, st.x_pitch, steps, s.x_proj + k * packed_vectors(row, s.p.channels), row,
                    s.p.channels, [&](int64_t m, int64_t v, vf value) { store(b.proj + m * made + v * kLanes, value); });
            proj = {b.proj + (reverse ? steps - 1 : 0) * made, sign * made};
        }
        if (s.states && l % kSteps == 0)
            std::memcpy(states_at(s, k, l / kSteps, first), s.carry + (k * s.p.vectors() + first) * s.p.n_state,
                        sizeof(vf) * (last - first) * s.p.n_state);
        for (int64_t v = first; v < last; ++v) {
            const int64_t channel = (v - first) * kLanes;
            advance_vector(s, b, k, v, {st.x + at * st.x_pitch + channel, sign * st.x_pitch}, proj, int(steps),
                           st.y + at * st.y_pitch + channel, sign * st.y_pitch, st.add);
        }
    }
}

inline void advance_rows(const Scan& s, const ScanBuffers& b, int k, int64_t first, int64_t last, int64_t begin,
                         int64_t end, bool add) {
    const int64_t channel = first * kLanes, row = s.p.row();
    const float* x = s.x + begin * s.pitch;
    advance(s, b, k, first, last,
            {begin, end, x + channel, x, s.proj ? s.proj + (begin * kDirections + k) * row : nullptr,
             s.y + begin * s.pitch + channel, s.pitch, s.pitch, kDirections * row, add});
}

// dst[i] = src[i], or += with kAdd, for `count` floats.
template <bool kAdd>
ICONET_INLINE void move_floats(const float* src, int64_t count, float* dst) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(dst + i, kAdd ? load(dst + i) + load(src + i) : load(src + i));
    if (i < count) {
        const vf value = load_part(src + i, count - i);
        store_part(dst + i, kAdd ? load_part(dst + i, count - i) + value : value, count - i);
    }
}

ICONET_INLINE void fetch(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}

// Columns have a stride that would fetch a page and a few lines for every pixel. So a strip of neighbouring columns is
// copied row by row, scanned, and its result added to y row by row.
inline void advance_columns(const Scan& s, const ScanBuffers& b, int k, int64_t first, int64_t last, int64_t begin,
                            int64_t end) {
    const int64_t row = s.p.row(), channel = first * kLanes, height = s.height;
    const int64_t live = (last * kLanes < s.p.channels ? last * kLanes : s.p.channels) - channel;
    const int64_t y_pitch = (last - first) * kLanes;
    // The map that makes proj reads all channels.
    const int64_t x_first = s.proj ? channel : 0, x_live = s.proj ? live : s.p.channels, x_pitch = round_up(x_live, kLanes);
    for (int64_t done = 0, columns; done < end - begin; done += columns) {
        columns = b.columns < end - begin - done ? b.columns : end - begin - done;
        const int64_t left = k < 2 ? begin + done : end - done - columns;
        for (int64_t i = 0; i < height; ++i) {
            const int64_t ahead = (i + 4 < height ? i + 4 : height - 1) * s.width + left;
            fetch(s.x + ahead * s.pitch, columns * s.pitch);
            if (s.proj) fetch(s.proj + ahead * kDirections * row, columns * kDirections * row);
            for (int64_t c = 0; c < columns; ++c) {
                const int64_t pixel = i * s.width + left + c, at = c * height + i;
                move_floats<false>(s.x + pixel * s.pitch + x_first, x_live, b.x + at * x_pitch);
                if (s.proj) move_floats<false>(s.proj + (pixel * kDirections + k) * row, row, b.strip_proj + at * row);
            }
        }
        advance(s, b, k, first, last,
                {left * height, (left + columns) * height, b.x + channel - x_first, b.x, b.strip_proj, b.y, x_pitch,
                 y_pitch, row, false});
        for (int64_t i = 0; i < height; ++i) {
            fetch(s.y + ((i + 4 < height ? i + 4 : height - 1) * s.width + left) * s.pitch, columns * s.pitch);
            for (int64_t c = 0; c < columns; ++c)
                move_floats<true>(b.y + (c * height + i) * y_pitch, live,
                                  s.y + (i * s.width + left + c) * s.pitch + channel);
        }
    }
}

// A scan is four phases, each after the other. In a phase one half of the image is scanned along a direction and, at the
// same time, the other half along its reverse: the two are independent, and no pixel is in both.
constexpr int kPhases = 4;

inline void advance_half(const Scan& s, const ScanBuffers& b, int phase, int half, int64_t first, int64_t last) {
    const bool forwards = phase % 2 == half;  // the first half is scanned forwards first, the second half backwards
    if (phase < 2) {
        const int64_t length = s.height * s.width, middle = length / 2 / kSteps * kSteps;
        advance_rows(s, b, forwards ? 0 : 2, first, last, half ? middle : 0, half ? length : middle, phase == 1);
    } else {
        const int64_t middle = s.width / 2;
        advance_columns(s, b, forwards ? 1 : 3, first, last, half ? middle : 0, half ? s.width : middle);
    }
}

// Vectors of a task: the grouping with the least work on the busiest thread. A task costs its vectors and about two more
// for fetching pixels. The channels do not meet: the result does not depend on it.
inline int64_t group_vectors(int64_t vectors, int64_t images, int64_t threads) {
    int64_t best = vectors, least = INT64_MAX;
    for (int64_t groups = 1; groups <= vectors; ++groups) {
        const int64_t size = (vectors + groups - 1) / groups;
        const int64_t cost = (2 * images * groups + threads - 1) / threads * (size + 2);
        if (cost < least) least = cost, best = size;
    }
    return best;
}

// Scans the images `scan_of(0)` to `scan_of(images - 1)`, which differ in their pointers alone. False: no memory.
template <class ScanOf>
bool run_scans(int64_t threads, int64_t images, ScanOf scan_of) {
    const Scan like = scan_of(0);
    const int64_t vectors = like.p.vectors(), size = group_vectors(vectors, images, threads);
    const int64_t groups = (vectors + size - 1) / size, count = images * groups * 2;
    // The workers' memory is made here, once: large blocks that a helper frees go back to the system each time.
    const int64_t workers = threads < 1 ? 1 : threads < count ? threads : count;
    Arena arena;
    ScanBuffers* buffers;
    const auto carve = [&](Arena& a) {
        buffers = a.take<ScanBuffers>(workers);
        for (int64_t i = 0; i < workers; ++i) {
            ScanBuffers b;
            b.carve(a, like);
            if (buffers) buffers[i] = b;
        }
    };
    if (!arena.fill(carve)) return false;
    bool done = true;
    for (int phase = 0; done && phase < kPhases; ++phase) {
        int64_t joined = 0;
        done = share(threads, count, [&](Tasks& tasks) {
            const ScanBuffers& b = buffers[__atomic_fetch_add(&joined, 1, __ATOMIC_RELAXED)];
            for (int64_t i; (i = tasks.next()) >= 0;) {
                const int64_t first = i / 2 % groups * size, last = first + size < vectors ? first + size : vectors;
                advance_half(scan_of(i / 2 / groups), b, phase, int(i % 2), first, last);
            }
            return true;
        });
    }
    return done;
}

}  // namespace iconet
