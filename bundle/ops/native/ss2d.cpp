// Fused four-direction selective scan (SS2D), forward and backward, for CPUs with 8-lane float arithmetic.
//
// For every direction k (0 rows, 1 columns, 2 and 3 their reverses) and every channel d, along the pixel sequence l:
//     a_l  = dt_bias + sum_r dt_weight[r] * proj_dt_l[r]          dt_l = softplus(a_l)
//     h_l  = exp(dt_l * A[n]) * h_{l-1} + dt_l * x_l * B_l[n]     (one state per n)
//     y_l  = sum_n C_l[n] * h_l[n] + D * x_l                      added to y at the pixel of l
//
// Layout (all float32, contiguous, channels last):
//     x, y (B, H, W, Di)    proj (B, H, W, 4, R + 2N) = [dt input | B | C]    dt_weight (4, Di, R)
//     dt_bias, D (4, Di)    A (4, Di, N)                                      states (B, 4, chunks, Dp, N)
// with Dp = Di rounded up to 8 (in `states` the order inside a block of 8 channels is [n][lane]).
//
// One task is (image, group of channels) and walks all four directions, so no two tasks write the same y. A direction
// is cut into chunks of kSteps. A chunk's rows of x and proj are first gathered into small contiguous buffers: the
// column directions have a stride that would map many pixels to the same cache sets. Inside a chunk the exponentials,
// which do not depend on each other, are computed ahead of the recurrence, which does. The backward pass walks the
// chunks in reverse, recomputes dt, exp and h from the state kept at each chunk's start, and propagates g_l = dL/dh_l:
//     g_l = dy_l C_l + exp(dt_{l+1} A) g_{l+1}
// Sums over channels (gradients of B, C and the dt input) are kept per lane and reduced once per chunk.
//
// Must not be compiled with -ffast-math: the exponential rounds by adding and subtracting a large constant.

#include "pool.h"
#include "simd.h"

