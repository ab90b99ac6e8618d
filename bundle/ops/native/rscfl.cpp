// One RSCFL block for inference, x + CRB(VMB(x)), without a map of the size of the image but x, its path, the scan's sum
// and the result. All maps are float32, channels last; F features, Di inner channels.
//
//     path = silu(dwconv(in_proj_path(LN(x))))      in tiles of an image's rows
//     y    = four-direction scan of path            scan.h, which makes the low-rank inputs from path chunk by chunk
//     v    = x + out_proj(LN(y) * silu(in_proj_gate(LN(x))))    in tiles of pixels, with the sums over the pixels
//     out  = x + v * sigmoid(excite(relu(squeeze(mean(v)))))
//
// Every pixel is computed in the same way whatever its tile is, and sums over pixels are made per run of kRun pixels and
// added in the order of the runs: the result does not depend on the number of threads.

#include <cmath>

#include "pool.h"
#include "product.h"
#include "scan.h"
#include "simd.h"

// What Python passes: contiguous float32 arrays, shaped as the parameters of the modules.
extern "C" struct IconetRscfl {
    const float* x;                                    // (B, H, W, F)
    const float *norm_weight, *norm_bias, *in_proj;    // (F), (F), (2 Di, F)
    const float *conv_weight, *conv_bias;              // (Di, 3, 3), (Di)
    const float *x_proj;                               // (4 (R + 2N), Di)
    const float *dt_weight, *dt_bias, *a_log, *d;      // as in scan.h; a is -exp(a_log)
    const float *out_norm_weight, *out_norm_bias, *out_proj;     // (Di), (Di), (F, Di)
    const float *squeeze_weight, *squeeze_bias, *excite_weight, *excite_bias;  // (S, F), (S), (F, S), (F)
    float* out;                                        // (B, H, W, F)
    int64_t batch, height, width, features, inner, n_state, rank, squeezed;
};

namespace {

using namespace iconet;

constexpr float kEpsilon = 1e-5f;   // of the layer norms
constexpr int64_t kColumns = 64;    // of a tile of path
constexpr int64_t kPixels = 32;     // in a tile of the output
constexpr int64_t kRun = 256;       // pixels of a task there, whose sum over the pixels is one term

int64_t vectors_of(int64_t channels) { return (channels + kLanes - 1) / kLanes; }

// A vector of parameters, zero past its end.
void pad(const float* from, int64_t count, vf* to) {
    std::memset(to, 0, sizeof(vf) * vectors_of(count));
    std::memcpy(to, from, sizeof(float) * count);
}

struct Norm {
    vf *weight, *bias;
    vf live;  // one in the channels of the last vector, zero past them
    int64_t channels;

