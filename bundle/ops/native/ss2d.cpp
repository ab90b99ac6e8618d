// The four-direction selective scan (SS2D) by itself, forward and backward; scan.h has the equations and the forward pass.
//
// Layout (all float32, contiguous, channels last):
//     x, y (B, H, W, Di)    proj (B, H, W, 4, R + 2N) = [dt input | B | C]    dt_weight (4, Di, R)
//     dt_bias, D (4, Di)    A (4, Di, N)                                      states (B, 4, chunks, Dp, N)
// with Dp = Di rounded up to 16 (in `states` the order inside a vector of channels is [n][lane]).
//
// A task of the backward pass is (image, group of channels) and walks all four directions, so no two tasks write the same
// dx. It walks the chunks in reverse, gathers a chunk's rows of x and proj into small contiguous buffers, recomputes dt,
// exp and h from the state kept at the chunk's start, and propagates g_l = dL/dh_l:
//     g_l = dy_l C_l + exp(dt_{l+1} A) g_{l+1}
// Sums over channels (gradients of B, C and the dt input) are kept per lane and reduced once per chunk.

#include "pool.h"
#include "scan.h"
#include "simd.h"

// What Python passes. Every pointer is a contiguous float32 array; `states` (and the gradients in a forward call) may
// be null.
extern "C" struct IconetSs2d {
    const float *x, *proj, *dt_weight, *dt_bias, *a, *d;
    float *y, *states;
    const float* dy;
    float *dx, *dproj;                              // dproj: (groups, B, H, W, 4, R + 2N), to be summed over groups
    float *ddt_weight, *ddt_bias, *da, *dd;         // (B, ...): to be summed over the batch
    int64_t batch, height, width, channels, n_state, rank;
    int64_t group;  // group: channels of a backward task, a multiple of 16
};

