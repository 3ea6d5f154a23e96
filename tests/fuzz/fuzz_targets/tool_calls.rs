//! An answer with calls of tools, in every format and at every cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::text::fuzzing::tool_calls(bytes);
});
