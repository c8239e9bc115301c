// Drives one Verilated accelerator: AXI4-Lite, two input streams, one output stream, all at the same time; and
// answers its requests for pages, as a DMA engine with a memory behind it would.
//
// A Core holds the model and its own simulation context, so that many live side by side. Python hands over
// buffers and asks to advance; every clock cycle is run here. All functions return 0 or one of the codes below.

#include <cstdint>
#include <cstdio>
#include <deque>
#include <vector>

#include "Vexpertile_top.h"
#include "random.h"
#include "verilated.h"

namespace {

enum Code : int {
    DONE = 0,
    RUNNING = 1,     // the cycles asked for are over, the streams are not
    HUNG = 2,        // no handshake on any port for `watchdog` cycles
    BAD_LAST = 3,    // m_axis_y_tlast early or late
    UNSTABLE = 4,    // m_axis_y changed or withdrew a beat that was not yet taken
    UNEXPECTED = 5,  // an output beat that belongs to no token
    NO_PAGE = 6,     // a request for a page that the memory does not hold
};

// Decides, cycle by cycle, whether a channel pauses. One pause in 16 is long, to fill and drain whole buffers.
struct Stall {
    uint32_t left = 0;
    bool now(Random& random, uint32_t threshold) {
        if (!threshold) return false;
        if (left) return --left, true;
        if (random.next() >= threshold) return false;
        const uint32_t r = random.next();
        if (!(r & 15)) left = (r >> 4) & 63;
        return true;
    }
};

struct Source {
    const uint32_t* data = nullptr;
    const uint8_t* last = nullptr;
    uint64_t beats = 0, sent = 0;
    bool valid = false;
    Stall stall;
    bool done() const { return sent == beats; }
    // A beat that is offered stays offered until it is taken.
    void drive(Random& random, uint32_t threshold) {
        if (!valid && !done()) valid = !stall.now(random, threshold);
    }
    bool sample(bool ready) {
        const bool moved = valid && ready;
        sent += moved;
        valid &= !moved;
        return moved;
    }
    void drop() { data = nullptr; beats = sent = 0; valid = false; }
};

struct Sink {
    uint32_t* data = nullptr;
    uint64_t beats = 0, got = 0, token = 1;
    bool held = false;
    uint32_t held_data = 0;
    bool held_last = false;
    Stall stall;
    bool done() const { return got == beats; }
    void drop() { data = nullptr; beats = got = 0; held = false; }
};

// One AXI4-Lite channel that the host drives: pending until the device takes it.
struct Offer {
    bool pending = false, valid = false;
    Stall stall;
    void drive(Random& random, uint32_t threshold) {
        if (pending && !valid) valid = !stall.now(random, threshold);
    }
    bool sample(bool ready) {
        const bool moved = valid && ready;
        if (moved) pending = valid = false;
        return moved;
    }
};

// Pages in a memory: page i is the beats from first[i] to first[i + 1]. A request is answered `latency` cycles
// after it was taken, in order, with a beat every `interval` cycles (in units of 2^-16) at most.
struct Pager {
    const uint32_t* data = nullptr;
    const uint8_t* last = nullptr;
    const uint64_t* first = nullptr;
    uint64_t pages = 0, latency = 0, interval = 1 << 16;
    struct Request {
        uint32_t page;
        uint64_t due;
    };
    std::deque<Request> waiting;
    std::vector<uint32_t> log;  // every request taken, oldest first
    Source stream;              // the page that is on its way
    uint64_t next_beat = 0;     // time of it, in units of 2^-16 cycles
    Stall stall;
    bool busy() const { return !waiting.empty() || !stream.done(); }
    void drive(Random& random, uint32_t threshold, uint64_t cycle) {
        if (stream.done() && !waiting.empty() && cycle >= waiting.front().due) {
            const uint32_t page = waiting.front().page;
            waiting.pop_front();
            stream.drop();
            stream.data = data + 4 * first[page];
            stream.last = last + first[page];
            stream.beats = first[page + 1] - first[page];
        }
        const uint64_t now = cycle << 16;
        if (stream.valid || stream.done() || now < next_beat) return;
        stream.drive(random, threshold);
        if (stream.valid) next_beat = (now > next_beat + interval ? now : next_beat) + interval;
    }
    void drop() {
        waiting.clear();
        stream.drop();
    }
};

struct Core {
    VerilatedContext context;
    Vexpertile_top top;
    Random random;
    uint32_t threshold;
    uint64_t watchdog;
    uint64_t cycle = 0, idle = 0;
    Source x, w;
    const uint16_t* user = nullptr;  // TUSER of every token beat
    Sink y;
    Pager pager;
    bool page_held = false, page_turn = false;  // a request not yet taken; the weight stream is the pager's
    uint32_t page_data = 0;
    Offer aw, wd, ar;
    Stall b_stall, r_stall;
    bool want_b = false, want_r = false;
    uint32_t bresp = 0, rdata = 0, rresp = 0;

