// Patch search: the index of the key patch most similar to each query patch, and that similarity.
//
//   index[b, p] = argmax_r <unfold3x3 q(p), unfold3x3 k(r)> / |unfold3x3 k(r)|     zeros outside the image, smallest r
//
// over all r, or over those at most `window` rows and columns from p. Pixels may be blocks of stride x stride pixels of
// the maps (pixel unshuffle; the last row and column are repeated where a block is not full).
//
// The 9 C products of a pair of patches are sums of pixel products along the diagonal of both images,
//
//   S[y, i; o, j] = sum_{dy, dx} G[y + dy, i + dx; o, j + dx]       G[y, i; o, j] = <q(y, i), k(y + o, j)>
//
// so that C products a pair are enough: for a fixed offset o between key row and query row, a register-tiled product
// makes G for a strip of queries, H = the sum over dx, and S = the sum of H over three rows. G of a strip stays in the
// L1 cache, H of the two previous rows in L2, S in registers.
//
// Without a window, row i of G holds all keys j, and the sum over dx runs along a diagonal. With a window it holds the
// keys j = i - window + d, d = 0 .. 2 window: there the sum over dx runs down a column, and time and memory grow with
// the window instead of with the width. Every pair is summed in the same order in either form, by any processor and any
// number of threads, so all of them give the same bits.
//
// Packed: queries by row [strip][C][kStrip], keys by row [C][key_stride], zeros beside the image.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "pool.h"
#include "simd.h"

struct IconetPatchSearch {
    const float *query, *key;  // (B, H, W, C); pixels are query_step, key_step floats apart
    int64_t* index;            // (B, rows, columns) of blocks
    float* score;              // the same: the cosine of the patches
    int64_t batch, height, width, channels, query_step, key_step;
    int64_t stride;       // side of a block
    int64_t window;       // in blocks, or -1
    int64_t first, last;  // rows of blocks that are wanted; those of the others are not written
};

namespace {

using namespace iconet;

#if defined(__AVX512F__)
constexpr int kStrip = 8;  // queries of a register tile
constexpr int kPanel = 3;  // vectors of keys of a register tile
#else
constexpr int kStrip = 6;
constexpr int kPanel = 2;
#endif
constexpr int64_t kL1 = 8192;  // floats that stay in the L1 cache beside the queries and G
constexpr int64_t kMargin = kLanes;  // beside a row of G: zeros without a window, products beyond it with one
constexpr float kEps = 1e-12f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Plan {
    int64_t rows, columns, depth;  // of the image of blocks
    int64_t slant;                 // 1 without a window: where row i of G begins does not move with i
    int64_t left;                  // padding before the keys of a row
    int64_t reach;                 // rows of keys on each side of a query
    int64_t scored, computed;      // keys of a query in whole vectors, keys of a strip of queries likewise
    int64_t g_stride, query_row, key_stride, scale_row;
};

Plan plan_of(const IconetPatchSearch& p) {
    Plan s{};
    s.rows = (p.height + p.stride - 1) / p.stride;
    s.columns = (p.width + p.stride - 1) / p.stride;
    s.depth = p.channels * p.stride * p.stride;
    const bool windowed = p.window >= 0 && (p.window < s.rows - 1 || p.window < s.columns - 1);
    const int64_t window = p.window < s.columns ? p.window : s.columns;  // more columns there are not
    const int64_t strips = round_up(s.columns, kStrip);
    s.slant = windowed ? 0 : 1;
    s.left = windowed ? window : 0;
    s.reach = windowed && p.window < s.rows ? p.window : s.rows - 1;
    s.scored = round_up(windowed ? 2 * window + 1 : s.columns, kLanes);
    s.computed = windowed ? round_up(2 * window + kStrip, kLanes) : s.scored;
    s.g_stride = s.computed + 2 * kMargin;
    s.query_row = strips * s.depth;
    // An odd number of vectors, or the rows of many channels would fall on the same lines of the cache.
    s.key_stride = (windowed ? round_up(strips - kStrip + s.computed, kLanes) : s.scored) | kLanes;
    s.scale_row = windowed ? s.columns + s.scored : s.scored;
    return s;
}

// What all workers share. Norms come with the padding of the keys and NaN in it: such a score is never the largest.
struct Packed {
    float *query, *key, *query_energy, *key_energy, *query_scale, *key_scale;

