// Drives a Verilated design as an SPI host, mode 0: module spi_top with ports clk, sck, cs_n, copi, cipo and led.
// Bits can be inverted at random, in either direction.

#include <cstdint>

#include "Vspi_top.h"
#include "random.h"
#include "verilated.h"

namespace {

struct Host {
    VerilatedContext context;
    Vspi_top top;
    Random random;
    const uint32_t divisor, threshold;
    uint64_t cycle = 0;

    Host(uint64_t seed, uint32_t divisor, uint32_t threshold)
        : top((context.randReset(2), context.randSeed(int(seed & 0x7FFFFFFF) | 1), &context)),
          random{seed},
          divisor(divisor),
          threshold(threshold) {
        top.clk = 0;
        top.sck = 0;
        top.cs_n = 1;
        top.copi = 0;
        run(64 * divisor);
    }
    ~Host() { top.final(); }

    bool noise() { return threshold && random.next() < threshold; }

    void run(uint64_t cycles) {
        for (; cycles; --cycles, ++cycle) {
            top.eval();
            top.clk = 1;
            top.eval();
            top.clk = 0;
        }
        top.eval();
    }

    uint8_t byte(uint8_t out) {
        uint8_t in = 0;
        for (int i = 7; i >= 0; --i) {
            top.copi = (out >> i & 1) ^ noise();
            run(divisor - divisor / 2);
            in = uint8_t(in << 1 | (top.cipo ^ noise()));
            top.sck = 1;
            run(divisor / 2);
            top.sck = 0;
        }
        return in;
    }
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// noise: probability that a bit is inverted, in units of 2^-32.
API Host* spi_create(uint64_t seed, uint32_t divisor, uint32_t noise) { return new Host(seed, divisor, noise); }

API void spi_destroy(Host* host) { delete host; }

API uint32_t spi_lamps(const Host* host) { return host->top.led; }

API uint64_t spi_cycle(const Host* host) { return host->cycle; }

// Select the device, clock `count` bytes both ways (in place), deselect it.
API void spi_transfer(Host* host, uint8_t* data, uint64_t count) {
    host->top.cs_n = 0;
    host->run(host->divisor);
    for (; count; --count, ++data) *data = host->byte(*data);
    host->run(host->divisor);
    host->top.cs_n = 1;
    host->run(host->divisor);
}
