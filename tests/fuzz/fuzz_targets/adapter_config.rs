//! `adapter_config.json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::adapter_config(bytes);
});
