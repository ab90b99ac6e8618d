// Vectors of floats as wide as the processor has them, and the functions of them that the kernels share.
//
// Must not be compiled with -ffast-math: the exponential rounds by adding and subtracting a large constant.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define ICONET_INLINE static inline __attribute__((always_inline))

namespace iconet {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));

ICONET_INLINE vf splat(float s) {
#if defined(__AVX512F__)
    return (vf)_mm512_set1_ps(s);
#else
    return vf{s, s, s, s, s, s, s, s};
#endif
}

ICONET_INLINE vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

ICONET_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// The first `count` values, zeros after them; nothing is read beyond them.
ICONET_INLINE vf load_part(const float* p, int64_t count) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
#else
    vf v = splat(0.0f);
    std::memcpy(&v, p, sizeof(float) * count);
    return v;
#endif
}

ICONET_INLINE void store_part(float* p, vf v, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
#else
    std::memcpy(p, &v, sizeof(float) * count);
#endif
}

// max(bound, value) that lets a NaN in `value` through.
ICONET_INLINE vf at_least(vf value, float bound) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)splat(bound), (__m512)value);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)splat(bound), (__m256)value);
#else
    vf b = splat(bound);
    return value < b ? b : value;
#endif
}

ICONET_INLINE vf at_most(vf value, float bound) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)splat(bound), (__m512)value);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)splat(bound), (__m256)value);
#else
    vf b = splat(bound);
    return value > b ? b : value;
#endif
}

ICONET_INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

ICONET_INLINE vf magnitude(vf a) { return (vf)((vi)a & 0x7fffffff); }

// 2**v for v in [-126, 127], relative error 2e-7: nearest integer by the magic constant, a minimax polynomial beyond.
// The polynomial is exactly 1 at 0: a bias there, however small, would add up over the thousands of steps that a slowly
// decaying state remembers.
ICONET_INLINE vf exp2_in_range(vf v) {
    const vf magic = splat(12582912.0f);
    vf t = v + magic;
    vf f = v - (t - magic);
    vf p = splat(0.00132663874f) * f + splat(0.00966899842f);
    p = p * f + splat(0.0555069968f);
    p = p * f + splat(0.240222946f);
    p = p * f + splat(0.693147063f);
    p = p * f + splat(1.0f);
    return (vf)((vi)p + ((vi)t << 23));
}

ICONET_INLINE vf exp2_clamped(vf v) { return exp2_in_range(at_most(at_least(v, -126.0f), 127.0f)); }

constexpr float kLog2e = 1.44269504f;

ICONET_INLINE int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Asks for huge pages under memory that has not been touched yet, if it is so large that the C library takes it afresh
// from the system each time: fewer faults when it is first touched, fewer misses of the address cache by columns.
inline void prefer_huge_pages(void* memory, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHuge = uintptr_t(1) << 21;
    if (!memory || size < 16 * kHuge) return;
    const uintptr_t first = (uintptr_t(memory) + kHuge - 1) / kHuge * kHuge, last = (uintptr_t(memory) + size) / kHuge * kHuge;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)size;
#endif
}

// Memory of one worker: a bump allocator over one aligned block. `carve` is a function that takes all its parts from the
// arena; it is called once to measure and once to place.
struct Arena {
    char* base = nullptr;
    size_t used = 0;

    template <class V>
    V* take(size_t count) {
        V* p = base ? reinterpret_cast<V*>(base + used) : nullptr;
        used += (count * sizeof(V) + 63) / 64 * 64;
        return p;
    }
    // False when there is no memory.
    template <class Carve>
    bool fill(Carve carve) {
        carve(*this);
        base = static_cast<char*>(std::aligned_alloc(64, used ? used : 64));
        prefer_huge_pages(base, used);
        used = 0;
        if (base) carve(*this);
        return base != nullptr;
    }
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { std::free(base); }
};

}  // namespace iconet
