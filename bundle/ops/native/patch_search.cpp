// Exact nearest-patch search: for every query pixel p the key pixel r that maximises
//     <unfold3x3 q(p), unfold3x3 k(r)> / |unfold3x3 k(r)|        (zero padding, ties to the smallest r).
//
// With G[p, r] = <q(p), k(r)> the numerator is the sum of G[p + s, r + s] over the nine shifts s, terms outside the
// image being zero. It separates into a sum along the row and a sum over rows:
//     H_y[i][j] = G[(y, i-1), (y+o, j-1)] + G[(y, i), (y+o, j)] + G[(y, i+1), (y+o, j+1)]
//     S_y[i][j] = H_{y-1}[i][j] + H_y[i][j] + H_{y+1}[i][j]
// for the query (y, i) and the key (y + o, j). So each product is computed once and used nine times.
//
// One task is (image, row offset o). It walks the query rows y; G is made in strips of six queries that stay in the L1
// cache, H of the two previous rows stays in L2, and S lives in registers only. A worker keeps the best score and index
// of every query of the image it is at and merges them into the result when it leaves the image; the rule "higher
// score, then smaller index" makes the outcome independent of the order.
//
// Layout: query, key (B, H, W, C) float32; packed query row [strip of 6][C][6], packed key row [panel of 16][C][16].
// Must not be compiled with -ffast-math (scores of padding are -inf).

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

#include "pool.h"

#define ICONET_INLINE static inline __attribute__((always_inline))

// Shared by all workers of one call; counters start at 0, best_score at -inf, best_index at 0.
extern "C" struct IconetPatchSearch {
    const float *query, *key;
    int64_t* best_index;  // (B, H * W)
    float* best_score;    // (B, H * W)
    float* workspace;     // iconet_patch_search_workspace() floats
    int32_t* locks;       // (B), zero
    int64_t batch, height, width, channels;
    int64_t pack_next, packed, norm_next, normed, search_next;  // progress
};

namespace {

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

constexpr int kStrip = 6;    // queries of a register tile
constexpr int kPanel = 16;   // keys of a register tile
constexpr int kLanes = 8;
constexpr int kMargin = 8;   // zeros on both sides of a row of G
constexpr float kEps = 1e-12f;

ICONET_INLINE v8 splat(float s) { return v8{s, s, s, s, s, s, s, s}; }
ICONET_INLINE v8 load(const float* p) {
    v8 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
ICONET_INLINE void store(float* p, v8 v) { std::memcpy(p, &v, sizeof v); }

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Where the parts of the shared workspace begin (in floats).
struct Plan {
    int64_t strips, panels, query_row, key_row, padded;
    int64_t query, key, energy, scale, bias, total;
};

Plan plan_of(int64_t batch, int64_t height, int64_t width, int64_t channels) {
    Plan s{};
    s.strips = (width + kStrip - 1) / kStrip;
    s.panels = (width + kPanel - 1) / kPanel;
    s.query_row = s.strips * kStrip * channels;
    s.key_row = s.panels * kPanel * channels;
    s.padded = round_up(width, kLanes);
    s.query = 0;
    s.key = s.query + batch * height * s.query_row;
    s.energy = s.key + batch * height * s.key_row;
    s.scale = s.energy + batch * height * width;
    s.bias = s.scale + batch * height * s.padded;
    s.total = s.bias + s.padded;
    return s;
}

// (W, C) -> [block][C][unit], zero past the last pixel.
void pack_row(const float* src, int64_t width, int64_t channels, int64_t unit, float* dst) {
    for (int64_t first = 0; first < width; first += unit, dst += unit * channels) {
        const int64_t live = width - first < unit ? width - first : unit;
        if (live < unit) std::memset(dst, 0, sizeof(float) * unit * channels);
        for (int64_t i = 0; i < live; ++i)
            for (int64_t c = 0; c < channels; ++c) dst[c * unit + i] = src[(first + i) * channels + c];
    }
}

void pack(const IconetPatchSearch& p, const Plan& s, int64_t image_row) {
    const int64_t at = image_row * p.width * p.channels;
    pack_row(p.query + at, p.width, p.channels, kStrip, p.workspace + s.query + image_row * s.query_row);
    pack_row(p.key + at, p.width, p.channels, kPanel, p.workspace + s.key + image_row * s.key_row);
    for (int64_t j = 0; j < p.width; ++j) {
        double sum = 0.0;
        for (int64_t c = 0; c < p.channels; ++c) {
            const double v = p.key[at + j * p.channels + c];
            sum += v * v;
        }
        p.workspace[s.energy + image_row * p.width + j] = float(sum);
    }
}

// 1 / |unfold3x3 k(r)| for one row of keys; zero in the padding.
void invert_norms(const IconetPatchSearch& p, const Plan& s, int64_t image_row) {
    const int64_t y = image_row % p.height;
    const float* energy = p.workspace + s.energy + image_row * p.width;
    float* scale = p.workspace + s.scale + image_row * s.padded;
    for (int64_t j = 0; j < s.padded; ++j) {
        double sum = 0.0;
        for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx)
                if (y + dy >= 0 && y + dy < p.height && j + dx >= 0 && j + dx < p.width)
                    sum += energy[dy * p.width + j + dx];
        const float norm = float(std::sqrt(sum));
        scale[j] = j < p.width ? 1.0f / (norm < kEps ? kEps : norm) : 0.0f;
    }
}

// kRows x (8 * kCols) products of one strip of queries with one panel of keys.
template <int kRows, int kCols>
void products(const float* query, const float* key, int64_t channels, float* g, int64_t stride) {
    v8 sum[kRows][kCols];
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kCols; ++j) sum[i][j] = splat(0.0f);
    for (int64_t c = 0; c < channels; ++c, query += kStrip, key += kPanel) {
        v8 k[kCols];
        for (int j = 0; j < kCols; ++j) k[j] = load(key + j * kLanes);
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kCols; ++j) sum[i][j] += splat(query[i]) * k[j];
    }
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kCols; ++j) store(g + i * stride + j * kLanes, sum[i][j]);
}

