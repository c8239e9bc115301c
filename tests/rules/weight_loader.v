// WeightLoader takes every beat within some cycles, knows where packets begin, flags those of a wrong length, and
// writes nothing but data beats.
module rules (
    input clk, rst, i__valid, located,
    input [128:0] i__payload,
    input [LOCATION-1:0] location,
    input [23:0] page_words, page_scales
);
  parameter LOCATION = 1;
  localparam HEADER = 0, SIZE = 1, JUDGE = 2, LOCATE = 3, DATA = 4, DROP = 5;
  wire i__ready, error, locate, page_done, alone;
  wire [6:0] enables;
  wire [2:0] state;
  wire [1:0] entry;
  wire [31:0] left;
  weight_loader dut (
      .clk(clk), .rst(rst), .i__valid(i__valid), .i__payload(i__payload), .i__ready(i__ready), .located(located),
      .location(location), .page_words(page_words), .page_scales(page_scales), .error(error), .locate(locate),
      .page_done(page_done), .words_en(enables[0]), .scales_en(enables[1]), .contexts_en(enables[2]),
      .biases_en(enables[3]), .costs_en(enables[4]), .domains_en(enables[5]), .resident_en(enables[6]),
      .fsm_state(state), .left(left), .alone(alone), .entry(entry));

  wire taken = i__valid & i__ready, last = i__payload[128];
  reg inside = 0, flagged = 0, data_before = 0, was_reset = 1;
  reg [3:0] stalled = 0;
  reg [1:0] late = 0;  // cycles that a page's slot has been looked for
  reg [31:0] beats = 0, n = 0;  // of this packet: data beats by its header, data beats taken
  always @(posedge clk) begin
    was_reset <= rst;
    inside <= ~rst & (taken ? ~last : inside);
    stalled <= rst | ~i__valid | i__ready ? 0 : stalled + 1;
    late <= rst ? 0 : locate ? 1 : located ? 0 : late + (late != 0);
    data_before <= ~rst & i__valid & state == DATA;
    if (taken & state == HEADER) begin
      beats <= i__payload[95:64];
      n <= 0;
      flagged <= 0;
    end else begin
      n <= n + taken;
      flagged <= flagged | error;
    end
  end
  always @* begin
    assume (late != 3 || located);  // the pager answers

    // No beat waits for ever.
    assert (stalled <= (state == SIZE ? 0 : state == LOCATE ? late : state == DATA ? 5 + entry : 5));
    assert (state != LOCATE || late != 0);
    assert (state <= DROP && (was_reset <= !inside));
    assert (!taken || (state == HEADER) == !inside);  // a packet's first beat is its header, no other is
    assert (state == HEADER ? !inside : state >= DATA ? inside : inside == !alone && n == 0 && !flagged);
    assert ((state != SIZE && state != JUDGE && state != LOCATE && state != DATA) || left == beats - n);
    assert (state != DROP || flagged);
    assert (!(taken & last & inside) || flagged || error || n + 1 == beats);  // wrong lengths are flagged
    assert (!(taken & last & state == DATA) || !error || n + 1 != beats);  // and right ones are not
    assert ((enables & (enables - 7'd1)) == 0 && (enables == 0 || data_before));
    assert (!page_done || state == JUDGE && alone && !error);
  end
endmodule