    Core(uint64_t seed, uint32_t threshold, uint64_t watchdog)
        : top((context.randReset(2), context.randSeed(int(seed & 0x7FFFFFFF) | 1), &context)),
          random{seed},
          threshold(threshold),
          watchdog(watchdog) {
        top.s_axil_awprot = top.s_axil_arprot = 0;
        top.s_axil_awaddr = top.s_axil_araddr = 0;
        top.s_axil_wdata = top.s_axil_wstrb = 0;
        reset(8);
    }
    ~Core() { top.final(); }

    void clock() {
        top.aclk = 1;
        top.eval();
        top.aclk = 0;
#ifdef ARRAY_CLOCK  // of its own, so many times as fast
        for (int i = 0; i < ARRAY_CLOCK; ++i) {
            top.array_clk = 1;
            top.eval();
            top.array_clk = 0;
            top.eval();
        }
#endif
        ++cycle;
        ++idle;
    }

    void reset(uint64_t cycles) {
        x.drop();
        w.drop();
        y.drop();
        pager.drop();
        page_held = page_turn = false;
        aw = wd = ar = Offer();
        want_b = want_r = false;
        top.aclk = 0;
        top.aresetn = 0;
        top.s_axis_x_tvalid = top.s_axis_w_tvalid = top.m_axis_y_tready = top.m_axis_page_tready = 0;
        top.s_axis_x_tdata = top.s_axis_x_tuser = 0;
        top.s_axis_x_tlast = top.s_axis_w_tlast = 0;
        for (int i = 0; i < 4; ++i) top.s_axis_w_tdata[i] = 0;
        top.s_axil_awvalid = top.s_axil_wvalid = top.s_axil_arvalid = 0;
        top.s_axil_bready = top.s_axil_rready = 0;
        for (uint64_t i = 0; i < cycles; ++i) {
            top.eval();
            clock();
        }
        top.aresetn = 1;
        idle = 0;
    }

    // What the host presents during the coming cycle.
    void drive() {
        x.drive(random, threshold);
        top.s_axis_x_tvalid = x.valid;
        if (x.valid) {
            top.s_axis_x_tdata = x.data[x.sent];
            top.s_axis_x_tlast = x.last[x.sent];
            top.s_axis_x_tuser = user[x.sent];
        }
        const bool inside = pager.stream.valid || (pager.stream.sent && !pager.stream.done());
        page_turn = inside || w.done();  // packets of the two do not mix
        if (page_turn) {
            pager.drive(random, threshold, cycle);
        } else {
            w.drive(random, threshold);
        }
        const Source& weights = page_turn ? pager.stream : w;
        top.s_axis_w_tvalid = weights.valid;
        if (weights.valid) {
            for (int i = 0; i < 4; ++i) top.s_axis_w_tdata[i] = weights.data[4 * weights.sent + i];
            top.s_axis_w_tlast = weights.last[weights.sent];
        }
        top.m_axis_page_tready = pager.pages && !pager.stall.now(random, threshold);
        top.m_axis_y_tready = !y.done() && !y.stall.now(random, threshold);
        aw.drive(random, threshold);
        wd.drive(random, threshold);
        ar.drive(random, threshold);
        top.s_axil_awvalid = aw.valid;
        top.s_axil_wvalid = wd.valid;
        top.s_axil_arvalid = ar.valid;
        top.s_axil_bready = want_b && !b_stall.now(random, threshold);
        top.s_axil_rready = want_r && !r_stall.now(random, threshold);
    }

    int sample_y() {
        const bool valid = top.m_axis_y_tvalid, last = top.m_axis_y_tlast;
        const uint32_t data = top.m_axis_y_tdata;
        if (y.held && (!valid || data != y.held_data || last != y.held_last)) return UNSTABLE;
        y.held = valid && !top.m_axis_y_tready;
        y.held_data = data;
        y.held_last = last;
        if (!valid || !top.m_axis_y_tready) return DONE;
        idle = 0;
        if (last != (y.got % y.token == y.token - 1)) return BAD_LAST;
        y.data[y.got++] = data;
        return DONE;
    }

    int sample_page() {
        const bool valid = top.m_axis_page_tvalid;
        const uint32_t data = top.m_axis_page_tdata;
        if (page_held && (!valid || data != page_data)) return UNSTABLE;
        page_held = valid && !top.m_axis_page_tready;
        page_data = data;
        if (pager.busy()) idle = 0;
        if (!valid || !top.m_axis_page_tready) return DONE;
        idle = 0;
        if ((data & 0xFFFF) >= pager.pages) return NO_PAGE;
        pager.log.push_back(data);
        pager.waiting.push_back({data & 0xFFFF, cycle + pager.latency});
        return DONE;
    }