namespace {

using iconet::Arena;

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

constexpr int kSteps = 64;  // time steps in a chunk: the distance between kept states
constexpr int kLanes = 8;
constexpr int kDirections = 4;

ICONET_INLINE v8 splat(float s) { return v8{s, s, s, s, s, s, s, s}; }

// max(bound, value) that lets a NaN in `value` through.
ICONET_INLINE v8 at_least(v8 value, float bound) {
#if defined(__AVX2__)
    return (v8)_mm256_max_ps((__m256)splat(bound), (__m256)value);
#else
    v8 b = splat(bound);
    return value < b ? b : value;
#endif
}

ICONET_INLINE v8 at_most(v8 value, float bound) {
#if defined(__AVX2__)
    return (v8)_mm256_min_ps((__m256)splat(bound), (__m256)value);
#else
    v8 b = splat(bound);
    return value > b ? b : value;
#endif
}

ICONET_INLINE v8 larger(v8 a, v8 b) {
#if defined(__AVX2__)
    return (v8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

ICONET_INLINE v8 magnitude(v8 a) { return (v8)((v8i)a & 0x7fffffff); }

// 2**v for v in [-126, 127], relative error 2e-7: nearest integer by the magic constant, a minimax polynomial beyond.
// The polynomial is exactly 1 at 0: a bias there, however small, would add up over the thousands of steps that a slowly
// decaying state remembers.
ICONET_INLINE v8 exp2_in_range(v8 v) {
    const v8 magic = splat(12582912.0f);
    v8 t = v + magic;
    v8 f = v - (t - magic);
    v8 p = splat(0.00132663874f) * f + splat(0.00966899842f);
    p = p * f + splat(0.0555069968f);
    p = p * f + splat(0.240222946f);
    p = p * f + splat(0.693147063f);
    p = p * f + splat(1.0f);
    return (v8)((v8i)p + ((v8i)t << 23));
}

ICONET_INLINE v8 exp2_clamped(v8 v) { return exp2_in_range(at_most(at_least(v, -126.0f), 127.0f)); }

constexpr float kLog2e = 1.44269504f;

// softplus(a) = max(a, 0) + log1p(z), z = exp(-|a|), with a polynomial for log1p(z)/z (relative error 3e-8).
ICONET_INLINE v8 softplus(v8 a, v8* z_out) {
    v8 z = exp2_in_range(at_least(magnitude(a) * splat(-kLog2e), -126.0f));
    v8 q = splat(0.00523269465f) * z + splat(-0.029505242f);
    q = q * z + splat(0.0782259604f);
    q = q * z + splat(-0.136632469f);
    q = q * z + splat(0.191060075f);
    q = q * z + splat(-0.248429825f);
    q = q * z + splat(0.333190969f);
    q = q * z + splat(-0.499994931f);
    q = q * z + splat(0.99999997f);
    *z_out = z;
    return at_least(a, 0.0f) + z * q;
}

// Sums over the lanes of eight vectors: out[i] = sum(rows[i]).
ICONET_INLINE void lane_sums(const v8* rows, float* out) {
#if defined(__AVX2__)
    __m256 a = _mm256_hadd_ps((__m256)rows[0], (__m256)rows[1]);
    __m256 b = _mm256_hadd_ps((__m256)rows[2], (__m256)rows[3]);
    __m256 c = _mm256_hadd_ps((__m256)rows[4], (__m256)rows[5]);
    __m256 d = _mm256_hadd_ps((__m256)rows[6], (__m256)rows[7]);
    __m256 ab = _mm256_hadd_ps(a, b), cd = _mm256_hadd_ps(c, d);
    __m256 lo = _mm256_permute2f128_ps(ab, cd, 0x20), hi = _mm256_permute2f128_ps(ab, cd, 0x31);
    _mm256_storeu_ps(out, _mm256_add_ps(lo, hi));
#else
    for (int i = 0; i < kLanes; ++i) {
        v8 r = rows[i];
        out[i] = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    }
#endif
}

}  // namespace

// What Python passes. Every pointer is a contiguous float32 array; `states` (and the gradients in a forward call) may
// be null.
extern "C" struct IconetSs2d {
    const float *x, *proj, *dt_weight, *dt_bias, *a, *d;
    float *y, *states;
    const float* dy;
    float *dx, *dproj;                              // dproj: (groups, B, H, W, 4, R + 2N), to be summed over groups
    float *ddt_weight, *ddt_bias, *da, *dd;         // (B, ...): to be summed over the batch
    int64_t batch, height, width, channels, n_state, rank, group;  // group: channels of a task, a multiple of 8
};

namespace {

// Weights of one channel group in lane order: [k][vector][row][lane].
struct Weights {
    v8 *w, *bias, *a, *a2, *a2_max, *d;
};

struct Buffers {
    Weights weight;
    float* proj;              // [step][R + 2N]
    int64_t* pixel;           // [step]
    v8 *x, *y, *h;            // [vector][step], [vector][step], [vector][n]
    v8 *dt, *du, *e, *state;  // [2 vectors][step], same, [2 * block][step], [2 * block][step + 1]
    v8 *sig, *g_du, *g_dt;    // backward only, [2 vectors][step]
    v8 *dy, *dx;              // [vector][step]
    v8* start;                // [vector][n], the state kept at the chunk's start
    v8 *lane_b, *lane_c, *lane_p;      // [n][step], [n][step], [r][step]
    v8 *da, *dw, *db, *dd;             // [vector][n], [vector][r], [vector], [vector]
    float* rows;              // [step][R + 2N]
};

constexpr int kMaxBlock = 8;  // states advanced together

Buffers carve(Arena& arena, const IconetSs2d& p, bool backward) {
    const size_t vectors = p.group / kLanes, n = p.n_state, r = p.rank, row = r + 2 * n;
    Buffers b{};
    b.weight.w = arena.take<v8>(kDirections * vectors * r);
    b.weight.bias = arena.take<v8>(kDirections * vectors);
    b.weight.a = arena.take<v8>(kDirections * vectors * n);
    b.weight.a2 = arena.take<v8>(kDirections * vectors * n);
    b.weight.a2_max = arena.take<v8>(kDirections * vectors);
    b.weight.d = arena.take<v8>(kDirections * vectors);
    b.proj = arena.take<float>(kSteps * row);
    b.pixel = arena.take<int64_t>(kSteps);
    b.x = arena.take<v8>(vectors * kSteps);
    b.y = arena.take<v8>(backward ? 0 : vectors * kSteps);
    b.h = arena.take<v8>(vectors * n);
    b.dt = arena.take<v8>(2 * kSteps);
    b.du = arena.take<v8>(2 * kSteps);
    b.e = arena.take<v8>(2 * kMaxBlock * kSteps);
    if (!backward) return b;
    b.state = arena.take<v8>(2 * kMaxBlock * (kSteps + 1));
    b.sig = arena.take<v8>(2 * kSteps);
    b.g_du = arena.take<v8>(2 * kSteps);
    b.g_dt = arena.take<v8>(2 * kSteps);
    b.dy = arena.take<v8>(vectors * kSteps);
    b.dx = arena.take<v8>(vectors * kSteps);
    b.start = arena.take<v8>(vectors * n);
    b.lane_b = arena.take<v8>(n * kSteps);
    b.lane_c = arena.take<v8>(n * kSteps);
    b.lane_p = arena.take<v8>(r * kSteps);
    b.da = arena.take<v8>(vectors * n);
    b.dw = arena.take<v8>(vectors * r);
    b.db = arena.take<v8>(vectors);
    b.dd = arena.take<v8>(vectors);
    b.rows = arena.take<float>(kSteps * row);
    return b;
}

// One (image, channel group). `live` channels are real, the rest of the last vector is zero.
struct Task {
    int64_t image, group, first, live, vectors;
};

Task task_of(const IconetSs2d& p, int64_t index) {
    const int64_t groups = (p.channels + p.group - 1) / p.group;
    Task t{};
    t.image = index / groups;
    t.group = index % groups;
    t.first = t.group * p.group;
    t.live = p.channels - t.first < p.group ? p.channels - t.first : p.group;
    t.vectors = (t.live + kLanes - 1) / kLanes;
    return t;
}

// (rows of `count` per channel) -> [vector][row][lane], zero in the lanes past the last channel.
void to_lanes(const float* src, int64_t live, int64_t count, v8* dst) {
    const int64_t vectors = (live + kLanes - 1) / kLanes;
    std::memset(dst, 0, sizeof(v8) * vectors * count);
    float* out = reinterpret_cast<float*>(dst);
    for (int64_t c = 0; c < live; ++c)
        for (int64_t j = 0; j < count; ++j) out[((c / kLanes) * count + j) * kLanes + c % kLanes] = src[c * count + j];
}

void from_lanes(const v8* src, int64_t live, int64_t count, float* dst) {
    const float* in = reinterpret_cast<const float*>(src);
    for (int64_t c = 0; c < live; ++c)
        for (int64_t j = 0; j < count; ++j) dst[c * count + j] = in[((c / kLanes) * count + j) * kLanes + c % kLanes];
}

void load_weights(const IconetSs2d& p, const Task& task, Weights& w, int k, int64_t stride) {
    const int64_t at = k * p.channels + task.first;
    to_lanes(p.dt_weight + at * p.rank, task.live, p.rank, w.w + k * stride * p.rank);
    to_lanes(p.dt_bias + at, task.live, 1, w.bias + k * stride);
    to_lanes(p.a + at * p.n_state, task.live, p.n_state, w.a + k * stride * p.n_state);
    to_lanes(p.d + at, task.live, 1, w.d + k * stride);
    for (int64_t v = 0; v < task.vectors; ++v) {
        v8 top = splat(0.0f);
        for (int64_t n = 0; n < p.n_state; ++n) {
            const int64_t i = (k * stride + v) * p.n_state + n;
            w.a2[i] = w.a[i] * splat(kLog2e);
            top = larger(top, magnitude(w.a2[i]));
        }
        w.a2_max[k * stride + v] = top;
    }
}

// Pixel of step l: the order that defines direction k.
void pixels_of(const IconetSs2d& p, int k, int64_t begin, int steps, int64_t* pixel) {
    const int64_t length = p.height * p.width;
    for (int t = 0; t < steps; ++t) {
        const int64_t l = k >= 2 ? length - 1 - (begin + t) : begin + t;
        pixel[t] = k % 2 ? (l % p.height) * p.width + l / p.height : l;
    }
}

void gather_proj(const IconetSs2d& p, const Task& task, int k, int steps, const Buffers& b) {
    const int64_t row = p.rank + 2 * p.n_state;
    const float* base = p.proj + task.image * p.height * p.width * kDirections * row + k * row;
    for (int t = 0; t < steps; ++t)
        std::memcpy(b.proj + t * row, base + b.pixel[t] * kDirections * row, sizeof(float) * row);
    // Preparation works on four steps at once; the steps past the end must be finite.
    for (int t = steps; t % 4; ++t) std::memset(b.proj + t * row, 0, sizeof(float) * row);
}

// Rows of a channels-last image at the chunk's pixels -> [vector][step].
void gather(const IconetSs2d& p, const Task& task, const float* image, int steps, const int64_t* pixel, v8* out) {
    const float* base = image + task.image * p.height * p.width * p.channels + task.first;
    const int64_t full = task.live / kLanes, rest = task.live % kLanes;
    for (int t = 0; t < steps; ++t) {
        const float* src = base + pixel[t] * p.channels;
        for (int64_t v = 0; v < full; ++v) std::memcpy(out + v * kSteps + t, src + v * kLanes, sizeof(v8));
        if (rest) {
            v8 last = splat(0.0f);
            std::memcpy(&last, src + full * kLanes, sizeof(float) * rest);
            out[full * kSteps + t] = last;
        }
    }
    for (int t = steps; t % 4; ++t)
        for (int64_t v = 0; v < task.vectors; ++v) out[v * kSteps + t] = splat(0.0f);
}

// The reverse of `gather`; the first direction writes, the others add.
void scatter(const IconetSs2d& p, const Task& task, const v8* in, bool add, int steps, const int64_t* pixel,
             float* image) {
    float* base = image + task.image * p.height * p.width * p.channels + task.first;
    const int64_t full = task.live / kLanes, rest = task.live % kLanes;
    for (int t = 0; t < steps; ++t) {
        float* dst = base + pixel[t] * p.channels;
        for (int64_t v = 0; v < full; ++v) {
            v8 value = in[v * kSteps + t], old;
            if (add) {
                std::memcpy(&old, dst + v * kLanes, sizeof(v8));
                value += old;
            }
            std::memcpy(dst + v * kLanes, &value, sizeof(v8));
        }
        for (int64_t i = 0; i < rest; ++i) {
            const float value = in[full * kSteps + t][i];
            dst[full * kLanes + i] = add ? dst[full * kLanes + i] + value : value;
        }
    }
}

// dt = softplus(a), du = dt * x and, for the backward pass, sigmoid(a); returns the largest dt of each lane.
template <bool kSigmoid>
v8 prepare(const float* proj, int64_t row, int64_t rank, const v8* w, v8 bias, const v8* x, int steps, v8* dt, v8* du,
           v8* sig) {
    v8 top = splat(0.0f);
    for (int t = 0; t < steps; t += 4) {
        v8 a[4] = {bias, bias, bias, bias};
        for (int64_t r = 0; r < rank; ++r)
            for (int j = 0; j < 4; ++j) a[j] += w[r] * splat(proj[(t + j) * row + r]);
        for (int j = 0; j < 4; ++j) {
            v8 z;
            v8 s = softplus(a[j], &z);
            dt[t + j] = s;
            du[t + j] = s * x[t + j];
            top = larger(s, top);
            if (kSigmoid) sig[t + j] = (a[j] < splat(0.0f) ? z : splat(1.0f)) / (splat(1.0f) + z);
        }
    }
    return top;
}

// True when no exponent of the chunk leaves the range of exp2_in_range (NaN answers false).
bool exponents_in_range(v8 dt_max, v8 a2_max) {
    v8 product = dt_max * a2_max;
    for (int i = 0; i < kLanes; ++i)
        if (!(product[i] < 126.0f)) return false;
    return true;
}

template <int kBlock>
void decays(const v8* dt, const v8* a2, int steps, bool in_range, v8* e) {
    if (in_range) {
        for (int t = 0; t < steps; ++t)
            for (int j = 0; j < kBlock; ++j) e[t * kBlock + j] = exp2_in_range(dt[t] * a2[j]);
    } else {
        for (int t = 0; t < steps; ++t)
            for (int j = 0; j < kBlock; ++j) e[t * kBlock + j] = exp2_clamped(dt[t] * a2[j]);
    }
}

template <int kBlock>
void recur(const v8* e, const v8* du, const float* b_row, const float* c_row, int64_t row, int steps, v8* h, v8* y) {
    v8 s[kBlock];
    for (int j = 0; j < kBlock; ++j) s[j] = h[j];
    for (int t = 0; t < steps; ++t) {
        const v8 u = du[t];
        v8 out = y[t];
        for (int j = 0; j < kBlock; ++j) s[j] = e[t * kBlock + j] * s[j] + u * splat(b_row[t * row + j]);
        // Two short chains of sums, not one long one.
        v8 even = s[0] * splat(c_row[t * row]);
        v8 odd = out;
        for (int j = 1; j < kBlock; ++j) (j % 2 ? odd : even) += s[j] * splat(c_row[t * row + j]);
        y[t] = even + odd;
    }
    for (int j = 0; j < kBlock; ++j) h[j] = s[j];
}

template <int kBlock>
int64_t forward_states(const IconetSs2d& p, const Buffers& b, const v8* a2, int64_t n, int steps, bool in_range, v8* h,
                       v8* y) {
    const int64_t row = p.rank + 2 * p.n_state;
    const float* b_row = b.proj + p.rank;
    const float* c_row = b_row + p.n_state;
    for (; n + kBlock <= p.n_state; n += kBlock) {
        decays<kBlock>(b.dt, a2 + n, steps, in_range, b.e);
        recur<kBlock>(b.e, b.du, b_row + n, c_row + n, row, steps, h + n, y);
    }
    return n;
}

int64_t chunks_of(const IconetSs2d& p) { return (p.height * p.width + kSteps - 1) / kSteps; }

float* states_at(const IconetSs2d& p, const Task& task, int k, int64_t chunk) {
    const int64_t padded = (p.channels + kLanes - 1) / kLanes * kLanes;
    return p.states + (((task.image * kDirections + k) * chunks_of(p) + chunk) * padded + task.first) * p.n_state;
}

void forward_task(const IconetSs2d& p, const Task& task, Buffers& b) {
    const int64_t length = p.height * p.width, stride = p.group / kLanes, row = p.rank + 2 * p.n_state;
    for (int k = 0; k < kDirections; ++k) {
        load_weights(p, task, b.weight, k, stride);
        std::memset(b.h, 0, sizeof(v8) * task.vectors * p.n_state);
        for (int64_t begin = 0; begin < length; begin += kSteps) {
            const int steps = length - begin < kSteps ? int(length - begin) : kSteps;
            if (p.states)
                std::memcpy(states_at(p, task, k, begin / kSteps), b.h, sizeof(v8) * task.vectors * p.n_state);
            pixels_of(p, k, begin, steps, b.pixel);
            gather_proj(p, task, k, steps, b);
            gather(p, task, p.x, steps, b.pixel, b.x);
            for (int64_t v = 0; v < task.vectors; ++v) {
                const int64_t kv = k * stride + v;
                v8 *x = b.x + v * kSteps, *y = b.y + v * kSteps, *h = b.h + v * p.n_state;
                v8 top = prepare<false>(b.proj, row, p.rank, b.weight.w + kv * p.rank, b.weight.bias[kv], x, steps,
                                        b.dt, b.du, nullptr);
                const bool in_range = exponents_in_range(top, b.weight.a2_max[kv]);
                const v8 skip = b.weight.d[kv];
                for (int t = 0; t < steps; ++t) y[t] = skip * x[t];
                const v8* a2 = b.weight.a2 + kv * p.n_state;
                int64_t n = forward_states<8>(p, b, a2, 0, steps, in_range, h, y);
                n = forward_states<4>(p, b, a2, n, steps, in_range, h, y);
                n = forward_states<2>(p, b, a2, n, steps, in_range, h, y);
                forward_states<1>(p, b, a2, n, steps, in_range, h, y);
            }
            scatter(p, task, b.y, k > 0, steps, b.pixel, p.y);
        }
    }
}

// One block of states of kVec channel vectors: recompute e and h forwards, then run the gradient backwards.
template <int kVec, int kBlock>
void backward_block(const IconetSs2d& p, Buffers& b, int64_t v, int64_t kv, int64_t n, int steps, bool in_range,
                    const v8* start) {
    const int64_t row = p.rank + 2 * p.n_state;
    const float* b_row = b.proj + p.rank + n;
    const float* c_row = b_row + p.n_state;
    const int64_t states = p.n_state;
    for (int i = 0; i < kVec; ++i) {
        const v8* dt = b.dt + i * kSteps;
        const v8* du = b.du + i * kSteps;
        v8* e = b.e + i * kBlock * kSteps;
        v8* s = b.state + i * kBlock * (kSteps + 1);
        decays<kBlock>(dt, b.weight.a2 + (kv + i) * states + n, steps, in_range, e);
        v8 h[kBlock];
        for (int j = 0; j < kBlock; ++j) s[j] = h[j] = start[i * states + n + j];
        for (int t = 0; t < steps; ++t)
            for (int j = 0; j < kBlock; ++j) {
                h[j] = e[t * kBlock + j] * h[j] + du[t] * splat(b_row[t * row + j]);
                s[(t + 1) * kBlock + j] = h[j];
            }
    }
    v8 carry[kVec][kBlock], da[kVec][kBlock];
    for (int i = 0; i < kVec; ++i)
        for (int j = 0; j < kBlock; ++j) {
            carry[i][j] = b.h[(v + i) * states + n + j];
            da[i][j] = splat(0.0f);
        }
    for (int t = steps - 1; t >= 0; --t) {
        v8 sum_b[kBlock], sum_c[kBlock];
        for (int j = 0; j < kBlock; ++j) {
            sum_b[j] = b.lane_b[(n + j) * kSteps + t];
            sum_c[j] = b.lane_c[(n + j) * kSteps + t];
        }
        for (int i = 0; i < kVec; ++i) {
            const v8 dy = b.dy[(v + i) * kSteps + t], dt = b.dt[i * kSteps + t], du = b.du[i * kSteps + t];
            const v8* e = b.e + (i * kSteps + t) * kBlock;
            const v8* s = b.state + (i * (kSteps + 1) + t) * kBlock;
            v8 g_du = b.g_du[i * kSteps + t], g_dt = b.g_dt[i * kSteps + t];
            for (int j = 0; j < kBlock; ++j) {
                const v8 g = carry[i][j] + dy * splat(c_row[t * row + j]);
                sum_c[j] += dy * s[kBlock + j];
                sum_b[j] += g * du;
                g_du += g * splat(b_row[t * row + j]);
                carry[i][j] = g * e[j];
                const v8 q = carry[i][j] * s[j];
                g_dt += q * b.weight.a[(kv + i) * states + n + j];
                da[i][j] += q * dt;
            }
            b.g_du[i * kSteps + t] = g_du;
            b.g_dt[i * kSteps + t] = g_dt;
        }
        for (int j = 0; j < kBlock; ++j) {
            b.lane_b[(n + j) * kSteps + t] = sum_b[j];
            b.lane_c[(n + j) * kSteps + t] = sum_c[j];
        }
    }
    for (int i = 0; i < kVec; ++i)
        for (int j = 0; j < kBlock; ++j) {
            b.h[(v + i) * states + n + j] = carry[i][j];
            b.da[(v + i) * states + n + j] += da[i][j];
        }
}

// From dL/d(dt) and dL/d(dt x) of one channel vector to x, the dt projection and D.
void backward_inputs(const IconetSs2d& p, Buffers& b, int64_t v, int64_t kv, int i, int steps) {
    const int64_t row = p.rank + 2 * p.n_state;
    const v8 *x = b.x + v * kSteps, *dy = b.dy + v * kSteps, skip = b.weight.d[kv];
    v8 *g_a = b.g_dt + i * kSteps, *dx = b.dx + v * kSteps;
    v8 db = splat(0.0f), dd = splat(0.0f);
    for (int t = 0; t < steps; ++t) {
        const v8 g_du = b.g_du[i * kSteps + t];
        g_a[t] = (g_a[t] + g_du * x[t]) * b.sig[i * kSteps + t];
        dx[t] = g_du * b.dt[i * kSteps + t] + skip * dy[t];
        db += g_a[t];
        dd += dy[t] * x[t];
    }
    b.db[v] += db;
    b.dd[v] += dd;
    for (int64_t r = 0; r < p.rank; ++r) {
        const v8 w = b.weight.w[kv * p.rank + r];
        v8 dw = splat(0.0f), *lane = b.lane_p + r * kSteps;
        for (int t = 0; t < steps; ++t) {
            lane[t] += g_a[t] * w;
            dw += g_a[t] * splat(b.proj[t * row + r]);
        }
        b.dw[v * p.rank + r] += dw;
    }
}

template <int kVec>
void backward_vectors(const IconetSs2d& p, Buffers& b, int64_t v, int64_t kv, int steps, const v8* start) {
    const int64_t row = p.rank + 2 * p.n_state, states = p.n_state;
    bool in_range = true;
    for (int i = 0; i < kVec; ++i) {
        v8 top = prepare<true>(b.proj, row, p.rank, b.weight.w + (kv + i) * p.rank, b.weight.bias[kv + i],
                               b.x + (v + i) * kSteps, steps, b.dt + i * kSteps, b.du + i * kSteps, b.sig + i * kSteps);
        in_range = exponents_in_range(top, b.weight.a2_max[kv + i]) && in_range;
    }
    std::memset(b.g_du, 0, sizeof(v8) * kVec * kSteps);
    std::memset(b.g_dt, 0, sizeof(v8) * kVec * kSteps);
    int64_t n = 0;
    for (; n + 2 <= states; n += 2) backward_block<kVec, 2>(p, b, v, kv, n, steps, in_range, start + v * states);
    for (; n < states; ++n) backward_block<kVec, 1>(p, b, v, kv, n, steps, in_range, start + v * states);
    for (int i = 0; i < kVec; ++i) backward_inputs(p, b, v + i, kv + i, i, steps);
}

// Sum the lanes of [count][step] into column `first` of the rows [step][R + 2N].
void reduce_lanes(const v8* lanes, int64_t count, int64_t first, int64_t row, float* rows) {
    float sums[kLanes];
    for (int64_t j = 0; j < count; ++j)
        for (int t = 0; t < kSteps; t += kLanes) {
            lane_sums(lanes + j * kSteps + t, sums);
            for (int i = 0; i < kLanes; ++i) rows[(t + i) * row + first + j] = sums[i];
        }
}

void clear_lanes(const IconetSs2d& p, Buffers& b) {
    std::memset(b.lane_b, 0, sizeof(v8) * p.n_state * kSteps);
    std::memset(b.lane_c, 0, sizeof(v8) * p.n_state * kSteps);
    std::memset(b.lane_p, 0, sizeof(v8) * p.rank * kSteps);
}

void store_dproj(const IconetSs2d& p, const Task& task, int k, int steps, Buffers& b) {
    const int64_t row = p.rank + 2 * p.n_state, length = p.height * p.width;
    reduce_lanes(b.lane_p, p.rank, 0, row, b.rows);
    reduce_lanes(b.lane_b, p.n_state, p.rank, row, b.rows);
    reduce_lanes(b.lane_c, p.n_state, p.rank + p.n_state, row, b.rows);
    float* base = p.dproj + ((task.group * p.batch + task.image) * length * kDirections + k) * row;
    for (int t = 0; t < steps; ++t)
        std::memcpy(base + b.pixel[t] * kDirections * row, b.rows + t * row, sizeof(float) * row);
}

void clear_weight_gradients(const IconetSs2d& p, const Task& task, Buffers& b) {
    std::memset(b.h, 0, sizeof(v8) * task.vectors * p.n_state);  // here: the carried dL/dh
    std::memset(b.da, 0, sizeof(v8) * task.vectors * p.n_state);
    std::memset(b.dw, 0, sizeof(v8) * task.vectors * p.rank);
    std::memset(b.db, 0, sizeof(v8) * task.vectors);
    std::memset(b.dd, 0, sizeof(v8) * task.vectors);
}

void store_weight_gradients(const IconetSs2d& p, const Task& task, int k, const Buffers& b) {
    const int64_t at = (task.image * kDirections + k) * p.channels + task.first;
    from_lanes(b.da, task.live, p.n_state, p.da + at * p.n_state);
    from_lanes(b.dw, task.live, p.rank, p.ddt_weight + at * p.rank);
    from_lanes(b.db, task.live, 1, p.ddt_bias + at);
    from_lanes(b.dd, task.live, 1, p.dd + at);
}

void backward_task(const IconetSs2d& p, const Task& task, Buffers& b) {
    const int64_t length = p.height * p.width, stride = p.group / kLanes;
    for (int k = 0; k < kDirections; ++k) {
        load_weights(p, task, b.weight, k, stride);
        clear_weight_gradients(p, task, b);
        for (int64_t chunk = chunks_of(p) - 1; chunk >= 0; --chunk) {
            const int64_t begin = chunk * kSteps;
            const int steps = length - begin < kSteps ? int(length - begin) : kSteps;
            pixels_of(p, k, begin, steps, b.pixel);
            gather_proj(p, task, k, steps, b);
            gather(p, task, p.x, steps, b.pixel, b.x);
            gather(p, task, p.dy, steps, b.pixel, b.dy);
            clear_lanes(p, b);
            std::memcpy(b.start, states_at(p, task, k, chunk), sizeof(v8) * task.vectors * p.n_state);
            int64_t v = 0;
            for (; v + 2 <= task.vectors; v += 2) backward_vectors<2>(p, b, v, k * stride + v, steps, b.start);
            for (; v < task.vectors; ++v) backward_vectors<1>(p, b, v, k * stride + v, steps, b.start);
            scatter(p, task, b.dx, k > 0, steps, b.pixel, p.dx);
            store_dproj(p, task, k, steps, b);
        }
        store_weight_gradients(p, task, k, b);
    }
}

// Which worker runs a task does not change its result.
bool run_tasks(const IconetSs2d& p, iconet::Tasks& tasks, bool backward) {
    Arena arena;
    Buffers buffers;
    if (!arena.fill([&](Arena& a) { buffers = carve(a, p, backward); })) return false;
    for (int64_t index; (index = tasks.next()) >= 0;) {
        const Task task = task_of(p, index);
        if (backward)
            backward_task(p, task, buffers);
        else
            forward_task(p, task, buffers);
    }
    return true;
}

int run(const IconetSs2d& p, int64_t threads, bool backward) {
    const int64_t groups = (p.channels + p.group - 1) / p.group;
    return !iconet::share(threads, p.batch * groups, [&](iconet::Tasks& t) { return run_tasks(p, t, backward); });
}

}  // namespace

extern "C" {

int64_t iconet_ss2d_steps() { return kSteps; }

// Both return 0, or 1 when memory ran out.
int iconet_ss2d_forward(const IconetSs2d* p, int64_t threads) { return run(*p, threads, false); }
int iconet_ss2d_backward(const IconetSs2d* p, int64_t threads) { return run(*p, threads, true); }
}