template <int kRows>
void products_of_strip(const float* query, const float* key, int64_t padded, int64_t channels, float* g,
                       int64_t stride) {
    int64_t j = 0;
    for (; j + kPanel <= padded; j += kPanel, key += kPanel * channels)
        products<kRows, 2>(query, key, channels, g + j, stride);
    if (j < padded) products<kRows, 1>(query, key, channels, g + j, stride);
}

void products_of_rows(int64_t rows, const float* query, const float* key, int64_t padded, int64_t channels, float* g,
                      int64_t stride) {
    switch (rows) {
        case 6: return products_of_strip<6>(query, key, padded, channels, g, stride);
        case 5: return products_of_strip<5>(query, key, padded, channels, g, stride);
        case 4: return products_of_strip<4>(query, key, padded, channels, g, stride);
        case 3: return products_of_strip<3>(query, key, padded, channels, g, stride);
        case 2: return products_of_strip<2>(query, key, padded, channels, g, stride);
        default: return products_of_strip<1>(query, key, padded, channels, g, stride);
    }
}

// A worker's own memory.
struct Worker {
    float *g, *h[2], *score;
    int32_t* index;
    int64_t g_stride;
};

struct Row {
    int64_t y, key_y;
    const float *scale, *bias;
};

// A new best among kBlocks * 8 scores: rare, so it may be slow. Smallest index wins because lanes are read in order.
template <int kBlocks>
__attribute__((noinline)) void take_best(const v8* s, int64_t first, float* score, int32_t* index) {
    for (int b = 0; b < kBlocks; ++b)
        for (int l = 0; l < kLanes; ++l)
            if (s[b][l] > *score) {
                *score = s[b][l];
                *index = int32_t(first + b * kLanes + l);
            }
}

ICONET_INLINE bool any(v8i mask) {
#if defined(__AVX2__)
    return !__builtin_ia32_vtestzps256((v8)mask, (v8)mask);
#else
    int32_t m = 0;
    for (int i = 0; i < kLanes; ++i) m |= mask[i];
    return m != 0;
#endif
}

enum class Pass { first, middle, last };  // of the query rows of one offset

