//! Frames of a hostile wire to a port that cuts up what was joined.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = toll_vnic::fuzzing::splitting(input);
});
