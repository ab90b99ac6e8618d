// 3x3 convolutions with zero padding on channels-last float32 images, single or as a chain, without gradients.
//
// A layer runs in the form that needs the fewest vector operations:
//     Winograd  F(4x4, 3x3): a tile of 4x4 pixels is computed from 6x6 pixels by 36 products where the definition has
//               144. A block of tiles is transformed, multiplied (36 matrix products, tiles x c_in by c_in x c_out), and
//               transformed back while it lies in the L2 cache.
//     taps      for few input channels: the definition; the 9 c_in values around a pixel are a row of the product.
//     spread    for few output channels: products of every pixel with the 9 c_out columns of weights, then each output
//               pixel sums the nine that concern it.
// All three rest on one product of matrices in registers (`products`). A pixel is computed by the same operations in the
// same order whoever its neighbours in a block, a band or a task are, so neither threads nor bands change a bit.
//
// Winograd's points are 0, +-sqrt(1/2), +-sqrt(2) and infinity. The usual 0, +-1, +-2 lose twice as much to rounding
// (relative to the definition in float32: 4 times its error, with these 1.8 times).
//
// A chain applies its layers to bands of a few rows, so that the maps between two layers stay in the cache and are never
// held whole: each layer follows the one before at a distance of 4 rows, reading from a ring of rows.

#include "pool.h"
#include "simd.h"

#include <algorithm>
#include <vector>

namespace {

using namespace iconet;

#if defined(__AVX512F__)
constexpr int kAccumulators = 24, kMaxVectors = 4;  // of 32 registers
#else
constexpr int kAccumulators = 12, kMaxVectors = 3;  // of 16
#endif
constexpr int64_t kTiles = 24;  // tiles in a block, a multiple of the rows of every product
constexpr int64_t kTile = 4, kPatch = 6, kPoints = kPatch * kPatch;
constexpr int64_t kTapRows = 4, kSpreadRows = 16;  // rows of a task in the other forms

constexpr float kRoot2 = 1.41421356237309505f, kHalfRoot2 = 0.70710678118654752f;

// ------------------------------------------------------------------------------------------------------- products

// Rows of a matrix: row i of segment s begins at base + i * row + s * segment and is `depth` long.
struct Operand {
    const float* base;
    int64_t row, segment, segments, depth;
};

template <int kRows, int kVectors>
ICONET_INLINE void product(const Operand& a, const float* base, const float* b, float* out, int64_t out_row) {
    vf sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kVectors; ++j) sum[i][j] = splat(0.0f);
    for (int64_t s = 0; s < a.segments; ++s) {
        const float* left = base + s * a.segment;
        for (int64_t k = 0; k < a.depth; ++k, b += kVectors * kLanes) {
            vf right[kVectors];
            for (int j = 0; j < kVectors; ++j) right[j] = load(b + j * kLanes);
            for (int i = 0; i < kRows; ++i) {
                const vf value = splat(left[i * a.row + k]);
                for (int j = 0; j < kVectors; ++j) sum[i][j] += value * right[j];
            }
        }
    }
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kVectors; ++j) store(out + i * out_row + j * kLanes, sum[i][j]);
}

// More rows would be too many streams for the prefetcher.
constexpr int rows_of_product(int vectors) { return std::min(kAccumulators / vectors, 12); }

// out (rows, kVectors * kLanes) = a b, with b of (segments * depth, kVectors * kLanes). Where the rows do not divide, the
// last ones are computed twice.
template <int kVectors>
void products(const Operand& a, const float* b, float* out, int64_t out_row, int64_t rows) {
    constexpr int kRows = rows_of_product(kVectors);
    if (rows < kRows) {
        for (int64_t i = 0; i < rows; ++i) product<1, kVectors>(a, a.base + i * a.row, b, out + i * out_row, out_row);
        return;
    }
    for (int64_t i = 0; i < rows; i += kRows) {
        const int64_t at = std::min(i, rows - kRows);
        product<kRows, kVectors>(a, a.base + at * a.row, b, out + at * out_row, out_row);
    }
}

// The columns of a matrix, cut into groups of equally many vectors.
struct Columns {
    int64_t vectors = 1, groups = 1;

