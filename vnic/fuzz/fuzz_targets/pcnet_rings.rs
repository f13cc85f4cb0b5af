//! Descriptor rings of a hostile guest, given to the pcnet model.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = toll_vnic::fuzzing::pcnet_rings(input);
});