    void carve(Arena& arena, int64_t count) {
        channels = count;
        weight = arena.take<vf>(vectors_of(count));
        bias = arena.take<vf>(vectors_of(count));
    }
    void fill(const float* weights, const float* biases) {
        pad(weights, channels, weight);
        pad(biases, channels, bias);
        for (int i = 0; i < kLanes; ++i) live[i] = i < (channels - 1) % kLanes + 1 ? 1.0f : 0.0f;
    }
};

ICONET_INLINE vf square_root(vf v) {
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
    return v;
#endif
}

// The layer norms of `count` pixels, `pitch` floats apart; put(pixel, vector, value) receives them. The sums over channels
// of kLanes pixels are made together.
template <class Put>
ICONET_INLINE void layer_norms(const Norm& norm, const float* x, int64_t pitch, int64_t count, Put put) {
    const int64_t full = norm.channels / kLanes, rest = norm.channels % kLanes;
    const vf part = splat(1.0f / float(norm.channels));
    for (int64_t first = 0; first < count; first += kLanes, x += kLanes * pitch) {
        const int pixels = count - first < kLanes ? int(count - first) : kLanes;
        vf sums[kLanes] = {};
        alignas(64) float mean[kLanes], scale[kLanes];
        for (int m = 0; m < pixels; ++m) {
            for (int64_t v = 0; v < full; ++v) sums[m] += load(x + m * pitch + v * kLanes);
            if (rest) sums[m] += load_part(x + m * pitch + full * kLanes, rest);
        }
        lane_sums(sums, mean);
        store(mean, load(mean) * part);
        for (int m = 0; m < pixels; ++m) {
            sums[m] = splat(0.0f);
            for (int64_t v = 0; v < full; ++v) {
                const vf d = load(x + m * pitch + v * kLanes) - splat(mean[m]);
                sums[m] += d * d;
            }
            if (rest) {
                const vf d = (load_part(x + m * pitch + full * kLanes, rest) - splat(mean[m])) * norm.live;
                sums[m] += d * d;
            }
        }
        lane_sums(sums, scale);
        store(scale, splat(1.0f) / square_root(load(scale) * part + splat(kEpsilon)));
        for (int m = 0; m < pixels; ++m)
            for (int64_t v = 0; v < full + (rest > 0); ++v) {
                const float* at = x + m * pitch + v * kLanes;
                const vf d = (v < full ? load(at) : load_part(at, rest)) - splat(mean[m]);
                put(first + m, v, d * (splat(scale[m]) * norm.weight[v]) + norm.bias[v]);
            }
    }
}

// v / (1 + exp(-v)) of kCount vectors.
template <int kCount>
ICONET_INLINE void silu(vf* v) {
    vf z[kCount];
    for (int j = 0; j < kCount; ++j) z[j] = at_most(at_least(v[j] * splat(-kLog2e), -125.0f), 125.0f);
    exponentials<kCount, false>(z, z);
    for (int j = 0; j < kCount; ++j) v[j] *= inverse(splat(1.0f) + z[j]);
}

struct Weights {
    Norm norm, out_norm;
    vf *to_path, *to_gate, *conv, *conv_bias, *x_proj, *out_proj;  // conv: [vector][tap]
    ScanWeights scan;

    void carve(Arena& arena, const IconetRscfl& p, const ScanParameters& scanned) {
        norm.carve(arena, p.features);
        out_norm.carve(arena, p.inner);
        to_path = arena.take<vf>(packed_vectors(p.inner, p.features));
        to_gate = arena.take<vf>(packed_vectors(p.inner, p.features));
        conv = arena.take<vf>(9 * vectors_of(p.inner));
        conv_bias = arena.take<vf>(vectors_of(p.inner));
        x_proj = arena.take<vf>(kDirections * packed_vectors(scanned.row(), p.inner));
        out_proj = arena.take<vf>(packed_vectors(p.features, p.inner));
        scan.carve(arena, scanned, scanned.vectors());
    }

    void fill(const IconetRscfl& p, const ScanParameters& scanned) {
        norm.fill(p.norm_weight, p.norm_bias);
        out_norm.fill(p.out_norm_weight, p.out_norm_bias);
        pack(p.in_proj, p.inner, p.features, to_path);
        pack(p.in_proj + p.inner * p.features, p.inner, p.features, to_gate);
        to_lanes(p.conv_weight, p.inner, 9, conv);
        pad(p.conv_bias, p.inner, conv_bias);
        for (int k = 0; k < kDirections; ++k) {
            pack(p.x_proj + k * scanned.row() * p.inner, scanned.row(), p.inner,
                 x_proj + k * packed_vectors(scanned.row(), p.inner));
            scan.fill(scanned, k, 0, p.inner, scanned.vectors());
        }
        pack(p.out_proj, p.features, p.inner, out_proj);
    }
};

// The large maps of an image on its way.
struct Maps {
    float *path, *y;  // (H, W, Di rounded up to vectors)
    float* sums;      // [run][F rounded up]
    vf* carry;        // of the scan
};

// --- path

struct PathBuffers {
    float *normed, *rows;  // [column][F rounded up], [row of three][column and a neighbour on each side][Di rounded up]

