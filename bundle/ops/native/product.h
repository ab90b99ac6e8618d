// Small matrix products with packed weights: rows of pixels times a matrix of a few dozen columns.

#pragma once

#include "simd.h"

namespace iconet {

constexpr int kPanel = 3;                          // vectors of columns in a panel
constexpr int kTileRows = kLanes == 16 ? 8 : 4;    // with a panel they fill the registers

// Weights (columns, depth), as a linear layer has them -> panels of kPanel vectors of columns, [panel][depth][vector].
// Columns past the last are zero.
ICONET_INLINE int64_t packed_vectors(int64_t columns, int64_t depth) { return (columns + kLanes - 1) / kLanes * depth; }

inline void pack(const float* weight, int64_t columns, int64_t depth, vf* out) {
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    float* to = reinterpret_cast<float*>(out);
    for (int64_t first = 0; first < vectors; first += kPanel) {
        const int64_t width = (vectors - first < kPanel ? vectors - first : kPanel) * kLanes;
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t j = 0; j < width; ++j) {
                const int64_t column = first * kLanes + j;
                *to++ = column < columns ? weight[column * depth + k] : 0.0f;
            }
    }
}

template <int kRows, int kVectors, class Store>
ICONET_INLINE void product_tile(const float* a, int64_t a_stride, const vf* b, int64_t depth, int64_t row,
                                int64_t vector, Store& put) {
    vf sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kVectors; ++j) sum[i][j] = splat(0.0f);
    for (int64_t k = 0; k < depth; ++k)
        for (int i = 0; i < kRows; ++i) {
            const vf s = splat(a[i * a_stride + k]);
            for (int j = 0; j < kVectors; ++j) sum[i][j] += s * b[k * kVectors + j];
        }
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kVectors; ++j) put(row + i, vector + j, sum[i][j]);
}

template <int kVectors, class Store>
ICONET_INLINE void product_panel(const float* a, int64_t a_stride, int64_t rows, const vf* b, int64_t depth,
                                 int64_t vector, Store& put) {
    int64_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
        product_tile<kTileRows, kVectors>(a + i * a_stride, a_stride, b, depth, i, vector, put);
    for (; i < rows; ++i) product_tile<1, kVectors>(a + i * a_stride, a_stride, b, depth, i, vector, put);
}

// a (rows, depth) times packed weights; `put(row, vector, value)` receives every vector of the result once. Each value
// is one sum in the order of `depth`, whatever the tile it falls in.
template <class Store>
ICONET_INLINE void product(const float* a, int64_t a_stride, int64_t rows, const vf* packed, int64_t columns,
                           int64_t depth, Store put) {
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    for (int64_t v = 0; v < vectors; v += kPanel, packed += kPanel * depth) {
        if (vectors - v >= 3)
            product_panel<3>(a, a_stride, rows, packed, depth, v, put);
        else if (vectors - v == 2)
            product_panel<2>(a, a_stride, rows, packed, depth, v, put);
        else
            product_panel<1>(a, a_stride, rows, packed, depth, v, put);
    }
}

}  // namespace iconet