    void carve(Arena& arena, const Plan& s, int64_t images) {
        const int64_t rows = images * s.rows, pixels = rows * s.columns;
        query = arena.take<float>(rows * s.query_row);
        key = arena.take<float>(rows * s.depth * s.key_stride);
        query_energy = arena.take<float>(pixels);
        key_energy = arena.take<float>(pixels);
        query_scale = arena.take<float>(pixels);
        key_scale = arena.take<float>(rows * s.scale_row);
    }
};

// One row of blocks, one channel after the other: `put(channel, column)` is where a value goes. Energies (columns).
template <class Put>
void pack_row(const IconetPatchSearch& p, const Plan& s, const float* map, int64_t step, int64_t image, int64_t row,
              double* sums, float* energy, Put put) {
    for (int64_t j = 0; j < s.columns; ++j) sums[j] = 0.0;
    for (int64_t c = 0; c < s.depth; ++c) {
        const int64_t at = c % (p.stride * p.stride), dy = at / p.stride, dx = at % p.stride;
        const int64_t y = row * p.stride + dy < p.height ? row * p.stride + dy : p.height - 1;
        const float* line = map + (image * p.height + y) * p.width * step + c / (p.stride * p.stride);
        for (int64_t j = 0; j < s.columns; ++j) {
            const int64_t x = j * p.stride + dx < p.width ? j * p.stride + dx : p.width - 1;
            const float value = line[x * step];
            *put(c, j) = value;
            sums[j] += double(value) * value;
        }
    }
    for (int64_t j = 0; j < s.columns; ++j) energy[j] = float(sums[j]);
}

void pack(const IconetPatchSearch& p, const Plan& s, const Packed& m, int64_t i, double* sums) {
    float* query = m.query + i * s.query_row;
    float* key = m.key + i * s.depth * s.key_stride;
    const int64_t image = i / s.rows, row = i % s.rows;
    std::memset(query, 0, sizeof(float) * s.query_row);
    std::memset(key, 0, sizeof(float) * s.depth * s.key_stride);
    pack_row(p, s, p.query, p.query_step, image, row, sums, m.query_energy + i * s.columns, [&](int64_t c, int64_t j) {
        return query + (j / kStrip * s.depth + c) * kStrip + j % kStrip;
    });
    pack_row(p, s, p.key, p.key_step, image, row, sums, m.key_energy + i * s.columns,
             [&](int64_t c, int64_t j) { return key + c * s.key_stride + s.left + j; });
}

// 1 / |unfold3x3| for one row of pixels.
void invert_norms(const Plan& s, const float* energy, int64_t i, float* out) {
    const int64_t y = i % s.rows;
    for (int64_t j = 0; j < s.columns; ++j) {
        double sum = 0.0;
        for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx)
                if (y + dy >= 0 && y + dy < s.rows && j + dx >= 0 && j + dx < s.columns)
                    sum += energy[(i + dy) * s.columns + j + dx];
        const float norm = float(std::sqrt(sum));
        out[j] = 1.0f / (norm < kEps ? kEps : norm);
    }
}

void scale(const Plan& s, const Packed& m, int64_t i) {
    float* row = m.key_scale + i * s.scale_row;
    for (int64_t j = 0; j < s.scale_row; ++j) row[j] = std::numeric_limits<float>::quiet_NaN();
    invert_norms(s, m.key_energy, i, row + s.left);
    invert_norms(s, m.query_energy, i, m.query_scale + i * s.columns);
}

// kStrip x (kCols vectors) products of a strip of queries with keys. Each row of g begins `step` after the one before.
// kFetch: ask for the keys of later channels, where those of a row do not fit into the L1 cache.
template <int kCols, bool kFetch>
void products(const float* query, const float* key, int64_t key_stride, int64_t depth, float* g, int64_t step) {
    vf sum[kStrip][kCols];
    for (int i = 0; i < kStrip; ++i)
        for (int j = 0; j < kCols; ++j) sum[i][j] = splat(0.0f);
    for (int64_t c = 0; c < depth; ++c, query += kStrip, key += key_stride) {
        vf k[kCols];
        for (int j = 0; kFetch && j < kCols; ++j) __builtin_prefetch(key + 8 * key_stride + j * kLanes);
        for (int j = 0; j < kCols; ++j) k[j] = load(key + j * kLanes);
        for (int i = 0; i < kStrip; ++i)
            for (int j = 0; j < kCols; ++j) sum[i][j] += splat(query[i]) * k[j];
    }
    for (int i = 0; i < kStrip; ++i)
        for (int j = 0; j < kCols; ++j) store(g + i * step + j * kLanes, sum[i][j]);
}