    int tick() {
        drive();
        top.eval();
        bool moved = x.sample(top.s_axis_x_tready);
        moved |= (page_turn ? pager.stream : w).sample(top.s_axis_w_tready);
        moved |= aw.sample(top.s_axil_awready);
        moved |= wd.sample(top.s_axil_wready);
        moved |= ar.sample(top.s_axil_arready);
        if (top.s_axil_bvalid && top.s_axil_bready) {
            bresp = top.s_axil_bresp;
            want_b = false;
            moved = true;
        }
        if (top.s_axil_rvalid && top.s_axil_rready) {
            rdata = top.s_axil_rdata;
            rresp = top.s_axil_rresp;
            want_r = false;
            moved = true;
        }
        if (moved) idle = 0;
        int code = sample_y();
        if (!code) code = sample_page();
        clock();
        if (code) return code;
        return idle > watchdog ? HUNG : DONE;
    }
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// stall: probability in units of 2^-32.
API Core* expertile_create(uint64_t seed, uint32_t stall, uint64_t watchdog) {
    return new Core(seed, stall, watchdog);
}

API void expertile_destroy(Core* core) { delete core; }

API void expertile_reset(Core* core, uint64_t cycles) { core->reset(cycles); }

API uint64_t expertile_cycle(const Core* core) { return core->cycle; }

API int expertile_write(Core* core, uint32_t address, uint32_t value, uint32_t strobe, uint32_t* response) {
    core->top.s_axil_awaddr = address;
    core->top.s_axil_wdata = value;
    core->top.s_axil_wstrb = strobe;
    core->aw.pending = core->wd.pending = core->want_b = true;
    core->idle = 0;
    while (core->want_b)
        if (const int code = core->tick()) return code;
    *response = core->bresp;
    return DONE;
}

API int expertile_read(Core* core, uint32_t address, uint32_t* value, uint32_t* response) {
    core->top.s_axil_araddr = address;
    core->ar.pending = core->want_r = true;
    core->idle = 0;
    while (core->want_r)
        if (const int code = core->tick()) return code;
    *value = core->rdata;
    *response = core->rresp;
    return DONE;
}

// The buffers of the next three belong to the caller, who keeps them until the stream is done or reset.
API void expertile_send_weights(Core* core, const uint32_t* data, const uint8_t* last, uint64_t beats) {
    core->w.drop();
    core->w.data = data;
    core->w.last = last;
    core->w.beats = beats;
    core->idle = 0;
}

API void expertile_send_tokens(Core* core, const uint32_t* data, const uint8_t* last, const uint16_t* user,
                               uint64_t beats) {
    core->x.drop();
    core->user = user;
    core->x.data = data;
    core->x.last = last;
    core->x.beats = beats;
    core->idle = 0;
}

API int expertile_take_tokens(Core* core, uint32_t* data, uint64_t token, uint64_t beats) {
    if (core->top.m_axis_y_tvalid) return UNEXPECTED;
    core->y.drop();
    core->y.data = data;
    core->y.token = token;
    core->y.beats = beats;
    core->idle = 0;
    return DONE;
}

// Until all streams are done, or for at most `cycles`.
API int expertile_advance(Core* core, uint64_t cycles) {
    for (; cycles; --cycles) {
        if (core->x.done() && core->w.done() && core->y.done()) return DONE;
        if (const int code = core->tick()) return code;
    }
    return core->x.done() && core->w.done() && core->y.done() ? DONE : RUNNING;
}

// Pages that requests are answered from: page i is beats first[i] to first[i + 1]. The buffers belong to the
// caller, who keeps them as long as the core or until the next call. Requests on record are forgotten.
API void expertile_serve_pages(Core* core, const uint32_t* data, const uint8_t* last, const uint64_t* first,
                               uint64_t pages, uint64_t latency, uint64_t interval) {
    core->pager = Pager();
    core->pager.data = data;
    core->pager.last = last;
    core->pager.first = first;
    core->pager.pages = pages;
    core->pager.latency = latency;
    core->pager.interval = interval;
}

// Requests since the last call of serve_pages, from number `from` on; returns how many there are in all.
API uint64_t expertile_page_requests(const Core* core, uint64_t from, uint32_t* data, uint64_t room) {
    const auto& log = core->pager.log;
    for (uint64_t i = from; i < log.size() && i < from + room; ++i) data[i - from] = log[i];
    return log.size();
}

// Idle clock cycles.
API int expertile_wait(Core* core, uint64_t cycles) {
    for (; cycles; --cycles) {
        core->idle = 0;
        if (const int code = core->tick()) return code;
    }
    return DONE;
}

// beats sent and taken: x, w, y
API void expertile_progress(const Core* core, uint64_t* counts) {
    counts[0] = core->x.sent;
    counts[1] = core->w.sent;
    counts[2] = core->y.got;
}