    explicit Columns(int64_t count) {
        const int64_t needed = (count + kLanes - 1) / kLanes;
        int64_t least = INT64_MAX;
        for (int64_t v = std::min<int64_t>(kMaxVectors, needed); v >= 1; --v)
            if (round_up(needed, v) < least && (v > 1 || needed == 1)) least = round_up(needed, vectors = v);
        groups = least / vectors;
    }
    int64_t group_width() const { return vectors * kLanes; }
    int64_t width() const { return groups * group_width(); }
    int64_t group_of(int64_t column) const { return column / group_width(); }
    // Where column `column` of row `row` lies in a matrix of `rows` rows that is stored group by group.
    int64_t place(int64_t row, int64_t column, int64_t rows) const {
        return (group_of(column) * rows + row) * group_width() + column % group_width();
    }
    void multiply(const Operand& a, const float* b, float* out, int64_t out_row, int64_t rows) const {
        switch (vectors) {
            case 1: return products<1>(a, b, out, out_row, rows);
            case 2: return products<2>(a, b, out, out_row, rows);
            case 3: return products<3>(a, b, out, out_row, rows);
#if defined(__AVX512F__)
            default: return products<4>(a, b, out, out_row, rows);
#endif
        }
    }
};

}  // namespace

// What Python passes. A layer: weight (c_out, c_in, 3, 3) and bias (c_out) or null.
extern "C" struct IconetConv3x3Layer {
    const float *weight, *bias;
    int64_t c_in, c_out, relu;
};

// x (B, H, W, c_in of the first layer), y and addend (B, H, W, c_out of the last layer); addend may be null or y itself.
// coarse (B, H/2, W/2, features) and to_fine (4 * c_out of the first layer, features) may be null: their product,
// pixel-shuffled to H x W, is added to the first layer before its ReLU.
extern "C" struct IconetConv3x3 {
    const float *x, *addend, *coarse, *to_fine;
    float* y;
    const IconetConv3x3Layer* layers;
    int64_t count, batch, height, width, features, band;  // band: rows, a multiple of 4; at least the height: no bands
};

namespace {

// --------------------------------------------------------------------------------------------------------- layers

enum class Form { winograd, taps, spread };

Form form_of(int64_t c_in, int64_t c_out) {
    const int64_t in = (c_in + kLanes - 1) / kLanes, out = (c_out + kLanes - 1) / kLanes;
    // vector operations per pixel: products, then transforms or scalar sums
    const int64_t winograd = 9 * c_in * out / 4 + 20 * in + 16 * out;
    const int64_t taps = 9 * c_in * out, spread = c_in * ((9 * c_out + kLanes - 1) / kLanes) + 9 * c_out;
    if (taps <= winograd && taps <= spread) return Form::taps;
    return spread <= winograd ? Form::spread : Form::winograd;
}

// A layer with its weights in the order of the products.
struct Layer {
    const float *weight, *bias;
    int64_t c_in, c_out;
    bool relu;
    Form form;
    Columns columns;
    float* packed = nullptr;

    explicit Layer(const IconetConv3x3Layer& l)
        : weight(l.weight), bias(l.bias), c_in(l.c_in), c_out(l.c_out), relu(l.relu != 0),
          form(form_of(l.c_in, l.c_out)), columns(form == Form::spread ? 9 * l.c_out : l.c_out) {}

    int64_t depth() const { return form == Form::taps ? 9 * c_in : c_in; }
    int64_t packed_size() const { return (form == Form::winograd ? kPoints : 1) * depth() * columns.width(); }

    void pack() const {
        if (form == Form::winograd) {
            for (int64_t o = 0; o < columns.width(); o += kLanes)
                for (int64_t c = 0; c < c_in; ++c) pack_winograd(o, c);
            return;
        }
        std::memset(packed, 0, sizeof(float) * packed_size());
        for (int64_t o = 0; o < c_out; ++o)
            for (int64_t c = 0; c < c_in; ++c)
                for (int64_t tap = 0; tap < 9; ++tap)
                    packed[form == Form::taps ? columns.place(tap * c_in + c, o, depth())
                                              : columns.place(c, tap * c_out + o, depth())] =
                        weight[(o * c_in + c) * 9 + tap];
    }

