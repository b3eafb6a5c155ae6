// Random words of a position, and which tokens come into question by them (drawing.py): with room for how anybody rounds, so
// that what is drawn is the same without them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common.hpp"

namespace dynatree {

// Blocks of random words that are made at once: a vector has one word of each.
constexpr int AT_ONCE = 8;
// Blocks that a thread makes, of some that threads share.
constexpr int64_t PART = 1536;
// Words among which the least is found, and tokens of which it is asked whether any comes into question.
constexpr int64_t SOUGHT = 1024, ASKED = 64;
// Of standard Gumbel noise there is no less to the resolution of float32, and of words above the second it is taken for that.
constexpr double LEAST_NOISE = -2.9, RARE = 0.999;

typedef uint64_t Words __attribute__((vector_size(AT_ONCE * sizeof(uint64_t))));

// The upper and the lower half of products of 64 bits, by such of 32, of which vectors have eight at once.
inline void multiply(const Words& x, uint64_t by, Words& upper, Words& lower) {
    constexpr uint64_t half = 0xFFFFFFFF;
    const Words low = (x & half) * (by & half), middle = (x >> 32) * (by & half) + (low >> 32);
    const Words other = (x & half) * (by >> 32) + (middle & half);
    upper = (x >> 32) * (by >> 32) + (middle >> 32) + (other >> 32);
    lower = other << 32 | (low & half);
}

// Philox4x64-10 (Salmon et al. 2011): `count` blocks of four words by `key` [2], counted up from behind `counter` [4].
inline void philox(const uint64_t* key, const uint64_t* counter, int64_t block, int64_t count, uint64_t* words) {
    Words x[4], upper[2], lower[2];
    for (int of = 0; of < AT_ONCE; ++of)
        for (int place = 0; place < 4; ++place)
            x[place][of] = counter[place] + (place ? 0 : 1 + block + of);
    uint64_t first = key[0], second = key[1];
    for (int round = 0; round < 10; ++round) {
        multiply(x[0], 0xD2E7470EE14C6C93, upper[0], lower[0]);
        multiply(x[2], 0xCA5A826395121157, upper[1], lower[1]);
        x[0] = upper[1] ^ x[1] ^ first, x[2] = upper[0] ^ x[3] ^ second;
        x[1] = lower[1], x[3] = lower[0];
        first += 0x9E3779B97F4A7C15, second += 0xBB67AE8584CAA73B;
    }
    for (int64_t of = 0; of < count; ++of)
        for (int place = 0; place < 4; ++place)
            words[4 * of + place] = x[place][of];
}

// The noise of a word, or less, to well within what `contenders` leaves for rounding.
inline double noise_at_least(uint32_t word) {
    const double u = (word + 0.5) * 0x1p-32;
    return u > RARE ? LEAST_NOISE : -std::log(-std::log1p(-u));
}

// No less than it: the logarithm of 2^32 / word, of which a float's bits are a chord.
inline float noise_at_most(uint32_t word) {
    constexpr float ln2 = 0.69314718f;
    const float value = float(word);
    int32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return (159.0f - float(bits) * 0x1p-23f) * ln2;
}

inline int64_t least_of(const uint32_t* words, int64_t size) {
    uint32_t least = std::numeric_limits<uint32_t>::max();
    int64_t where = 0;
    for (int64_t begin = 0; begin < size; begin += SOUGHT) {
        const int64_t end = std::min(begin + SOUGHT, size);
        uint32_t here = std::numeric_limits<uint32_t>::max();
        for (int64_t at = begin; at < end; ++at)
            here = std::min(here, words[at]);
        if (here < least)
            least = here, where = begin;
    }
    return std::find(words + where, words + size, least) - words;
}

}  // namespace dynatree

// `words` [4 * blocks], by the threads that graphs have, too, if they have any: between two forwards they wait.
extern "C" void dynatree_words(const uint64_t* key, const uint64_t* counter, int64_t blocks, uint64_t* words) {
    const int64_t parts = (blocks + dynatree::PART - 1) / dynatree::PART;
    dynatree::Team::gather(dynatree::Helpers::all().size(), parts > 1, [&](dynatree::Team& team) {
        team.share(parts, true, [&](int64_t part) {
            const int64_t end = std::min((part + 1) * dynatree::PART, blocks);
            for (int64_t block = part * dynatree::PART; block < end; block += dynatree::AT_ONCE)
                dynatree::philox(key, counter, block, std::min<int64_t>(dynatree::AT_ONCE, end - block), words + 4 * block);
        });
    });
}

// How many of `size` tokens may have the largest sum of `scores` and noise, of those of at least `least`: in order in `found`,
// of which there are no more than `most`. None has a larger score than the one at `likeliest`, which is finite.
extern "C" int64_t dynatree_contenders(const float* scores, const uint32_t* words, int64_t size, int64_t likeliest,
                                       float least, int64_t* found, int64_t most) {
    const double rounding = 1e-5 * (std::abs(scores[likeliest]) + 1) + 1e-3;
    const auto sum = [&](int64_t at) { return scores[at] + dynatree::noise_at_least(words[at]); };
    double best = sum(likeliest);
    if (const int64_t luckiest = dynatree::least_of(words, size); scores[luckiest] >= least)
        best = std::max(best, sum(luckiest));
    const float enough = float(best - rounding);
    const auto asked = [&](int64_t at) {
        return (scores[at] + dynatree::noise_at_most(words[at]) >= enough) & (scores[at] >= least);
    };
    int64_t count = 0;
    for (int64_t begin = 0; begin < size; begin += dynatree::ASKED) {
        const int64_t end = std::min(begin + dynatree::ASKED, size);
        int any = 0;
        for (int64_t at = begin; at < end; ++at)
            any |= asked(at);
        for (int64_t at = begin; any && at < end; ++at)
            if (asked(at)) {
                if (count < most)
                    found[count] = at;
                ++count;
            }
    }
    if (count > most)
        return count;
    // Most often one is left, of which nothing more has to be known.
    for (int64_t at = 0; at < count; ++at)
        best = std::max(best, sum(found[at]));
    const auto behind = [&](int64_t at) {
        return words[at] < dynatree::RARE * 0x1p32 && sum(at) < best - rounding;
    };
    return std::remove_if(found, found + count, behind) - found;
}
