// Which tile a kernel takes, and in how many segments the scan cuts time: the rules of ops/selective_scan/tiles.py and
// ops/causal_conv1d/cuda.py, with their numbers, which the pack holds. tests/ops/aot/test_choice.py compares them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "gpu/pack.h"

namespace rdfa::gpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ScanChoice {
  const ScanTile* tile;
  int64_t programs, blocks, segment;  // blocks of the length, and those of one segment
};

// For sequences of `length` steps of `bytes` each, batch x groups x channels of a group.
inline ScanChoice choose_scan(const Pack& pack, int64_t batch, int64_t groups, int64_t channels, int64_t length,
                              int64_t bytes, int64_t processors) {
  const double empty_wave = pack.number("EMPTY_WAVE");
  const int64_t slots = pack.whole("WARPS_PER_PROCESSOR") * processors;
  const ScanTile& last = pack.scan_tiles().back();
  const auto programs = [&](const ScanTile& tile) { return batch * groups * ceil_div(channels, tile.rows); };
  const auto cost = [&](const ScanTile& tile) {
    const int64_t rest = programs(tile) % slots;
    double waves = static_cast<double>(programs(tile) / slots);
    if (rest) waves += empty_wave + (1 - empty_wave) * static_cast<double>(rest) / static_cast<double>(slots);
    const double steps = static_cast<double>(ceil_div(length, tile.block()) * tile.block());
    return waves * (tile.wave[bytes == 4] * steps + last.wave[0] * pack.number("WAVE_START"));
  };
  const auto& tiles = pack.scan_tiles();
  const ScanTile& tile = *std::min_element(tiles.begin(), tiles.end(),
                                           [&](const ScanTile& a, const ScanTile& b) { return cost(a) < cost(b); });
  ScanChoice choice{&tile, programs(tile), ceil_div(length, tile.block()), 0};
  const auto wanted = static_cast<int64_t>(pack.number("FORWARD_WAVES") * static_cast<double>(slots));
  const int64_t segments = std::min(wanted / std::max<int64_t>(1, choice.programs),
                                    choice.blocks / pack.whole("FORWARD_SEGMENT"));
  choice.segment = ceil_div(choice.blocks, std::max<int64_t>(1, segments));
  return choice;
}

struct ConvChoice {
  int64_t columns, rows, blocks;  // programs, and the tiles that each goes through along time
};

inline ConvChoice choose_conv(const Pack& pack, const ConvTile& tile, int64_t batch, int64_t channels, int64_t length) {
  ConvChoice choice{};
  choice.columns = batch * ceil_div(channels, tile.channels * tile.width);
  const int64_t tiles = ceil_div(length, tile.times * tile.steps);
  const int64_t enough = std::max<int64_t>(1, pack.whole("ENOUGH_PROGRAMS") / choice.columns);
  choice.blocks = ceil_div(tiles, std::min({tiles, enough, pack.whole("MOST_ROWS")}));
  choice.rows = ceil_div(tiles, choice.blocks);
  return choice;
}

}  // namespace rdfa::gpu