   private:
    // One vector of kernels, those of the outputs from o on: their values at the points, divided by the product of the
    // distances from the other points.
    void pack_winograd(int64_t o, int64_t c) const {
        float taps[9][kLanes] = {};
        for (int64_t i = 0; i < std::min<int64_t>(kLanes, c_out - o); ++i)
            for (int t = 0; t < 9; ++t) taps[t][i] = weight[((o + i) * c_in + c) * 9 + t];
        vf rows[kPatch * 3], values[kPatch];
        for (int j = 0; j < 3; ++j) evaluate(load(taps[j]), load(taps[3 + j]), load(taps[6 + j]), rows + j, 3);
        const int64_t group = columns.group_width(), step = c_in * group;
        float* out = packed + columns.group_of(o) * kPoints * step + c * group + o % group;
        for (int i = 0; i < kPatch; ++i) {
            evaluate(rows[3 * i], rows[3 * i + 1], rows[3 * i + 2], values, 1);
            for (int j = 0; j < kPatch; ++j) store(out + (i * kPatch + j) * step, values[j]);
        }
    }
    static void evaluate(vf w0, vf w1, vf w2, vf* out, int step) {
        const vf even = (w0 + splat(0.5f) * w2) * splat(-1.0f / 1.5f), odd = w1 * splat(kHalfRoot2 / -1.5f);
        const vf far_even = (w0 + splat(2.0f) * w2) * splat(1.0f / 6.0f), far_odd = w1 * splat(kRoot2 / 6.0f);
        out[0] = w0;
        out[step] = even + odd;
        out[2 * step] = even - odd;
        out[3 * step] = far_even + far_odd;
        out[4 * step] = far_even - far_odd;
        out[5 * step] = w2;
    }
};

// An image whose row r lies at slot r % ring.
struct Map {
    float* base;
    int64_t image, row, pixel, ring;

    float* at(int64_t index, int64_t r) const { return base + index * image + (r % ring) * row; }
};

Map whole(const float* base, int64_t height, int64_t width, int64_t channels) {
    return {const_cast<float*>(base), height * width * channels, width * channels, channels, height};
}

// Memory of one worker.
struct Scratch {
    float *patch, *transformed, *multiplied;

    static int64_t patch_size(const Layer& l, int64_t width) {
        if (l.form == Form::winograd) return kPoints * l.c_in;
        if (l.form == Form::taps) return 3 * (round_up(width, kTiles) + 2) * l.c_in;
        return (kSpreadRows + 2) * (width + 2) * l.columns.width();
    }
    static int64_t transformed_size(const Layer& l) {
        return l.form == Form::winograd ? kPoints * (kTiles * round_up(l.c_in, kLanes) + kLanes) : 0;
    }
    static int64_t multiplied_size(const Layer& l) {
        return (l.form == Form::winograd ? kPoints : 1) * (kTiles * l.columns.group_width() + kLanes);
    }
};

// Rows [begin, end) of a layer; begin is a multiple of 4. The image is zero outside its height and width.
struct Work {
    const Layer& layer;
    Map in, out, addend;  // addend.base may be null
    int64_t height, width, begin, end;