template <bool kFetch>
void products_of_strip(const float* query, const float* key, const Plan& s, float* g) {
    const int64_t step = s.g_stride - 1 + s.slant;
    int64_t left = s.computed / kLanes;
    while (left > 0) {
        const int64_t take = left == kPanel + 1 ? 2 : left < kPanel ? left : kPanel;
        if (take == 3)
            products<3, kFetch>(query, key, s.key_stride, s.depth, g, step);
        else if (take == 2)
            products<2, kFetch>(query, key, s.key_stride, s.depth, g, step);
        else
            products<1, kFetch>(query, key, s.key_stride, s.depth, g, step);
        left -= take, key += take * kLanes, g += take * kLanes;
    }
}

// A worker's own memory. Best scores and indices are of the rows of one task.
struct Worker {
    float *g, *h[2], *score;
    int32_t* index;

    void carve(Arena& arena, const Plan& s, int64_t rows) {
        g = arena.take<float>((kStrip + 3) * s.g_stride);
        h[0] = arena.take<float>(s.columns * s.scored);
        h[1] = arena.take<float>(s.columns * s.scored);
        score = arena.take<float>(rows * s.columns);
        index = arena.take<int32_t>(rows * s.columns);
    }
};

// A new best among kBlocks vectors of scores: rare, so it may be slow. Lanes are read in order: of equals the first wins.
template <int kBlocks>
__attribute__((noinline)) void take_best(const vf* s, int64_t first, float* score, int32_t* index) {
    for (int b = 0; b < kBlocks; ++b)
        for (int l = 0; l < kLanes; ++l)
            if (s[b][l] > *score) {
                *score = s[b][l];
                *index = int32_t(first + b * kLanes + l);
            }
}

ICONET_INLINE bool any_above(vf value, float bound) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)value, (__m512)splat(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
    const vf mask = (vf)(value > splat(bound));
    return !_mm256_testz_ps((__m256)mask, (__m256)mask);
#else
    const vi mask = value > splat(bound);
    int32_t any = 0;
    for (int i = 0; i < kLanes; ++i) any |= mask[i];
    return any != 0;
#endif
}

// What happens at a row of queries: its H is the first of this offset, it is only kept, the row before it is scored as
// well, or there is no such row and the row before it is scored.
enum class Pass { first, keep, score, last };

// One query against the keys of a row.
struct Line {
    const float *g, *above, *below;  // its row of G, and those of the queries beside it, moved so that dx adds up
    float *before, *before2;         // H of the last row, and of the one before that
    const float* scale;
    vf tail;        // added to the last vector: -inf beyond the window
    int64_t first;  // index of the first key
    float* best;
    int32_t* best_index;
};

template <Pass kPass, int kBlocks, bool kTail>
ICONET_INLINE void score_keys(const Line& q, int64_t j) {
    vf s[kBlocks], top = splat(*q.best);
    for (int b = 0; b < kBlocks; ++b) {
        const int64_t at = j + b * kLanes;
        vf h = splat(0.0f);
        if (kPass != Pass::last) h = load(q.g + at) + load(q.above + at) + load(q.below + at);
        if (kPass == Pass::first) store(q.before + at, splat(0.0f));
        if (kPass == Pass::first || kPass == Pass::keep) {
            store(q.before2 + at, h);
            continue;
        }
        vf sum = load(q.before2 + at) + load(q.before + at);
        if (kPass == Pass::score) {
            sum += h;
            store(q.before2 + at, h);
        }
        s[b] = sum * load(q.scale + at);
        if (kTail && b == kBlocks - 1) s[b] += q.tail;
        top = larger(s[b], top);  // the second where the first is NaN
    }
    if ((kPass == Pass::score || kPass == Pass::last) && any_above(top, *q.best))
        take_best<kBlocks>(s, q.first + j, q.best, q.best_index);
}

