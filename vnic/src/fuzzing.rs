//! What a hostile guest does to an adapter, and a hostile wire to a port, read from bytes: one function a fuzz target, which
//! the tests call too. Every sequence of bytes is a sequence of accesses; a function that returns has found nothing, one
//! that panics or faults has. Built with the feature `fuzzing`, and for tests.

mod guarded;
mod input;
pub(crate) mod packet;
mod splitting;
pub(crate) mod wire;

use toll_protocol::report::FrameCounters;

pub use crate::adapter::pcnet::fuzz::{registers as pcnet_registers, rings as pcnet_rings};
pub use crate::adapter::virtio_net::fuzz::{queues as virtio_net_queues, registers as virtio_net_registers};
pub(crate) use guarded::Guarded;
pub(crate) use input::Input;
pub use splitting::splitting;

/// What a target does with bytes: what it moved, or `None` if there are too few to begin.
pub type Run = fn(&[u8]) -> Option<FrameCounters>;

/// Every target, by the name that it has in `vnic/fuzz`.
pub const TARGETS: [(&str, Run); 5] = [
    ("pcnet_registers", pcnet_registers),
    ("pcnet_rings", pcnet_rings),
    ("virtio_net_registers", virtio_net_registers),
    ("virtio_net_queues", virtio_net_queues),
    ("splitting", splitting),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// The targets, on bytes that nothing has chosen.
        #[test]
        fn no_bytes_of_the_fuzz_targets_panic(bytes in prop::collection::vec(any::<u8>(), 0..1024)) {
            for (_, run) in TARGETS {
                run(&bytes);
            }
        }
    }

    /// The inputs in `fuzz/corpus`, as cargo-fuzz would run them first.
    #[test]
    fn the_corpus_of_the_fuzz_targets_passes() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (target, run) in TARGETS {
            assert!(fuzz.join("fuzz_targets").join(target).with_extension("rs").exists(), "{target}");
            let folder = std::fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
            let files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= 4, "{files:?}");
            for file in files {
                let moved = run(&std::fs::read(&file).unwrap()).unwrap();
                // Otherwise the bytes no longer mean what their name says.
                let name = file.file_name().unwrap().to_str().unwrap();
                let [sends, receives] = ["send-", "receive-"].map(|word| name.contains(word));
                assert!(!sends || moved.transmit_frames > 0, "{file:?}: {moved:?}");
                assert!(!receives || moved.receive_frames > 0, "{file:?}: {moved:?}");
            }
        }
    }
}