namespace {

using namespace iconet;

ScanParameters parameters(const IconetSs2d& p) {
    return {p.dt_weight, p.dt_bias, p.a, p.d, p.channels, p.n_state, p.rank};
}

bool forward(const IconetSs2d& p, int64_t threads) {
    const ScanParameters parameter = parameters(p);
    const int64_t pixels = p.height * p.width, vectors = parameter.vectors(), carried = kDirections * vectors * p.n_state;
    Arena arena;
    ScanWeights weights;
    vf* carry;
    const auto carve = [&](Arena& a) {
        weights.carve(a, parameter, vectors);
        carry = a.take<vf>(p.batch * carried);
    };
    if (!arena.fill(carve)) return false;
    prefer_huge_pages(p.y, sizeof(float) * p.batch * pixels * p.channels);
    for (int k = 0; k < kDirections; ++k) weights.fill(parameter, k, 0, p.channels, vectors);
    std::memset(carry, 0, sizeof(vf) * p.batch * carried);
    const int64_t states = (pixels + kSteps - 1) / kSteps * kDirections * round_up(p.channels, 16) * p.n_state;
    return run_scans(threads, p.batch, [&](int64_t i) {
        return Scan{parameter,
                    weights,
                    p.height,
                    p.width,
                    p.channels,
                    p.x + i * pixels * p.channels,
                    p.proj + i * pixels * kDirections * parameter.row(),
                    nullptr,
                    p.y + i * pixels * p.channels,
                    p.states ? p.states + i * states : nullptr,
                    carry + i * carried};
    });
}

// --- backward

constexpr int kPair = 2;       // vectors of channels that go back together
constexpr int kBackBlock = 2;  // and their states

// Memory of one worker of the backward pass.
struct Buffers {
    ScanWeights weight;                 // of the task's channels
    float* proj;                        // [step][R + 2N]
    int64_t* pixel;                     // [step]
    vf *x, *dy, *dx;                    // [vector][step]
    vf *h, *start;                      // [vector][n]: the carried dL/dh; the state kept at the chunk's start
    vf *dt, *du, *sig, *g_du, *g_dt;    // [vector of the pair][step]
    vf *e, *state;                      // [vector of the pair][step (and one more)][n of the block]
    vf *lane_b, *lane_c, *lane_p;       // [n][step], [n][step], [r][step]
    vf *da, *dw, *db, *dd;              // [vector][n], [vector][r], [vector], [vector]
    float* rows;                        // [step][R + 2N]
};

void carve(Buffers& b, Arena& arena, const IconetSs2d& p) {
    const size_t vectors = p.group / kLanes, n = p.n_state, r = p.rank, row = r + 2 * n;
    b.weight.carve(arena, parameters(p), vectors);
    b.proj = arena.take<float>(kSteps * row);
    b.pixel = arena.take<int64_t>(kSteps);
    for (vf** part : {&b.x, &b.dy, &b.dx}) *part = arena.take<vf>(vectors * kSteps);
    for (vf** part : {&b.h, &b.start, &b.da}) *part = arena.take<vf>(vectors * n);
    for (vf** part : {&b.dt, &b.du, &b.sig, &b.g_du, &b.g_dt}) *part = arena.take<vf>(kPair * kSteps);
    b.e = arena.take<vf>(kPair * kBackBlock * kSteps);
    b.state = arena.take<vf>(kPair * kBackBlock * (kSteps + 1));
    for (vf** part : {&b.lane_b, &b.lane_c}) *part = arena.take<vf>(n * kSteps);
    b.lane_p = arena.take<vf>(r * kSteps);
    b.dw = arena.take<vf>(vectors * r);
    for (vf** part : {&b.db, &b.dd}) *part = arena.take<vf>(vectors);
    b.rows = arena.take<float>(kSteps * row);
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

void from_lanes(const vf* src, int64_t live, int64_t count, float* dst) {
    const float* in = reinterpret_cast<const float*>(src);
    for (int64_t c = 0; c < live; ++c)
        for (int64_t j = 0; j < count; ++j) dst[c * count + j] = in[((c / kLanes) * count + j) * kLanes + c % kLanes];
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
    for (int t = 0; t < steps; ++t) move_floats<false>(base + b.pixel[t] * kDirections * row, row, b.proj + t * row);
    // Preparation works on four steps at once; the steps past the end must be finite.
    for (int t = steps; t % 4; ++t) std::memset(b.proj + t * row, 0, sizeof(float) * row);
}

// Rows of a channels-last image at the chunk's pixels -> [vector][step].
void gather(const IconetSs2d& p, const Task& task, const float* image, int steps, const int64_t* pixel, vf* out) {
    const float* base = image + task.image * p.height * p.width * p.channels + task.first;
    for (int t = 0; t < steps; ++t) {
        const float* src = base + pixel[t] * p.channels;
        for (int64_t c = 0, v = 0; c < task.live; c += kLanes, ++v)
            out[v * kSteps + t] = task.live - c >= kLanes ? load(src + c) : load_part(src + c, task.live - c);
    }
    for (int t = steps; t % 4; ++t)
        for (int64_t v = 0; v < task.vectors; ++v) out[v * kSteps + t] = splat(0.0f);
}

// The reverse of `gather`; the first direction writes, the others add.
void scatter(const IconetSs2d& p, const Task& task, const vf* in, bool add, int steps, const int64_t* pixel,
             float* image) {
    float* base = image + task.image * p.height * p.width * p.channels + task.first;
    for (int t = 0; t < steps; ++t) {
        float* dst = base + pixel[t] * p.channels;
        for (int64_t c = 0, v = 0; c < task.live; c += kLanes, ++v) {
            const vf value = in[v * kSteps + t];
            if (task.live - c >= kLanes)
                store(dst + c, add ? load(dst + c) + value : value);
            else
                store_part(dst + c, add ? load_part(dst + c, task.live - c) + value : value, task.live - c);
        }
    }
}

// dt = softplus(a), du = dt * x and sigmoid(a) of four steps at a time; returns the largest dt of each lane.
vf prepare_back(const float* proj, int64_t row, int64_t rank, const vf* w, vf bias, const vf* x, int steps, vf* dt, vf* du,
                vf* sig) {
    vf top = splat(0.0f);
    for (int t = 0; t < steps; t += 4) {
        vf a[4] = {bias, bias, bias, bias}, z[4];
        for (int64_t r = 0; r < rank; ++r)
            for (int j = 0; j < 4; ++j) a[j] += w[r] * splat(proj[(t + j) * row + r]);
        for (int j = 0; j < 4; ++j) z[j] = at_least(magnitude(a[j]) * splat(-kLog2e), -126.0f);
        exponentials<4, false>(z, z);
        for (int j = 0; j < 4; ++j) {
            const vf s = at_least(a[j], 0.0f) + z[j] * log1p_over(z[j]);
            dt[t + j] = s;
            du[t + j] = s * x[t + j];
            top = larger(s, top);
            sig[t + j] = (a[j] < splat(0.0f) ? z[j] : splat(1.0f)) * inverse(splat(1.0f) + z[j]);
        }
    }
    return top;
}

// exp(dt A) and the states of kBlock states of one vector of channels, from those at the chunk's start.
template <int kBlock, bool kAny>
void states_again(const vf* dt, const vf* du, const vf* a2, const float* b_row, int64_t row, int steps, const vf* start,
                  vf* e, vf* s) {
    vf h[kBlock];
    for (int j = 0; j < kBlock; ++j) s[j] = h[j] = start[j];
    for (int t = 0; t < steps; ++t) {
        vf v[kBlock];
        for (int j = 0; j < kBlock; ++j) v[j] = dt[t] * a2[j];
        exponentials<kBlock, kAny>(v, v);
        for (int j = 0; j < kBlock; ++j) {
            e[t * kBlock + j] = v[j];
            h[j] = v[j] * h[j] + du[t] * splat(b_row[t * row + j]);
            s[(t + 1) * kBlock + j] = h[j];
        }
    }
}

float* states_at(const IconetSs2d& p, const Task& task, int k, int64_t chunk) {
    const int64_t chunks = (p.height * p.width + kSteps - 1) / kSteps, padded = round_up(p.channels, 16);
    return p.states + (((task.image * kDirections + k) * chunks + chunk) * padded + task.first) * p.n_state;
}

// One block of states of kVec channel vectors: recompute e and h forwards, then run the gradient backwards.
template <int kVec, int kBlock>
void backward_block(const IconetSs2d& p, Buffers& b, int64_t v, int64_t kv, int64_t n, int steps, bool in_range,
                    const vf* start) {
    const int64_t row = p.rank + 2 * p.n_state;
    const float* b_row = b.proj + p.rank + n;
    const float* c_row = b_row + p.n_state;
    const int64_t states = p.n_state;
    for (int i = 0; i < kVec; ++i) {
        (in_range ? states_again<kBlock, false> : states_again<kBlock, true>)(
            b.dt + i * kSteps, b.du + i * kSteps, b.weight.a2 + (kv + i) * states + n, b_row, row, steps,
            start + i * states + n, b.e + i * kBlock * kSteps, b.state + i * kBlock * (kSteps + 1));
    }
    const bool first_vectors = v == 0, first_states = n == 0;
    vf carry[kVec][kBlock], da[kVec][kBlock];
    for (int i = 0; i < kVec; ++i)
        for (int j = 0; j < kBlock; ++j) {
            carry[i][j] = b.h[(v + i) * states + n + j];
            da[i][j] = splat(0.0f);
        }
    for (int t = steps - 1; t >= 0; --t) {
        vf sum_b[kBlock], sum_c[kBlock];
        for (int j = 0; j < kBlock; ++j) {
            sum_b[j] = first_vectors ? splat(0.0f) : b.lane_b[(n + j) * kSteps + t];
            sum_c[j] = first_vectors ? splat(0.0f) : b.lane_c[(n + j) * kSteps + t];
        }
        for (int i = 0; i < kVec; ++i) {
            const vf dy = b.dy[(v + i) * kSteps + t], dt = b.dt[i * kSteps + t], du = b.du[i * kSteps + t];
            const vf* e = b.e + (i * kSteps + t) * kBlock;
            const vf* s = b.state + (i * (kSteps + 1) + t) * kBlock;
            vf g_du = first_states ? splat(0.0f) : b.g_du[i * kSteps + t];
            vf g_dt = first_states ? splat(0.0f) : b.g_dt[i * kSteps + t];
            for (int j = 0; j < kBlock; ++j) {
                const vf g = carry[i][j] + dy * splat(c_row[t * row + j]);
                sum_c[j] += dy * s[kBlock + j];
                sum_b[j] += g * du;
                g_du += g * splat(b_row[t * row + j]);
                carry[i][j] = g * e[j];
                const vf q = carry[i][j] * s[j];
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
    const vf *x = b.x + v * kSteps, *dy = b.dy + v * kSteps, skip = b.weight.d[kv];
    vf *g_a = b.g_dt + i * kSteps, *dx = b.dx + v * kSteps;
    vf db = splat(0.0f), dd = splat(0.0f);
    for (int t = 0; t < steps; ++t) {
        const vf g_du = b.g_du[i * kSteps + t];
        g_a[t] = (g_a[t] + g_du * x[t]) * b.sig[i * kSteps + t];
        dx[t] = g_du * b.dt[i * kSteps + t] + skip * dy[t];
        db += g_a[t];
        dd += dy[t] * x[t];
    }
    b.db[v] += db;
    b.dd[v] += dd;
    for (int64_t r = 0; r < p.rank; ++r) {
        const vf w = b.weight.w[kv * p.rank + r];
        vf dw = splat(0.0f), *lane = b.lane_p + r * kSteps;
        for (int t = 0; t < steps; ++t) {
            lane[t] = (v == 0 ? splat(0.0f) : lane[t]) + g_a[t] * w;
            dw += g_a[t] * splat(b.proj[t * row + r]);
        }
        b.dw[v * p.rank + r] += dw;
    }
}

template <int kVec>
void backward_vectors(const IconetSs2d& p, Buffers& b, int64_t v, int64_t kv, int steps, const vf* start) {
    const int64_t row = p.rank + 2 * p.n_state, states = p.n_state;
    bool in_range = true;
    for (int i = 0; i < kVec; ++i) {
        vf top = prepare_back(b.proj, row, p.rank, b.weight.w + (kv + i) * p.rank, b.weight.bias[kv + i],
                              b.x + (v + i) * kSteps, steps, b.dt + i * kSteps, b.du + i * kSteps, b.sig + i * kSteps);
        in_range = exponents_in_range(top, b.weight.a2_max[kv + i]) && in_range;
    }
    int64_t n = 0;
    for (; n + kBackBlock <= states; n += kBackBlock)
        backward_block<kVec, kBackBlock>(p, b, v, kv, n, steps, in_range, start + v * states);
    for (; n < states; ++n) backward_block<kVec, 1>(p, b, v, kv, n, steps, in_range, start + v * states);
    for (int i = 0; i < kVec; ++i) backward_inputs(p, b, v + i, kv + i, i, steps);
}

// Sum the lanes of [count][step] into column `first` of the rows [step][R + 2N].
void reduce_lanes(const vf* lanes, int64_t count, int64_t first, int64_t row, float* rows) {
    float sums[kLanes];
    for (int64_t j = 0; j < count; ++j)
        for (int t = 0; t < kSteps; t += kLanes) {
            lane_sums(lanes + j * kSteps + t, sums);
            for (int i = 0; i < kLanes; ++i) rows[(t + i) * row + first + j] = sums[i];
        }
}

void store_dproj(const IconetSs2d& p, const Task& task, int k, int steps, Buffers& b) {
    const int64_t row = p.rank + 2 * p.n_state, length = p.height * p.width;
    reduce_lanes(b.lane_p, p.rank, 0, row, b.rows);
    reduce_lanes(b.lane_b, p.n_state, p.rank, row, b.rows);
    reduce_lanes(b.lane_c, p.n_state, p.rank + p.n_state, row, b.rows);
    float* base = p.dproj + ((task.group * p.batch + task.image) * length * kDirections + k) * row;
    for (int t = 0; t < steps; ++t) move_floats<false>(b.rows + t * row, row, base + b.pixel[t] * kDirections * row);
}

void clear_weight_gradients(const IconetSs2d& p, const Task& task, Buffers& b) {
    std::memset(b.h, 0, sizeof(vf) * task.vectors * p.n_state);  // here: the carried dL/dh
    std::memset(b.da, 0, sizeof(vf) * task.vectors * p.n_state);
    std::memset(b.dw, 0, sizeof(vf) * task.vectors * p.rank);
    std::memset(b.db, 0, sizeof(vf) * task.vectors);
    std::memset(b.dd, 0, sizeof(vf) * task.vectors);
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
        b.weight.fill(parameters(p), k, task.first, task.live, stride);
        clear_weight_gradients(p, task, b);
        for (int64_t chunk = (length - 1) / kSteps; chunk >= 0; --chunk) {
            const int64_t begin = chunk * kSteps;
            const int steps = length - begin < kSteps ? int(length - begin) : kSteps;
            pixels_of(p, k, begin, steps, b.pixel);
            gather_proj(p, task, k, steps, b);
            gather(p, task, p.x, steps, b.pixel, b.x);
            gather(p, task, p.dy, steps, b.pixel, b.dy);
            std::memcpy(b.start, states_at(p, task, k, chunk), sizeof(vf) * task.vectors * p.n_state);
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
bool backward(const IconetSs2d& p, int64_t threads) {
    const int64_t groups = (p.channels + p.group - 1) / p.group;
    return share(threads, p.batch * groups, [&](Tasks& tasks) {
        Arena arena;
        Buffers buffers;
        if (!arena.fill([&](Arena& a) { carve(buffers, a, p); })) return false;
        for (int64_t index; (index = tasks.next()) >= 0;) backward_task(p, task_of(p, index), buffers);
        return true;
    });
}

}  // namespace

extern "C" {

int iconet_ss2d_forward(const IconetSs2d* p, int64_t threads) {
    return status_of([&] { return forward(*p, threads); });
}
int iconet_ss2d_backward(const IconetSs2d* p, int64_t threads) {
    return status_of([&] { return backward(*p, threads); });
}
}