    int64_t tile_columns() const { return (width + kTile - 1) / kTile; }
    int64_t tiles() const { return (end - begin + kTile - 1) / kTile * tile_columns(); }
    int64_t tasks() const {
        if (layer.form == Form::winograd) return (tiles() + kTiles - 1) / kTiles;
        const int64_t rows = layer.form == Form::taps ? kTapRows : kSpreadRows;
        return (end - begin + rows - 1) / rows;
    }
    void run(int64_t image, int64_t task, const Scratch& scratch) const;
};

// What follows the sum of products: bias, addend, ReLU. `live` channels are stored.
ICONET_INLINE void finish(vf value, const float* addend, bool relu, float* out, int64_t live) {
    if (live >= kLanes) {
        if (addend) value += load(addend);
        if (relu) value = at_least(value, 0.0f);
        store(out, value);
    } else {
        if (addend) value += load_part(addend, live);
        if (relu) value = at_least(value, 0.0f);
        store_part(out, value, live);
    }
}

ICONET_INLINE vf bias_of(const Layer& l, int64_t first) {
    if (!l.bias) return splat(0.0f);
    return l.c_out - first >= kLanes ? load(l.bias + first) : load_part(l.bias + first, l.c_out - first);
}

// ------------------------------------------------------------------------------------------------------- Winograd

// Six samples -> the remainders of their polynomial at the six points.
ICONET_INLINE void transform_in(const vf* d, int step, vf* t, int t_step) {
    const vf d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
    const vf even = d4 - splat(2.0f) * d2, odd = d3 - splat(2.0f) * d1;
    const vf far_even = d4 - splat(0.5f) * d2, far_odd = d3 - splat(0.5f) * d1;
    t[0] = (d[0] + d4) - splat(2.5f) * d2;
    t[t_step] = even + splat(kHalfRoot2) * odd;
    t[2 * t_step] = even - splat(kHalfRoot2) * odd;
    t[3 * t_step] = far_even + splat(kRoot2) * far_odd;
    t[4 * t_step] = far_even - splat(kRoot2) * far_odd;
    t[5 * t_step] = (d1 + d[5 * step]) - splat(2.5f) * d3;
}

// Six products -> the four samples of the result.
ICONET_INLINE void transform_out(const vf* m, int step, vf* y, int y_step) {
    const vf sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    const vf far_sum = m[3 * step] + m[4 * step], far_difference = m[3 * step] - m[4 * step];
    y[0] = m[0] + (sum + far_sum);
    y[y_step] = splat(kHalfRoot2) * difference + splat(kRoot2) * far_difference;
    y[2 * y_step] = splat(0.5f) * sum + splat(2.0f) * far_sum;
    y[3 * y_step] = m[5 * step] + (splat(0.5f * kHalfRoot2) * difference + splat(2.0f * kRoot2) * far_difference);
}

struct Tile {
    int64_t y, x;  // of its first pixel
};

// The 6x6 pixels around a tile as six pointers to rows; copied, with zeros outside the image, where it has an edge.
void patch_rows(const Work& w, int64_t image, Tile tile, float* copy, const float** rows) {
    const int64_t channels = w.layer.c_in, y0 = tile.y - 1, x0 = tile.x - 1;
    if (y0 >= 0 && y0 + kPatch <= w.height && x0 >= 0 && x0 + kPatch <= w.width) {
        for (int64_t i = 0; i < kPatch; ++i) rows[i] = w.in.at(image, y0 + i) + x0 * channels;
        return;
    }
    std::memset(copy, 0, sizeof(float) * kPoints * channels);
    const int64_t left = std::max<int64_t>(x0, 0), right = std::min(x0 + kPatch, w.width);
    for (int64_t i = 0; i < kPatch; ++i) {
        rows[i] = copy + i * kPatch * channels;
        if (y0 + i < 0 || y0 + i >= w.height) continue;
        std::memcpy(copy + (i * kPatch + left - x0) * channels, w.in.at(image, y0 + i) + left * channels,
                    sizeof(float) * (right - left) * channels);
    }
}

// `live` channels (at most one vector) of a patch -> 36 vectors, `step` apart.
ICONET_INLINE void transform_patch(const float* const* rows, int64_t channels, int64_t first, int64_t live, float* out,
                                   int64_t step) {
    vf half[kPoints], column[kPatch], row[kPatch];
    for (int j = 0; j < kPatch; ++j) {
        for (int i = 0; i < kPatch; ++i) {
            const float* p = rows[i] + j * channels + first;
            column[i] = live >= kLanes ? load(p) : load_part(p, live);
        }
        transform_in(column, 1, half + j, kPatch);
    }
    for (int i = 0; i < kPatch; ++i) {
        transform_in(half + i * kPatch, 1, row, 1);
        for (int j = 0; j < kPatch; ++j) store(out + (i * kPatch + j) * step, row[j]);
    }
}

// 36 vectors of products -> the pixels of a tile that lie in the image.
ICONET_INLINE void transform_back(const Work& w, int64_t image, Tile tile, const float* in, int64_t step, int64_t first) {
    const Layer& l = w.layer;
    vf m[kPatch], half[kTile * kPatch], y[kTile];
    for (int j = 0; j < kPatch; ++j) {
        for (int i = 0; i < kPatch; ++i) m[i] = load(in + (i * kPatch + j) * step);
        transform_out(m, 1, half + j, kPatch);
    }
    const vf bias = bias_of(l, first);
    const int64_t rows = std::min(kTile, w.end - tile.y), columns = std::min(kTile, w.width - tile.x);
    for (int64_t i = 0; i < rows; ++i) {
        transform_out(half + i * kPatch, 1, y, 1);
        float* out = w.out.at(image, tile.y + i) + tile.x * w.out.pixel + first;
        const float* addend = w.addend.base ? w.addend.at(image, tile.y + i) + tile.x * w.addend.pixel + first : nullptr;
        for (int64_t j = 0; j < columns; ++j)
            finish(y[j] + bias, addend ? addend + j * w.addend.pixel : nullptr, l.relu, out + j * w.out.pixel,
                   l.c_out - first);
    }
}

void winograd_task(const Work& w, int64_t image, int64_t task, const Scratch& s) {
    const Layer& l = w.layer;
    const int64_t across = w.tile_columns(), first = task * kTiles;
    const int64_t count = std::min(kTiles, w.tiles() - first);
    const int64_t in = round_up(l.c_in, kLanes), group = l.columns.group_width();
    const int64_t in_step = kTiles * in + kLanes, out_step = kTiles * group + kLanes;  // one vector apart in the cache
    const auto tile_at = [&](int64_t t) {
        return Tile{w.begin + (first + t) / across * kTile, (first + t) % across * kTile};
    };
    for (int64_t t = 0; t < count; ++t) {
        const float* rows[kPatch];
        patch_rows(w, image, tile_at(t), s.patch, rows);
        for (int64_t c = 0; c < l.c_in; c += kLanes)
            transform_patch(rows, l.c_in, c, l.c_in - c, s.transformed + t * in + c, in_step);
    }
    const int64_t padded = round_up(count, rows_of_product(int(l.columns.vectors)));  // to whole products
    for (int64_t p = 0; p < kPoints && count < padded; ++p)
        std::memset(s.transformed + p * in_step + count * in, 0, sizeof(float) * (padded - count) * in);
    for (int64_t g = 0; g < l.columns.groups; ++g) {
        for (int64_t p = 0; p < kPoints; ++p)
            l.columns.multiply({s.transformed + p * in_step, in, 0, 1, l.c_in},
                               l.packed + (g * kPoints + p) * l.c_in * group, s.multiplied + p * out_step, group, padded);
        for (int64_t t = 0; t < count; ++t)
            for (int64_t c = g * group; c < std::min((g + 1) * group, l.c_out); c += kLanes)
                transform_back(w, image, tile_at(t), s.multiplied + t * group + c - g * group, out_step, c);
    }
}

// ----------------------------------------------------------------------------------------------- taps and spread

void taps_task(const Work& w, int64_t image, int64_t task, const Scratch& s) {
    const Layer& l = w.layer;
    const int64_t padded = (round_up(w.width, kTiles) + 2) * l.c_in, group = l.columns.group_width();
    const int64_t begin = w.begin + task * kTapRows, end = std::min(begin + kTapRows, w.end);
    for (int64_t y = begin; y < end; ++y) {
        std::memset(s.patch, 0, sizeof(float) * 3 * padded);
        for (int64_t i = 0; i < 3; ++i)
            if (y + i >= 1 && y + i <= w.height)
                std::memcpy(s.patch + i * padded + l.c_in, w.in.at(image, y + i - 1), sizeof(float) * w.width * l.c_in);
        for (int64_t x = 0; x < w.width; x += kTiles) {
            const Operand around = {s.patch + x * l.c_in, l.c_in, padded, 3, 3 * l.c_in};
            const int64_t pixels = std::min(kTiles, w.width - x);
            for (int64_t g = 0; g < l.columns.groups; ++g) {
                l.columns.multiply(around, l.packed + g * l.depth() * group, s.multiplied, group, kTiles);
                for (int64_t c = g * group; c < std::min((g + 1) * group, l.c_out); c += kLanes) {
                    const vf bias = bias_of(l, c);
                    float* out = w.out.at(image, y) + x * w.out.pixel + c;
                    const float* addend = w.addend.base ? w.addend.at(image, y) + x * w.addend.pixel + c : nullptr;
                    for (int64_t j = 0; j < pixels; ++j)
                        finish(load(s.multiplied + j * group + c - g * group) + bias,
                               addend ? addend + j * w.addend.pixel : nullptr, l.relu, out + j * w.out.pixel,
                               l.c_out - c);
                }
            }
        }
    }
}

void spread_task(const Work& w, int64_t image, int64_t task, const Scratch& s) {
    const Layer& l = w.layer;
    const int64_t wide = l.columns.width(), group = l.columns.group_width(), row = (w.width + 2) * wide;
    const int64_t begin = w.begin + task * kSpreadRows, end = std::min(begin + kSpreadRows, w.end);
    for (int64_t y = begin - 1; y <= end; ++y) {  // with a border of one pixel
        float* out = s.patch + (y - begin + 1) * row;
        if (y < 0 || y >= w.height) {
            std::memset(out, 0, sizeof(float) * row);
            continue;
        }
        std::memset(out, 0, sizeof(float) * wide);
        std::memset(out + row - wide, 0, sizeof(float) * wide);
        for (int64_t g = 0; g < l.columns.groups; ++g)
            l.columns.multiply({w.in.at(image, y), l.c_in, 0, 1, l.c_in}, l.packed + g * l.c_in * group,
                               out + wide + g * group, wide, w.width);
    }
    for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < w.width; ++x) {
            const float* addend = w.addend.base ? w.addend.at(image, y) + x * w.addend.pixel : nullptr;
            const float* top = s.patch + (y - begin) * row + x * wide;
            float* out = w.out.at(image, y) + x * w.out.pixel;
            for (int64_t o = 0; o < l.c_out; ++o) {
                float sum = l.bias ? l.bias[o] : 0.0f;
                for (int i = 0; i < 3; ++i)
                    for (int j = 0; j < 3; ++j) sum += top[i * row + j * wide + (3 * i + j) * l.c_out + o];
                if (addend) sum += addend[o];
                out[o] = l.relu && sum < 0.0f ? 0.0f : sum;
            }
        }
}

