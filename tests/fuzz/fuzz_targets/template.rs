//! A chat template, compiled and rendered.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::text::fuzzing::template(bytes);
});
