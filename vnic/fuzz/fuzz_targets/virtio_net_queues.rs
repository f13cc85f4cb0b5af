//! Queues of a hostile guest, given to the virtio-net device.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = toll_vnic::fuzzing::virtio_net_queues(input);
});
