// Bridge keeps the rules of an AXI4-Lite manager and of three AXI4-Stream transmitters: weights, tokens, and the
// bytes to the host. What it offers stands until it is taken, unless it resets the accelerator.
module rules (
    input clk, rst, rx__valid, tx__ready,
    input [7:0] rx__payload,
    input awready, wready, bvalid, arready, rvalid, x_ready, w_ready, y_valid, y_last, page_valid,
    input [1:0] bresp, rresp,
    input [31:0] rdata, y_data, page_data
);
  localparam IDLE = 0, ANSWER = 3, READ = 9, WRITE = 10, LOOK_UP = 13, WORD = 14;
  wire rx__ready, tx__valid, reset, busy, error, standing;
  wire [7:0] tx__payload;
  wire [11:0] awaddr, araddr;
  wire [31:0] wdata, x_data;
  wire [3:0] wstrb, state;
  wire awvalid, wvalid, bready, arvalid, rready, x_valid, x_last, w_valid, w_last, y_ready, page_ready;
  wire [15:0] x_user;
  wire [127:0] w_data;
  bridge dut (
      .clk(clk), .rst(rst), .rx__valid(rx__valid), .rx__payload(rx__payload), .rx__ready(rx__ready),
      .tx__valid(tx__valid), .tx__payload(tx__payload), .tx__ready(tx__ready), .reset(reset), .busy(busy),
      .error(error), .s_axil_awaddr(awaddr), .s_axil_awvalid(awvalid), .s_axil_awready(awready),
      .s_axil_wdata(wdata), .s_axil_wstrb(wstrb), .s_axil_wvalid(wvalid), .s_axil_wready(wready),
      .s_axil_bresp(bresp), .s_axil_bvalid(bvalid), .s_axil_bready(bready), .s_axil_araddr(araddr),
      .s_axil_arvalid(arvalid), .s_axil_arready(arready), .s_axil_rdata(rdata), .s_axil_rresp(rresp),
      .s_axil_rvalid(rvalid), .s_axil_rready(rready), .s_axis_x_tdata(x_data), .s_axis_x_tuser(x_user),
      .s_axis_x_tlast(x_last), .s_axis_x_tvalid(x_valid), .s_axis_x_tready(x_ready), .s_axis_w_tdata(w_data),
      .s_axis_w_tlast(w_last), .s_axis_w_tvalid(w_valid), .s_axis_w_tready(w_ready), .m_axis_y_tdata(y_data),
      .m_axis_y_tlast(y_last), .m_axis_y_tvalid(y_valid), .m_axis_y_tready(y_ready),
      .m_axis_page_tdata(page_data), .m_axis_page_tlast(1'b1), .m_axis_page_tvalid(page_valid),
      .m_axis_page_tready(page_ready), .fsm_state(state), .\receiver.valid (standing));

  reg was_reset = 1, aw_held = 0, w_held = 0, ar_held = 0, x_held = 0, weights_held = 0, tx_held = 0;
  reg [11:0] aw_before = 0, ar_before = 0;
  reg [31:0] w_before = 0;
  reg [48:0] x_before = 0;
  reg [128:0] weights_before = 0;
  reg [7:0] tx_before = 0;
  reg aw_done = 0, w_done = 0, ar_done = 0;  // taken, and not yet answered
  always @(posedge clk) begin
    was_reset <= rst;
    aw_held <= ~rst & awvalid & ~awready;
    w_held <= ~rst & wvalid & ~wready;
    ar_held <= ~rst & arvalid & ~arready;
    x_held <= ~rst & ~reset & x_valid & ~x_ready;
    weights_held <= ~rst & w_valid & ~w_ready;
    tx_held <= ~rst & tx__valid & ~tx__ready;
    aw_before <= awaddr;
    w_before <= wdata;
    ar_before <= araddr;
    x_before <= {x_last, x_user, x_data};
    weights_before <= {w_last, w_data};
    tx_before <= tx__payload;
    aw_done <= ~rst & ~(bvalid & bready) & (aw_done | awvalid & awready);
    w_done <= ~rst & ~(bvalid & bready) & (w_done | wvalid & wready);
    ar_done <= ~rst & ~(rvalid & rready) & (ar_done | arvalid & arready);
  end
  always @* begin
    assume (!bvalid || aw_done && w_done);  // the register file answers what it was asked
    assume (!rvalid || ar_done);

    assert (!was_reset || !awvalid && !wvalid && !arvalid && !x_valid && !w_valid && !tx__valid);
    assert (!aw_held || awvalid && awaddr == aw_before);
    assert (!w_held || wvalid && wdata == w_before);
    assert (!ar_held || arvalid && araddr == ar_before);
    assert (!x_held || x_valid && {x_last, x_user, x_data} == x_before);
    assert (!weights_held || w_valid && {w_last, w_data} == weights_before);
    assert (!tx_held || tx__valid && tx__payload == tx_before);
    // One access at a time, none without a command, and its answer is waited for.
    assert (!(awvalid & aw_done) && !(wvalid & w_done) && !(arvalid & ar_done));
    assert ((state == WRITE) == (awvalid | aw_done) && (state == WRITE) == (wvalid | w_done));
    assert ((state == READ) == (arvalid | ar_done));
    assert (bready == (state == WRITE) && rready == (state == READ) && wstrb == 15);
    // While a command is carried out its frame stands.
    assert (state <= WORD && (state == IDLE || state == ANSWER || state >= LOOK_UP || standing));
  end
endmodule
