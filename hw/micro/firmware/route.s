; The router: rows, scores, the best experts, their weights.

.array logits MAX_EXPERTS       ; what the choice goes by
.array scores MAX_EXPERTS       ; p in Q1.24
.array biases MAX_EXPERTS       ; Q7.24, 32 bits of them
.array slot_expert SLOTS
.array slot_weight SLOTS        ; Q7.16
.scratch phase r_at r_word r_scale r_best r_expert r_total r_chosen r_p r_share r_slot

route:  ld READS
        st c_reads
        ld SUMS
        st c_sums
        ld 0
        st r_at
        st r_word
        st r_scale
        st r_total
        ld q_blocks
        or 3<<8                 ; INT16
        st SHAPE
        ld base16
        st row_base
        ld -FIXED_MAX-1
        st r_best               ; the largest logit
.row:   ld r_word               ; the high bytes, then the low ones
        st WORD
        ld r_scale
        st SCALE
        ld HIGH
        st GO
        ld r_word
        st WORD
        ld r_scale
        st SCALE
        ld LOW|1<<8
        st GO
        ld WORD
        st r_word
        ld SCALE
        st r_scale
        call row
        st r_p
        ld ROUTER_ROWS
        add 1
        st ROUTER_ROWS
        ld r_at
        sub EXPERTS
        jz .share
        ld FLAGS
        and SIGMOID_SCORES
        jnz .sigmoid
        ld r_p
        call to_fixed
        ldx r_at
        st logits,x
        st r_p
        sub r_best
        jn .next
        ld r_p
        st r_best
        jmp .next
.sigmoid:
        ld r_p
        call sigmoid
        ldx r_at
        st scores,x
        st r_p
        ld biases,x
        and 1<<31
        jz .raise
        ld -(1<<32)
        add r_p
        st r_p
.raise: ld biases,x
        add r_p
        st logits,x
.next:  ld r_at
        add 1
        st r_at
        sub EXPERTS
        jnz .row
        ld FLAGS
        and SHARED_GATED
        jnz .row
        ld 1<<16
        jmp .scored
.share: ld r_p                  ; the base expert's gate
        call sigmoid
        shr 8
        rnd
.scored:
        st r_share

        ld FLAGS
        and SIGMOID_SCORES
        jz .softmax
        ld 1<<24
        st r_total
        jmp .choose
.softmax:
        ld 0
        st r_at
.power: ldx r_at
        ld r_best
        sub logits,x
        call exp2
        ldx r_at
        st scores,x
        add r_total
        st r_total
        ld r_at
        add 1
        st r_at
        sub EXPERTS
        jnz .power

.choose:
        ld 0
        st r_slot
        st r_chosen
.slot:  ld -(1<<40)
        st r_best
        ld 0
        st r_at
.seek:  ldx r_at
        ld r_best
        sub logits,x
        jp .worse               ; of equals the first
        ld logits,x
        st r_best
        ld r_at
        st r_expert
.worse: ld r_at
        add 1
        st r_at
        sub EXPERTS
        jnz .seek
        ldx r_expert
        ld -(1<<41)
        st logits,x
        ld scores,x
        st r_p
        add r_chosen
        st r_chosen
        ldx r_slot
        ld r_expert
        st slot_expert,x
        ld r_p
        st slot_weight,x
        ld r_slot
        add 1
        st r_slot
        sub TOP_K
        jnz .slot

        ld FLAGS
        and RENORMALISE
        jz .weigh
        ld r_chosen
        st r_total
.weigh: ld 0
        st r_slot
.weight:
        ldx r_slot
        ld slot_weight,x
        sub r_total
        jn .part
        ld 1<<17                ; all of it
        jmp .halve
.part:  ld slot_weight,x
        div r_total
        ld Q
.halve: add 1
        shr 1
        st r_p
        ldq r_p
        mul ROUTER_SCALE
        add 512
        shr 10
        st slot_weight,x
        ld r_slot
        add 1
        st r_slot
        sub TOP_K
        jnz .weight
        ld TOP_K
        st slots
        ld FLAGS
        and SHARED
        jz .done
        ldx slots
        ld MAX_EXPERTS          ; the base expert's context
        st slot_expert,x
        ld r_share
        st slot_weight,x
        ld slots
        add 1
        st slots
.done:  ret
