//! Register accesses of a hostile guest to the virtio-net device.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = toll_vnic::fuzzing::virtio_net_registers(input);
});
