//! SentencePiece's or tiktoken's `tokenizer.model`, as far as a tokenizer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::sentence_piece(bytes);
});