template <Pass kPass>
void score_query(const Line& q, int64_t scored) {
    int64_t j = 0;
    for (; j + 4 * kLanes < scored; j += 4 * kLanes) score_keys<kPass, 4, false>(q, j);
    switch ((scored - j) / kLanes) {
        case 4: return score_keys<kPass, 4, true>(q, j);
        case 3: return score_keys<kPass, 3, true>(q, j);
        case 2: return score_keys<kPass, 2, true>(q, j);
        default: return score_keys<kPass, 1, true>(q, j);
    }
}

// All queries of a row against the keys of another one.
struct Rows {
    const float *query, *key;  // of this row
    const float* scale;        // of the keys of the row that is scored
    float* best;
    int32_t* best_index;
    int64_t first;  // index of the first key of the row that is scored
};

template <Pass kPass>
void search_row(const Plan& s, Worker& w, const Rows& rows, vf tail) {
    auto query = [&](int64_t i, const float* g) {
        const int64_t from = s.slant ? 0 : i;
        const Line line{g, g - s.g_stride - s.slant, g + s.g_stride + s.slant, w.h[0] + i * s.scored,
                        w.h[1] + i * s.scored, rows.scale + from, tail, rows.first + from - s.left, rows.best + i,
                        rows.best_index + i};
        score_query<kPass>(line, s.scored);
    };
    if (kPass == Pass::last) {
        for (int64_t i = 0; i < s.columns; ++i) query(i, w.g + s.g_stride + kMargin);
        return;
    }
    // Rows 0 and 1 of g carry the last two queries of the strip before; before the first and after the last are zeros.
    std::memset(w.g, 0, sizeof(float) * 2 * s.g_stride);
    for (int64_t first = 0; first < s.columns; first += kStrip) {
        float* g = w.g + 2 * s.g_stride + kMargin;
        const float *strip = rows.query + first * s.depth, *key = rows.key + (s.slant ? 0 : first);
        if (s.depth * s.computed > kL1)
            products_of_strip<true>(strip, key, s, g);
        else
            products_of_strip<false>(strip, key, s, g);
        const int64_t end = first + kStrip < s.columns ? first + kStrip - 1 : s.columns;
        for (int64_t i = first ? first - 1 : 0; i < end; ++i) query(i, g + (i - first) * s.g_stride);
        std::memcpy(w.g, w.g + kStrip * s.g_stride, sizeof(float) * 2 * s.g_stride);
    }
    std::swap(w.h[0], w.h[1]);
}

// Queries of rows [from, to) of an image against the keys `o` rows below them.
void search_offset(const Plan& s, const Packed& m, Worker& w, int64_t image, int64_t from, int64_t to, int64_t o,
                   vf tail) {
    const int64_t begin = o < 0 ? -o : 0, end = o < 0 ? s.rows : s.rows - o;  // rows that have such keys
    const int64_t first = from > begin ? from : begin, last = to < end ? to : end;
    if (first >= last) return;
    const int64_t y0 = first > begin ? first - 1 : first, y1 = last < end ? last + 1 : last;
    for (int64_t y = y0; y < y1 + (last == end); ++y) {
        const int64_t at = image * s.rows + y;
        const Rows rows{m.query + at * s.query_row,
                        m.key + (at + o) * s.depth * s.key_stride,
                        m.key_scale + (at - 1 + o) * s.scale_row,
                        w.score + (y - 1 - from) * s.columns,
                        w.index + (y - 1 - from) * s.columns,
                        (y - 1 + o) * s.columns};
        if (y == y1)
            search_row<Pass::last>(s, w, rows, tail);
        else if (y == y0)
            search_row<Pass::first>(s, w, rows, tail);
        else if (y == first)
            search_row<Pass::keep>(s, w, rows, tail);
        else
            search_row<Pass::score>(s, w, rows, tail);
    }
}

// How the work is cut. Without a window a task is one offset for all rows, so that no product is made twice; with one
// it is all offsets for some rows. Nothing of the result depends on it.
struct Cut {
    int64_t from, to, height;  // rows that are searched, and those of a part
    int64_t parts, offsets;    // tasks of an image

    Cut(const IconetPatchSearch& p, const Plan& s, int64_t threads) {
        from = p.first > 0 ? p.first - 1 : 0, to = p.last < s.rows ? p.last + 1 : s.rows;
        const int64_t rows = to - from, share = (p.batch * rows + 3 * threads - 1) / (3 * threads);
        height = s.slant ? rows : threads == 1 || share > 128 ? 128 : share < 12 ? 12 : share;
        parts = (rows + height - 1) / height;
        offsets = s.slant ? 2 * s.rows - 1 : 1;
    }
};

