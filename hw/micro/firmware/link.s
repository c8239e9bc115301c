; The link: commands of hw/host/frames.py, one after the other; tokens are computed between them.

.word ID ID_VALUE
.word VERSION VERSION_VALUE
.word CONFIG_HASH HASH_VALUE
.word IMAGE 0
.word FEATURES 0
.word NOTHING 0                 ; what counters read that have nothing to count here
.var CONTROL STATUS
.var HIDDEN INTERMEDIATE SHARED_INTERMEDIATE EXPERTS TOP_K GROUPS TOP_GROUPS ROUTER_SCALE FLAGS DOWN_BASE ROUTER_SPLIT
.var CYCLES_COUNTED BUSY_CYCLES ACTIVE_CYCLES TOKENS EXPERTS_USED WORD_READS ROUTED_CYCLES ROUTED_READS
.var WORDS_LOADED SCALES_LOADED BLOCK_SUMS ROUTED_SUMS ACT_WRITES ROUTER_ROWS ACTIVATIONS COMBINE_ROWS COUNTER_HIGH
.var since began                ; CYCLES when the counters were cleared, and when the token was begun
.var head answered last_tag answer_head answer_word of_result
.var token_full result_full token_words l_at l_value l_entry l_place

wake:   ld 0                    ; after a reset the memory is what it was
        st answered
        st CONTROL
        st token_full
        st result_full
        st of_result
        st LAMPS
main:   call compute_if_can
        ld FRAME
        st head
        and 0xFF
        sub RESET
        jz reset
        ld answered             ; a tag that came last has been carried out
        jz .new
        ld head
        shr 8
        and 0xFF
        sub last_tag
        jnz .new
        ld 0
        st FRAME_TAKE
        jmp send
.new:   ld answered
        jz .kept
        ld of_result            ; the result was heard of: there is room for the next
        jz .kept
        ld 0
        st result_full
        st of_result
        call compute_if_can
.kept:  ld head
        shr 32                  ; its payload is all there
        jz wrong_length
        ld head
        and 0xFF
        sub READ
        jz read
        sub WRITE-READ
        jz write
        sub WEIGHTS-WRITE
        jz weights
        sub TOKEN-WEIGHTS
        jz token
        sub FETCH-TOKEN
        jz fetch
        ld UNKNOWN_KIND
        jmp refuse

; Refuses the command, for the reason in A.
wrong_length:
        ld WRONG_LENGTH
        jmp refuse
bus_error:
        ld BUS_ERROR
refuse: st answer_word
        ld 2
        st LAMPS
        ld 1<<16|REFUSED
        jmp answer

; The command is carried out: answers DONE, with the word in A, or with none.
done_word:
        st answer_word
        ld 1<<16|DONE
        jmp answer
done:   ld DONE
; Answers with the header in A, its tag missing.
answer: st answer_head
        ld head
        shr 8
        and 0xFF
        st last_tag
        shl 8
        or answer_head
        st answer_head
        ld 1
        st answered
        ld 0
        st FRAME_TAKE
send:   ld answer_head
        st ANSWER
        shr 16
        jz main
        st l_value              ; words to go
        ld of_result
        jnz .result
        ld answer_word
        st ANSWER_WORD
        jmp main
.result:
        ld 0                    ; two elements a word
        st l_at
.pair:  ldx l_at
        ld results,x
        st ANSWER_WORD
        ld l_value
        sub 1
        jz main
        ld results,x
        shr 32
        st ANSWER_WORD
        ld l_at
        add 1
        st l_at
        ld l_value
        sub 2
        st l_value
        jnz .pair
        jmp main

words_of_head:
        ld head
        shr 16
        and 0xFFFF
        ret

; The core as it wakes up, but for its weights.
reset:  call words_of_head
        jnz wrong_length
        ld 0
        st CONTROL
        st STATUS
        st token_full
        st result_full
        st of_result
        ld 0
        st l_at
.zero:  ldx l_at
        ld 0
        st HIDDEN,x
        ld l_at
        add 1
        st l_at
        sub CYCLES_COUNTED-HIDDEN
        jnz .zero
        call clear_counters
        ld CAPACITY
        jmp done_word