void Work::run(int64_t image, int64_t task, const Scratch& scratch) const {
    switch (layer.form) {
        case Form::winograd: return winograd_task(*this, image, task, scratch);
        case Form::taps: return taps_task(*this, image, task, scratch);
        case Form::spread: return spread_task(*this, image, task, scratch);
    }
}

// ------------------------------------------------------------------------------------------------------- a chain

// The four maps of a product of the coarse features, one for each pixel of a block of 2x2.
struct ToFine {
    int64_t features, channels;
    Columns columns;
    float* packed = nullptr;

    ToFine(int64_t features, int64_t channels) : features(features), channels(channels), columns(channels) {}

    int64_t quarter() const { return features * columns.width(); }
    // Row 4 c + 2 dy + dx of the weight belongs to channel c of pixel (dy, dx), as for a pixel shuffle.
    void pack(const float* weight) const {
        std::memset(packed, 0, sizeof(float) * 4 * quarter());
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t q = 0; q < 4; ++q)
                for (int64_t k = 0; k < features; ++k)
                    packed[q * quarter() + columns.place(k, c, features)] = weight[(4 * c + q) * features + k];
    }
    // One coarse row of `width` pixels -> two fine rows.
    void run(const float* coarse, int64_t width, float* upper, float* lower) const {
        const int64_t pixel = columns.width(), group = columns.group_width();
        for (int64_t q = 0; q < 4; ++q)
            for (int64_t g = 0; g < columns.groups; ++g)
                columns.multiply({coarse, features, 0, 1, features}, packed + q * quarter() + g * features * group,
                                 (q < 2 ? upper : lower) + (q % 2) * pixel + g * group, 2 * pixel, width);
    }
};

