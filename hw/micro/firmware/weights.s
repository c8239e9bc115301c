; Packets of the weight stream (sw_model/packets.py): a header beat of four words, then beats of data.

.scratch phase w_kind w_start w_beats w_there w_count w_at w_value

weights:
        call words_of_head
        jz wrong_length
        and 3
        jnz wrong_length
        call words_of_head
        shr 2
        sub 1
        st w_there              ; beats that have come
        ld 0
        st FRAME_AT
        ld FRAME_WORD
        st w_kind               ; tile [15:0], kind [18:16], paged [19], expert
        ld FRAME_WORD
        st w_start
        ld FRAME_WORD
        st w_beats
        ld FRAME_WORD
        ld w_there
        jz .refuse
        ld w_beats
        jz .refuse
        sub w_there
        jz .whole
        ld STATUS               ; its length is not what it says
        or WEIGHTS_ERROR
        st STATUS
        ld w_beats
        sub w_there
        jn .whole
        ld w_there
        jmp .count
.whole: ld w_beats
.count: st w_count              ; beats to write
        ld w_kind
        and 0x8FFFF             ; not paged, tile 0
        jnz .refuse
        ld w_kind
        shr 16
        and 7
        jz .words
        sub SCALES
        jz .scales
        sub CONTEXTS-SCALES
        jz .contexts
        sub BIASES-CONTEXTS
        jz .biases
.refuse:
        ld STATUS
        or WEIGHTS_ERROR
        st STATUS
        ld 2
        st LAMPS
        jmp done

.words: ld w_start
        add w_beats
        sub WORDS+1
        jp .refuse
        ld w_start
        shl 1
        st MEMORY_AT
        ld w_count
        add WORDS_LOADED
        st WORDS_LOADED
.word:  call pair
        st MEMORY
        call pair
        st MEMORY
        ld w_count
        sub 1
        st w_count
        jnz .word
        jmp done

.scales:
        ld w_beats
        shl 2
        add w_start
        sub SCALE_ENTRIES+1
        jp .refuse
        ld w_start
        and 3
        jnz .refuse
        ld w_start
        shr 1
        add FIRST_SCALE
        st MEMORY_AT
        ld w_count
        shl 2
        add SCALES_LOADED
        st SCALES_LOADED
        jmp .word

.contexts:
        ld w_start
        add w_beats
        sub MAX_EXPERTS+2
        jp .refuse
        ld w_start
        shl 1
        st w_at
.context:
        call pair
        ldx w_at
        st contexts,x
        call pair
        inx
        st contexts,x
        ld w_at
        add 2
        st w_at
        ld w_count
        sub 1
        st w_count
        jnz .context
        jmp done

.biases:
        ld w_beats
        shl 2
        add w_start
        sub MAX_EXPERTS+4
        jp .refuse
        ld w_start
        st w_at
        ld w_count
        shl 2
        st w_count
.bias:  ldx w_at
        ld FRAME_WORD
        st w_value
        ld w_at
        sub MAX_EXPERTS
        jp done                 ; they only fill the beat up
        ld w_value
        st biases,x
        ld w_at
        add 1
        st w_at
        ld w_count
        sub 1
        st w_count
        jnz .bias
        jmp done

; Two words of the frame, the first one low.
pair:   ld FRAME_WORD
        st w_value
        ld FRAME_WORD
        shl 32
        or w_value
        ret