    void carve(Arena& arena, const IconetRscfl& p) {
        normed = arena.take<float>((kColumns + 2) * round_up(p.features, kLanes));
        rows = arena.take<float>(3 * (kColumns + 2) * round_up(p.inner, kLanes));
    }
};

// in_proj_path(LN(x)) of row i, columns [left - 1, right + 1); zeros outside the image.
void project_row(const IconetRscfl& p, const Weights& w, const float* image, int64_t i, int64_t left, int64_t right,
                 float* normed, float* row) {
    const int64_t features = round_up(p.features, kLanes), inner = round_up(p.inner, kLanes);
    const bool inside = i >= 0 && i < p.height;
    const int64_t first = !inside || left > 0 ? left - 1 : 0, last = inside && right < p.width ? right + 1 : right;
    if (!inside || left == 0) std::memset(row, 0, sizeof(float) * (inside ? 1 : right - left + 2) * inner);
    if (!inside) return;
    if (right == p.width) std::memset(row + (right - left + 1) * inner, 0, sizeof(float) * inner);
    layer_norms(w.norm, image + (i * p.width + first) * p.features, p.features, last - first,
                [&](int64_t m, int64_t v, vf value) { store(normed + m * features + v * kLanes, value); });
    float* to = row + (first - (left - 1)) * inner;
    product(normed, features, last - first, w.to_path, p.inner, p.features,
            [&](int64_t m, int64_t v, vf value) { store(to + m * inner + v * kLanes, value); });
}

// silu(dwconv) of kCount pixels of one vector of channels; `rows` are at the left neighbour of the first.
template <int kCount>
ICONET_INLINE void convolve(const float* const* rows, int64_t inner, const vf* weight, vf bias, float* to) {
    vf sum[kCount];
    for (int j = 0; j < kCount; ++j) sum[j] = bias;
    for (int i = 0; i < 3; ++i) {
        vf x[kCount + 2];
        for (int j = 0; j < kCount + 2; ++j) x[j] = load(rows[i] + j * inner);
        for (int j = 0; j < kCount; ++j)
            for (int tap = 0; tap < 3; ++tap) sum[j] += weight[3 * i + tap] * x[j + tap];
    }
    silu<kCount>(sum);
    for (int j = 0; j < kCount; ++j) store(to + j * inner, sum[j]);
}

void convolve_row(const IconetRscfl& p, const Weights& w, const float* const* rows, int64_t count, float* to) {
    const int64_t inner = round_up(p.inner, kLanes);
    for (int64_t v = 0; v < vectors_of(p.inner); ++v) {
        const vf* weight = w.conv + 9 * v;
        for (int64_t j = 0, step; j < count; j += step) {
            const int64_t at = j * inner + v * kLanes;
            const float* const here[3] = {rows[0] + at, rows[1] + at, rows[2] + at};
            step = count - j >= 4 ? 4 : 1;
            (step == 4 ? convolve<4> : convolve<1>)(here, inner, weight, w.conv_bias[v], to + at);
        }
    }
}

// Rows [top, bottom) of the path of one image.
void make_path(const IconetRscfl& p, const Weights& w, const PathBuffers& b, const float* image, int64_t top,
               int64_t bottom, float* path) {
    const int64_t inner = round_up(p.inner, kLanes), room = (kColumns + 2) * inner;
    for (int64_t left = 0; left < p.width; left += kColumns) {
        const int64_t right = left + kColumns < p.width ? left + kColumns : p.width;
        for (int64_t i = top - 1; i <= bottom; ++i) {
            project_row(p, w, image, i, left, right, b.normed, b.rows + (i + 3) % 3 * room);
            if (i <= top) continue;
            const float* const rows[3] = {b.rows + (i + 1) % 3 * room, b.rows + (i + 2) % 3 * room, b.rows + i % 3 * room};
            convolve_row(p, w, rows, right - left, path + ((i - 1) * p.width + left) * inner);
        }
    }
}

// --- output

struct OutputBuffers {
    float *normed, *gated;  // [pixel][F rounded up], [pixel][Di rounded up]