// kBlocks * 8 keys of one query: H of this row from G, S and the score of the row before.
template <Pass kPass, int kBlocks>
ICONET_INLINE void score_keys(const float* g, int64_t stride, float* before, float* before2, const Row& row, int64_t j,
                              float* best, int32_t* best_index) {
    v8 s[kBlocks], top;
    for (int b = 0; b < kBlocks; ++b) {
        const int64_t at = j + b * kLanes;
        v8 h = splat(0.0f);
        if (kPass != Pass::last) h = load(g + at) + load(g - stride + at - 1) + load(g + stride + at + 1);
        if (kPass == Pass::first) {
            store(before + at, splat(0.0f));
            store(before2 + at, h);
            continue;
        }
        v8 sum = load(before2 + at) + load(before + at);
        if (kPass == Pass::middle) {
            sum += h;
            store(before2 + at, h);
        }
        s[b] = sum * load(row.scale + at) + load(row.bias + at);
        top = b == 0 ? s[0] : (s[b] > top ? s[b] : top);
    }
    if (kPass != Pass::first && any(top > splat(*best)))
        take_best<kBlocks>(s, row.key_y + j, best, best_index);
}

template <Pass kPass>
void score_query(const Worker& w, const float* g, int64_t i, const Row& row, int64_t padded, int64_t width) {
    float *before = w.h[0] + i * padded, *before2 = w.h[1] + i * padded;
    float* best = w.score + (row.y * width + i);
    int32_t* index = w.index + (row.y * width + i);
    int64_t j = 0;
    for (; j + 4 * kLanes <= padded; j += 4 * kLanes)
        score_keys<kPass, 4>(g, w.g_stride, before, before2, row, j, best, index);
    for (; j < padded; j += kLanes) score_keys<kPass, 1>(g, w.g_stride, before, before2, row, j, best, index);
}

// All queries of row y against the keys of row y + o; scores the row before it.
template <Pass kPass>
void search_row(const IconetPatchSearch& p, const Plan& s, Worker& w, const float* query, const float* key,
                const Row& row) {
    const int64_t stride = w.g_stride, width = p.width;
    if (kPass == Pass::last) {
        for (int64_t i = 0; i < width; ++i) score_query<kPass>(w, nullptr, i, row, s.padded, width);
        return;
    }
    // Rows 0 and 1 of g carry the last two queries of the strip before; the query before the first is zero.
    std::memset(w.g, 0, sizeof(float) * 2 * stride);
    for (int64_t first = 0; first < width; first += kStrip) {
        const int64_t live = width - first < kStrip ? width - first : kStrip;
        products_of_rows(live, query + first * p.channels, key, s.padded, p.channels, w.g + 2 * stride + kMargin,
                         stride);
        const bool end = first + live == width;
        if (end) std::memset(w.g + (live + 2) * stride, 0, sizeof(float) * stride);
        for (int64_t i = first ? first - 1 : 0; i < first + live - (end ? 0 : 1); ++i)
            score_query<kPass>(w, w.g + (i - first + 2) * stride + kMargin, i, row, s.padded, width);
        if (!end) std::memcpy(w.g, w.g + live * stride, sizeof(float) * 2 * stride);
    }
    float* swap = w.h[0];
    w.h[0] = w.h[1];
    w.h[1] = swap;
}

void search_offset(const IconetPatchSearch& p, const Plan& s, Worker& w, int64_t image, int64_t o) {
    const int64_t begin = o < 0 ? -o : 0, end = o < 0 ? p.height : p.height - o;
    const float* bias = p.workspace + s.bias;
    for (int64_t y = begin; y <= end; ++y) {
        const int64_t at = image * p.height + y;
        const float* query = p.workspace + s.query + at * s.query_row;
        const float* key = p.workspace + s.key + (at + o) * s.key_row;
        const Row row{y - 1, (y - 1 + o) * p.width, p.workspace + s.scale + (at + o - 1) * s.padded, bias};
        if (y == end)
            search_row<Pass::last>(p, s, w, query, key, row);
        else if (y == begin)
            search_row<Pass::first>(p, s, w, query, key, row);
        else
            search_row<Pass::middle>(p, s, w, query, key, row);
    }
}

