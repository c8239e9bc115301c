// A core that echoes its tokens, with faults to choose by register 0: the harness must name each of them.
//   1 hangs after the third beat   2 gives tlast on every beat   3 withdraws a beat that is not taken
//   4 changes a beat that is not taken   5 goes on after the last beat   6 never answers a read
//   7 asks for a page that there is not   8 changes a request that is not taken
module expertile_top(
  input aclk, input aresetn,
  input [11:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid, output s_axil_awready,
  input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
  output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
  input [11:0] s_axil_araddr, input [2:0] s_axil_arprot, input s_axil_arvalid, output s_axil_arready,
  output [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready,
  input [31:0] s_axis_x_tdata, input s_axis_x_tvalid, output s_axis_x_tready, input s_axis_x_tlast,
  input [15:0] s_axis_x_tuser,
  input [127:0] s_axis_w_tdata, input s_axis_w_tvalid, output s_axis_w_tready, input s_axis_w_tlast,
  output [31:0] m_axis_y_tdata, output m_axis_y_tvalid, input m_axis_y_tready, output m_axis_y_tlast,
  output [31:0] m_axis_page_tdata, output m_axis_page_tvalid, input m_axis_page_tready, output m_axis_page_tlast
);
  reg [3:0] fault;
  reg [31:0] data, taken, weights, unset;
  reg full, last, waited, asking, page_waited;

  wire take_write = s_axil_awvalid & s_axil_wvalid & ~s_axil_bvalid;
  assign s_axil_awready = take_write;
  assign s_axil_wready = take_write;
  assign s_axil_bresp = 0;
  assign s_axil_arready = ~s_axil_rvalid;
  assign s_axil_rdata = s_axil_araddr == 4 ? weights : s_axil_araddr == 8 ? unset : fault;
  assign s_axil_rresp = 0;

  // The first beat of the first token asks for page 1 in slot 2.
  assign m_axis_page_tdata = {16'd2, fault == 7 ? 16'd9 : 16'd1} ^ (fault == 8 & page_waited);
  assign m_axis_page_tvalid = asking;
  assign m_axis_page_tlast = 1;

  assign s_axis_w_tready = 1;
  assign s_axis_x_tready = (~full | m_axis_y_tready) & ~(fault == 1 & taken == 3);
  assign m_axis_y_tvalid = full & ~(fault == 3 & waited) | fault == 5 & taken == 8;
  assign m_axis_y_tdata = data ^ (fault == 4 & waited);
  assign m_axis_y_tlast = last | fault == 2;

  always @(posedge aclk) begin
    if (!aresetn) begin
      fault <= 0; taken <= 0; weights <= 0; full <= 0; waited <= 0;
      s_axil_bvalid <= 0; s_axil_rvalid <= 0; asking <= 0; page_waited <= 0;
    end else begin
      if (take_write) begin s_axil_bvalid <= 1; fault <= s_axil_wdata; end
      else if (s_axil_bready) s_axil_bvalid <= 0;
      if (s_axil_arvalid & s_axil_arready) s_axil_rvalid <= fault != 6;
      else if (s_axil_rready) s_axil_rvalid <= 0;
      if (s_axis_w_tvalid) weights <= weights + s_axis_w_tdata[31:0] + s_axis_w_tdata[127:96] + s_axis_w_tlast;
      waited <= m_axis_y_tvalid & ~m_axis_y_tready;
      if (m_axis_y_tready) full <= 0;
      page_waited <= asking & ~m_axis_page_tready;
      if (m_axis_page_tready) asking <= 0;
      if (s_axis_x_tvalid & s_axis_x_tready) begin
        full <= 1; if (taken == 0) asking <= 1; data <= s_axis_x_tdata; last <= s_axis_x_tlast; taken <= taken + 1;
      end
    end
  end
endmodule