    void carve(Arena& arena, const IconetRscfl& p) {
        normed = arena.take<float>(kPixels * round_up(p.features, kLanes));
        gated = arena.take<float>(kPixels * round_up(p.inner, kLanes));
    }
};

// v of `count` pixels at x, and its sum over them added to `sums`.
void make_output(const IconetRscfl& p, const Weights& w, const OutputBuffers& b, const float* x, const float* y,
                 int64_t count, float* out, float* sums) {
    const int64_t features = round_up(p.features, kLanes), inner = round_up(p.inner, kLanes);
    layer_norms(w.norm, x, p.features, count,
                [&](int64_t m, int64_t v, vf value) { store(b.normed + m * features + v * kLanes, value); });
    product(b.normed, features, count, w.to_gate, p.inner, p.features,
            [&](int64_t m, int64_t v, vf value) { store(b.gated + m * inner + v * kLanes, value); });
    layer_norms(w.out_norm, y, inner, count, [&](int64_t m, int64_t v, vf value) {
        float* to = b.gated + m * inner + v * kLanes;
        vf gate = load(to);
        silu<1>(&gate);
        store(to, value * gate);
    });
    product(b.gated, inner, count, w.out_proj, p.features, p.inner, [&](int64_t m, int64_t v, vf value) {
        const int64_t at = m * p.features + v * kLanes, live = p.features - v * kLanes;
        if (live >= kLanes)
            store(out + at, load(x + at) + value);
        else
            store_part(out + at, load_part(x + at, live) + value, live);
    });
    for (int64_t m = 0; m < count; ++m) move_floats<true>(out + m * p.features, p.features, sums);
}

// sigmoid(excite(relu(squeeze(mean)))) of one image, from the sums of its runs.
void channel_weights(const IconetRscfl& p, const float* sums, double* mean, float* weight) {
    const int64_t features = round_up(p.features, kLanes), pixels = p.height * p.width, runs = (pixels + kRun - 1) / kRun;
    double* hidden = mean + p.features;
    for (int64_t c = 0; c < p.features; ++c) {
        mean[c] = 0.0;
        for (int64_t i = 0; i < runs; ++i) mean[c] += sums[i * features + c];
        mean[c] /= double(pixels);
    }
    for (int64_t j = 0; j < p.squeezed; ++j) {
        hidden[j] = p.squeeze_bias[j];
        for (int64_t c = 0; c < p.features; ++c) hidden[j] += p.squeeze_weight[j * p.features + c] * mean[c];
        if (hidden[j] < 0.0) hidden[j] = 0.0;  // NaN stays
    }
    for (int64_t c = 0; c < p.features; ++c) {
        double sum = p.excite_bias[c];
        for (int64_t j = 0; j < p.squeezed; ++j) sum += p.excite_weight[c * p.squeezed + j] * hidden[j];
        weight[c] = float(1.0 / (1.0 + std::exp(-sum)));
    }
}

// out = x + weight * out of `count` pixels.
void rank_channels(const IconetRscfl& p, const float* weight, const float* x, int64_t count, float* out) {
    for (int64_t m = 0; m < count; ++m, x += p.features, out += p.features)
        for (int64_t c = 0; c < p.features; c += kLanes) {
            const int64_t live = p.features - c;
            if (live >= kLanes)
                store(out + c, load(x + c) + load(weight + c) * load(out + c));
            else
                store_part(out + c, load_part(x + c, live) + load_part(weight + c, live) * load_part(out + c, live), live);
        }
}

// --- the block

// The images [first, first + count), whose maps are there.
bool run_images(const IconetRscfl& p, const Weights& w, const ScanParameters& scanned, const Maps* maps, int64_t first,
                int64_t count, int64_t threads, double* mean, float* weight) {
    const int64_t pixels = p.height * p.width, inner = round_up(p.inner, kLanes), features = round_up(p.features, kLanes);
    const float* x = p.x + first * pixels * p.features;
    float* out = p.out + first * pixels * p.features;
    const int64_t image = pixels * p.features;

    int64_t band = (p.height * count + 4 * threads - 1) / (4 * threads);
    band = band < 16 ? 16 : band;
    const int64_t bands = (p.height + band - 1) / band;
    bool done = share(threads, count * bands, [&](Tasks& tasks) {
        Arena arena;
        PathBuffers b;
        if (!arena.fill([&](Arena& a) { b.carve(a, p); })) return false;
        for (int64_t i; (i = tasks.next()) >= 0;) {
            const int64_t top = i % bands * band, bottom = top + band < p.height ? top + band : p.height;
            make_path(p, w, b, x + i / bands * image, top, bottom, maps[i / bands].path);
        }
        return true;
    });

    done = done && run_scans(threads, count, [&](int64_t i) {
        return Scan{scanned,  w.scan,    p.height, p.width, inner, maps[i].path, nullptr,
                    w.x_proj, maps[i].y, nullptr,  maps[i].carry};
    });

    const int64_t runs = (pixels + kRun - 1) / kRun;
    const auto run_end = [&](int64_t begin) { return begin + kRun < pixels ? begin + kRun : pixels; };
    done = done && share(threads, count * runs, [&](Tasks& tasks) {
        Arena arena;
        OutputBuffers b;
        if (!arena.fill([&](Arena& a) { b.carve(a, p); })) return false;
        for (int64_t i; (i = tasks.next()) >= 0;) {
            const Maps& map = maps[i / runs];
            const int64_t begin = i % runs * kRun, end = run_end(begin), at = i / runs * image;
            float* sums = map.sums + i % runs * features;
            std::memset(sums, 0, sizeof(float) * features);
            for (int64_t m = begin; m < end; m += kPixels)
                make_output(p, w, b, x + at + m * p.features, map.y + m * inner, end - m < kPixels ? end - m : kPixels,
                            out + at + m * p.features, sums);
        }
        return true;
    });
    if (!done) return false;

    for (int64_t i = 0; i < count; ++i) channel_weights(p, maps[i].sums, mean, weight + i * features);
    return share(threads, count * runs, [&](Tasks& tasks) {
        for (int64_t i; (i = tasks.next()) >= 0;) {
            const int64_t begin = i % runs * kRun, at = i / runs * image + begin * p.features;
            rank_channels(p, weight + i / runs * features, x + at, run_end(begin) - begin, out + at);
        }
        return true;
    });
}

bool run(const IconetRscfl& p, int64_t threads) {
    ScanParameters scanned{p.dt_weight, p.dt_bias, nullptr, p.d, p.inner, p.n_state, p.rank};
    const int64_t rates = kDirections * p.inner * p.n_state;
    const int64_t pixels = p.height * p.width, inner = round_up(p.inner, kLanes), features = round_up(p.features, kLanes);
    // Two tasks of the scan per image: more images at once only where threads would be idle.
    const int64_t together = threads / 2 < 1 ? 1 : threads / 2 < p.batch ? threads / 2 : p.batch;
    Arena arena;
    Weights w;
    Maps* maps;
    double* mean;
    float *weight, *a;
    const auto carve = [&](Arena& part) {
        w.carve(part, p, scanned);
        mean = part.take<double>(p.features + p.squeezed);
        weight = part.take<float>(together * features);
        a = part.take<float>(rates);
        maps = part.take<Maps>(together);
        for (int64_t i = 0; i < together; ++i) {
            Maps m;
            m.path = part.take<float>(pixels * inner);
            m.y = part.take<float>(pixels * inner);
            m.sums = part.take<float>((pixels + kRun - 1) / kRun * features);
            m.carry = part.take<vf>(kDirections * scanned.vectors() * p.n_state);
            if (maps) maps[i] = m;
        }
    };
    if (!arena.fill(carve)) return false;
    prefer_huge_pages(p.out, sizeof(float) * p.batch * pixels * p.features);
    // Here and not in PyTorch, whose threads would wake up and spin for it.
    for (int64_t i = 0; i < rates; ++i) a[i] = -std::exp(p.a_log[i]);
    scanned.a = a;
    w.fill(p, scanned);
    for (int64_t first = 0; first < p.batch; first += together) {
        const int64_t count = p.batch - first < together ? p.batch - first : together;
        for (int64_t i = 0; i < count; ++i)
            std::memset(maps[i].carry, 0, sizeof(vf) * kDirections * scanned.vectors() * p.n_state);
        if (!run_images(p, w, scanned, maps, first, count, threads, mean, weight)) return false;
    }
    return true;
}

}  // namespace

extern "C" int iconet_rscfl(const IconetRscfl* p, int64_t threads) {
    return status_of([&] { return run(*p, threads); });
}