void reset(Worker& w, int64_t pixels) {
    for (int64_t i = 0; i < pixels; ++i) w.score[i] = -kInfinity, w.index[i] = 0;
}

// Higher score, then smaller index: the order in which workers come does not matter.
void merge(const Worker& w, int64_t pixels, float* score, int64_t* index) {
    for (int64_t i = 0; i < pixels; ++i)
        if (w.score[i] > score[i] || (w.score[i] == score[i] && w.index[i] < index[i])) {
            score[i] = w.score[i];
            index[i] = w.index[i];
        }
}

bool search(const IconetPatchSearch& p, const Plan& s, const Packed& m, const Cut& cut, Tasks& tasks,
            std::mutex& merging) {
    Arena arena;
    Worker w{};
    if (!arena.fill([&](Arena& a) { w.carve(a, s, cut.height); })) return false;
    std::memset(w.g, 0, sizeof(float) * (kStrip + 3) * s.g_stride);
    vf tail = splat(0.0f);
    const int64_t inside = (s.slant ? s.columns : 2 * s.left + 1) - (s.scored - kLanes);
    for (int64_t l = inside; l < kLanes; ++l) tail[l] = -kInfinity;
    int64_t part = -1;
    auto leave = [&] {
        if (part < 0) return;
        const int64_t from = cut.from + part % cut.parts * cut.height;
        const int64_t to = from + cut.height < cut.to ? from + cut.height : cut.to;
        const int64_t at = (part / cut.parts * s.rows + from) * s.columns;
        const std::lock_guard<std::mutex> lock(merging);
        merge(w, (to - from) * s.columns, p.score + at, p.index + at);
    };
    for (int64_t i; (i = tasks.next()) >= 0;) {
        if (i / cut.offsets != part) {
            leave();
            part = i / cut.offsets;
            reset(w, cut.height * s.columns);
        }
        const int64_t image = part / cut.parts, from = cut.from + part % cut.parts * cut.height;
        const int64_t to = from + cut.height < cut.to ? from + cut.height : cut.to;
        // Offsets ascend, so the keys that a query meets ascend too and a strict ">" keeps the smallest index.
        if (s.slant)
            search_offset(s, m, w, image, from, to, i % cut.offsets - s.reach, tail);
        else
            for (int64_t o = -s.reach; o <= s.reach; ++o) search_offset(s, m, w, image, from, to, o, tail);
    }
    leave();
    return true;
}

bool run(const IconetPatchSearch& p, int64_t threads) {
    const Plan s = plan_of(p);
    const Cut cut(p, s, threads);
    const int64_t rows = p.batch * s.rows;
    Arena arena;
    Packed m{};
    if (!arena.fill([&](Arena& a) { m.carve(a, s, p.batch); })) return false;
    bool good = share(threads, rows, [&](Tasks& tasks) {
        Arena own;
        double* sums = nullptr;
        if (!own.fill([&](Arena& a) { sums = a.take<double>(s.columns); })) return false;
        for (int64_t i; (i = tasks.next()) >= 0;) pack(p, s, m, i, sums);
        return true;
    });
    share(threads, rows, [&](Tasks& tasks) {
        for (int64_t i; (i = tasks.next()) >= 0;) scale(s, m, i);
        return true;
    });
    const int64_t wanted = (cut.to - cut.from) * s.columns;
    for (int64_t image = 0; image < p.batch; ++image)
        for (int64_t i = (image * s.rows + cut.from) * s.columns, end = i + wanted; i < end; ++i)
            p.score[i] = -kInfinity, p.index[i] = 0;
    std::mutex merging;
    good = good && share(threads, p.batch * cut.parts * cut.offsets,
                         [&](Tasks& tasks) { return search(p, s, m, cut, tasks, merging); });
    for (int64_t image = 0; image < p.batch; ++image)
        for (int64_t i = (image * s.rows + cut.from) * s.columns, end = i + wanted; i < end; ++i)
            p.score[i] *= m.query_scale[i];
    return good;
}

}  // namespace

extern "C" int iconet_patch_search(IconetPatchSearch* call, int64_t threads) {
    return status_of([&] { return run(*call, threads); });
}