clear_counters:
        ld 0
        st l_at
.zero:  ldx l_at
        ld 0
        st CYCLES_COUNTED,x
        ld l_at
        add 1
        st l_at
        sub COUNTER_HIGH-CYCLES_COUNTED+1
        jnz .zero
        ld CYCLES
        st since
        ld STATUS
        and 1
        st STATUS
        ret

; Finds the register at the offset in A: l_entry, l_place; A is 0 if there is none.
find:   shr 2
        st l_at
        shr 7
        jnz .none
        ld l_at
        add REGISTER_MAP
        st TABLE_AT
        ld TABLE
        st l_entry
        and 511
        st l_place
        ld l_entry
        ret
.none:  ld 0
        ret

read:   call words_of_head
        sub 1
        jnz wrong_length
        st FRAME_AT
        ld FRAME_WORD
        call find
        jz bus_error
        call refresh
        ldx l_place
        ld memory,x
        st l_value
        ld l_at                 ; counters: the high word stays to be read
        sub FIRST_COUNTER
        jn .plain
        sub COUNTERS
        jp .plain
        ld l_value
        shr 32
        and 0xFFFF
        st COUNTER_HIGH
.plain: ld l_value
        jmp done_word

; Brings registers up to date that the processor does not write as things happen.
refresh:
        ld CONTROL
        and HOLD
        jnz .held
        call count_cycles
.held:  ld STATUS
        and ERRORS
        or token_full
        or result_full
        st STATUS
        ld CONTROL
        and HOLD
        or STATUS
        st STATUS
        ret

count_cycles:
        ld CYCLES
        sub since
        and (1<<48)-1
        st CYCLES_COUNTED
        ret

write:  call words_of_head
        sub 2
        jnz wrong_length
        st FRAME_AT
        ld FRAME_WORD
        call find
        jz bus_error
        and 1<<30               ; read only
        jz bus_error
        ld 64
        st l_value
        ld l_entry
        shr 16
        and 63
        st l_entry
        ld l_value
        sub l_entry
        st l_entry
        ld FRAME_WORD
        shl l_entry             ; the bits that the register has
        shr l_entry
        st l_value
        ld l_at
        sub CONTROL_AT
        jz .control
        sub FLAGS_AT-CONTROL_AT
        jz .flags
        ldx l_place
        ld l_value
        st memory,x
        jmp done
.flags: ld l_value
        and FLAGS_THERE
        st FLAGS
        jmp done
.control:
        ld l_value
        and CLEAR
        jz .stays
        call clear_counters
.stays: call count_cycles
        ld l_value
        and ENABLE|HOLD
        st CONTROL
        jmp done

; A token moves to where the last one's h was, and waits there until the result has been heard of.
token:  ld token_full
        jz .room
        ld BUSY
        jmp refuse
.room:  call words_of_head
        sub 1
        st token_words
        jz wrong_length
        jn wrong_length
        ld 1
        st FRAME_AT             ; behind its TUSER
        ld 0
        st l_at
.copy:  ldx l_at
        ld FRAME_WORD
        st elements,x
        ld l_at
        add 1
        st l_at
        sub token_words
        jnz .copy
        ld 1
        st token_full
        jmp done

fetch:  call words_of_head
        jnz wrong_length
        ld result_full
        jz done
        ld 1
        st of_result
        ld HIDDEN
        shl 16
        or RESULT
        jmp answer

; A token that waits is computed, if there is room for its result.
compute_if_can:
        ld token_full
        jz .no
        ld result_full
        jnz .no
        ld CONTROL
        and ENABLE
        jz .no
        ld 0
        st token_full
        ld token_words
        sub HIDDEN
        jnz .length
        ld 1
        st LAMPS
        ld CYCLES
        st began
        call quantise_token
        call route
        call experts
        call combine
        ld CYCLES
        sub began
        add BUSY_CYCLES
        st BUSY_CYCLES
        ld 0
        st LAMPS
        ld TOKENS
        add 1
        st TOKENS
        ld 1
        st result_full
.no:    ret
.length:
        ld STATUS
        or LENGTH_ERROR
        st STATUS
        ret