class Chain {
   public:
    Chain(const IconetConv3x3& call, int64_t threads)
        : call_(call), threads_(threads), layers_(call.layers, call.layers + call.count), maps_(call.count + 1),
          scratch_(threads), to_fine_(call.features, layers_[0].c_out) {}

    // False when memory ran out.
    bool run() {
        if (!memory_.fill([this](Arena& arena) { carve(arena); })) return false;
        share(threads_, call_.count, [this](Tasks& tasks) {
            for (int64_t i; (i = tasks.next()) >= 0;) layers_[i].pack();
            return true;
        });
        if (call_.coarse) to_fine_.pack(call_.to_fine);
        if (call_.band >= call_.height && call_.count == 1 && !call_.coarse)
            run_rows(0, call_.batch, 0, call_.height);
        else
            for (int64_t image = 0; image < call_.batch; ++image) run_bands(image);
        return true;
    }

   private:
    void carve(Arena& arena) {
        int64_t patch = 0, transformed = 0, multiplied = 0;
        for (Layer& l : layers_) {
            l.packed = arena.take<float>(l.packed_size());
            patch = std::max(patch, Scratch::patch_size(l, call_.width));
            transformed = std::max(transformed, Scratch::transformed_size(l));
            multiplied = std::max(multiplied, Scratch::multiplied_size(l));
        }
        for (Scratch& s : scratch_)
            s = {arena.take<float>(patch), arena.take<float>(transformed), arena.take<float>(multiplied)};
        maps_.front() = whole(call_.x, call_.height, call_.width, layers_.front().c_in);
        maps_.back() = whole(call_.y, call_.height, call_.width, layers_.back().c_out);
        for (int64_t i = 1; i < call_.count; ++i)
            maps_[i] = ring(arena, layers_[i].c_in, std::min(call_.band + kTile + 1, call_.height));
        if (call_.coarse) {
            to_fine_.packed = arena.take<float>(4 * to_fine_.quarter());
            fine_ = ring(arena, to_fine_.columns.width(), std::min(call_.band, call_.height));
        }
    }
    Map ring(Arena& arena, int64_t channels, int64_t rows) const {
        const int64_t row = call_.width * channels;
        return {arena.take<float>(rows * row), 0, row, channels, rows};
    }