void merge(const IconetPatchSearch& p, const Worker& w, int64_t image) {
    const int64_t pixels = p.height * p.width;
    while (__atomic_exchange_n(p.locks + image, 1, __ATOMIC_ACQUIRE)) std::this_thread::yield();
    float* score = p.best_score + image * pixels;
    int64_t* index = p.best_index + image * pixels;
    for (int64_t i = 0; i < pixels; ++i)
        if (w.score[i] > score[i] || (w.score[i] == score[i] && w.index[i] < index[i])) {
            score[i] = w.score[i];
            index[i] = w.index[i];
        }
    __atomic_store_n(p.locks + image, 0, __ATOMIC_RELEASE);
}

void reset(const IconetPatchSearch& p, Worker& w) {
    for (int64_t i = 0; i < p.height * p.width; ++i) {
        w.score[i] = -std::numeric_limits<float>::infinity();
        w.index[i] = 0;
    }
}

// Run work(0..count-1) together with the other workers and return when all of it is done.
template <class Work>
void together(int64_t* next, int64_t* done, int64_t count, Work work) {
    for (;;) {
        const int64_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= count) break;
        work(i);
        __atomic_fetch_add(done, 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(done, __ATOMIC_ACQUIRE) < count) std::this_thread::yield();
}

void search_all(IconetPatchSearch& p, const Plan& s, Worker& w) {
    const int64_t offsets = 2 * p.height - 1;
    int64_t current = -1;
    for (;;) {
        const int64_t i = __atomic_fetch_add(&p.search_next, 1, __ATOMIC_RELAXED);
        if (i >= p.batch * offsets) break;
        if (i / offsets != current) {
            if (current >= 0) merge(p, w, current);
            current = i / offsets;
            reset(p, w);
        }
        // Offsets ascend, so the keys a query meets ascend too and a strict ">" keeps the smallest index.
        search_offset(p, s, w, current, i % offsets - (p.height - 1));
    }
    if (current >= 0) merge(p, w, current);
}

char* take(char*& at, size_t bytes) {
    char* p = at;
    at += (bytes + 63) / 64 * 64;
    return p;
}

// One worker's share of a search; false when memory ran out. Any number of workers may call it at once.
bool search(IconetPatchSearch* p) {
    const Plan s = plan_of(p->batch, p->height, p->width, p->channels);
    Worker w{};
    w.g_stride = s.padded + 2 * kMargin;
    const size_t g = sizeof(float) * (kStrip + 3) * w.g_stride, h = sizeof(float) * p->width * s.padded;
    const size_t best = 4 * p->height * p->width, total = g + 2 * h + 2 * best + 5 * 64;
    char* memory = static_cast<char*>(std::aligned_alloc(64, round_up(total, 64)));
    if (!memory) return false;
    char* at = memory;
    w.g = reinterpret_cast<float*>(take(at, g));
    w.h[0] = reinterpret_cast<float*>(take(at, h));
    w.h[1] = reinterpret_cast<float*>(take(at, h));
    w.score = reinterpret_cast<float*>(take(at, best));
    w.index = reinterpret_cast<int32_t*>(take(at, best));
    std::memset(w.g, 0, g);
    const int64_t rows = p->batch * p->height;
    together(&p->pack_next, &p->packed, rows, [&](int64_t i) { pack(*p, s, i); });
    together(&p->norm_next, &p->normed, rows + 1, [&](int64_t i) {
        if (i < rows) return invert_norms(*p, s, i);
        for (int64_t j = 0; j < s.padded; ++j)
            p->workspace[s.bias + j] = j < p->width ? 0.0f : -std::numeric_limits<float>::infinity();
    });
    search_all(*p, s, w);
    std::free(memory);
    return true;
}

}  // namespace

extern "C" {

int64_t iconet_patch_search_workspace(int64_t batch, int64_t height, int64_t width, int64_t channels) {
    return plan_of(batch, height, width, channels).total;
}

// Returns 0, or 1 when memory ran out.
int iconet_patch_search(IconetPatchSearch* p, int64_t threads) {
    const int64_t tasks = p->batch * (2 * p->height - 1);
    return !iconet::share(threads, tasks, [&](iconet::Tasks&) { return search(p); });
}
}
