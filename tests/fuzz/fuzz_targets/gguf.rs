//! A GGUF file, as far as its configuration and tokenizer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::gguf(bytes);
});