    // Every layer advances by at most a band, to the last row for which the layer before has the row below.
    void run_bands(int64_t image) {
        std::vector<int64_t> done(call_.count, 0);
        while (done.back() < call_.height)
            for (int64_t i = 0; i < call_.count; ++i) {
                const int64_t before = i ? done[i - 1] : call_.height;
                const int64_t ready = before == call_.height ? before : std::max<int64_t>(before - 1, 0) / kTile * kTile;
                const int64_t end = std::min(done[i] + call_.band, ready);
                if (end == done[i]) continue;
                if (i == 0 && call_.coarse) run_to_fine(image, done[i], end);
                run_rows(i, 1, done[i], end, image);
                done[i] = end;
            }
    }

    void run_rows(int64_t index, int64_t images, int64_t begin, int64_t end, int64_t image = 0) {
        Map addend{};
        if (index == 0 && call_.coarse) addend = fine_;
        if (index + 1 == call_.count && call_.addend)
            addend = whole(call_.addend, call_.height, call_.width, layers_.back().c_out);
        const Work work{layers_[index], maps_[index], maps_[index + 1], addend, call_.height, call_.width, begin, end};
        const int64_t tasks = work.tasks();
        int64_t workers = 0;
        share(threads_, images * tasks, [&](Tasks& queue) {
            const Scratch& scratch = scratch_[__atomic_fetch_add(&workers, 1, __ATOMIC_RELAXED)];
            for (int64_t i; (i = queue.next()) >= 0;) work.run(image + i / tasks, i % tasks, scratch);
            return true;
        });
    }

    void run_to_fine(int64_t image, int64_t begin, int64_t end) {
        const int64_t width = call_.width / 2;
        share(threads_, (end - begin) / 2, [&](Tasks& queue) {
            for (int64_t i; (i = queue.next()) >= 0;) {
                const int64_t row = begin / 2 + i;
                to_fine_.run(call_.coarse + (image * call_.height / 2 + row) * width * call_.features, width,
                             fine_.at(0, 2 * row), fine_.at(0, 2 * row + 1));
            }
            return true;
        });
    }

    const IconetConv3x3& call_;
    const int64_t threads_;
    std::vector<Layer> layers_;
    std::vector<Map> maps_;  // the input of every layer, and the result
    std::vector<Scratch> scratch_;
    ToFine to_fine_;
    Map fine_{};
    Arena memory_;
};

}  // namespace

extern "C" int iconet_conv3x3(const IconetConv3x3* call, int64_t threads) {
    return status_of([&] { return Chain(*call, threads).run(); });
}
