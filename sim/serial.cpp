// Drives a Verilated design by its serial line: module serial_top with ports clk, uart_rx and uart_tx.
//
// Python queues bytes and asks to run; every clock cycle and every bit on the line is handled here. Bits on
// the line, start and stop bits too, can be inverted at random, in either direction.

#include <cstdint>
#include <deque>

#include "Vserial_top.h"
#include "random.h"
#include "verilated.h"

namespace {

struct Line {
    VerilatedContext context;
    Vserial_top top;
    Random random;
    const uint32_t divisor, threshold;
    uint64_t cycle = 0;
    std::deque<uint8_t> to_device, from_device;
    // Sender: bits of the byte on the line, the lowest now.
    uint32_t bits = 1, bits_left = 0, wait = 0;
    // Receiver: cycles until the next sample, samples still to take.
    uint32_t sample_in = 0, samples_left = 0, shifted = 0;

    Line(uint64_t seed, uint32_t divisor, uint32_t threshold)
        : top((context.randReset(2), context.randSeed(int(seed & 0x7FFFFFFF) | 1), &context)),
          random{seed},
          divisor(divisor),
          threshold(threshold) {
        top.clk = 0;
        top.uart_rx = 1;
        for (uint32_t i = 0; i < 64 * divisor; ++i) tick();
    }
    ~Line() { top.final(); }

    bool noise() { return threshold && random.next() < threshold; }

    void send() {
        if (wait) {
            --wait;
            return;
        }
        if (!bits_left && !to_device.empty()) {
            bits = uint32_t(to_device.front()) << 1 | 1 << 9;
            bits_left = 10;
            to_device.pop_front();
        }
        if (!bits_left) {
            top.uart_rx = 1;
            return;
        }
        top.uart_rx = (bits & 1) ^ noise();
        bits >>= 1;
        --bits_left;
        wait = divisor - 1;
    }

    void receive() {
        if (!samples_left) {
            if (!top.uart_tx) {
                samples_left = 9;
                sample_in = divisor + divisor / 2;
            }
            return;
        }
        if (--sample_in) return;
        const bool bit = top.uart_tx ^ noise();
        sample_in = divisor;
        if (--samples_left) {
            shifted = shifted >> 1 | uint32_t(bit) << 7;
        } else if (bit) {  // a stop bit; without it the byte is lost
            from_device.push_back(uint8_t(shifted));
        }
    }

    void tick() {
        send();
        top.eval();
        receive();
        top.clk = 1;
        top.eval();
        top.clk = 0;
        ++cycle;
    }
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// noise: probability that a bit is inverted, in units of 2^-32.
API Line* serial_create(uint64_t seed, uint32_t divisor, uint32_t noise) {
    return new Line(seed, divisor, noise);
}

API void serial_destroy(Line* line) { delete line; }

API uint64_t serial_cycle(const Line* line) { return line->cycle; }

API void serial_write(Line* line, const uint8_t* data, uint64_t count) {
    line->to_device.insert(line->to_device.end(), data, data + count);
}

// Run for at most `cycles`, until a byte has come and all is sent; returns the bytes that have come.
API uint64_t serial_run(Line* line, uint64_t cycles) {
    for (; cycles && (line->from_device.empty() || line->bits_left || !line->to_device.empty()); --cycles)
        line->tick();
    return line->from_device.size();
}

API uint64_t serial_read(Line* line, uint8_t* data, uint64_t room) {
    uint64_t count = 0;
    for (; count < room && !line->from_device.empty(); ++count) {
        data[count] = line->from_device.front();
        line->from_device.pop_front();
    }
    return count;
}
