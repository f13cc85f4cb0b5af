//! Guests that do whatever they like.

use proptest::prelude::*;

use crate::adapter::virtio_net::fuzz::{self, Step};

fn place() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0x4000_u64..0xe000, 1 => 0_u64..0x1_1000, 1 => 0x3_ff00_u64..0x4_4100, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![4 => 0_u32..3000, 1 => any::<u32>()];
    let describe = (any::<u8>(), any::<u8>(), place(), length, 0_u16..8, 0_u16..18).prop_map(
        |(queue, index, address, length, flags, next)| {
            // A buffer of the queue's direction, more often than not.
            let flags = if flags < 4 { u16::from(queue % 7 % 2 == 0) << 1 } else { flags };
            Step::Describe { queue, index, address, length, flags, next }
        },
    );
    let register = prop_oneof![Just(0x30_u16), Just(0x44), Just(0x50), Just(0x64), Just(0x70), Just(0x80)];
    prop_oneof![
        1 => (0_u16..0x210, 0_u8..9).prop_map(|(offset, width)| Step::Read(offset, width)),
        1 => (0_u16..0x210, 0_u8..9, any::<u32>()).prop_map(|(at, width, value)| Step::Write(at, width, value)),
        1 => (register, 0_u32..16).prop_map(|(offset, value)| Step::Write(offset, 4, value)),
        1 => (place(), any::<u32>()).prop_map(|(at, value)| Step::Store(at as u32, value)),
        1 => (0x1000_u32..0x2c00, any::<u32>()).prop_map(|(at, value)| Step::Store(at, value)),
        6 => describe,
        6 => (any::<u8>(), 0_u16..10).prop_map(|(queue, head)| Step::Give(queue, head)),
        2 => any::<u8>().prop_map(Step::Notify),
        3 => (0_u8..2, any::<u8>(), prop_oneof![Just(0x10_u8), Just(0x18), any::<u8>()], 0_u16..1700)
            .prop_map(|(pair, number, flags, payload)| Step::Segment(pair, number, flags, payload)),
        1 => (0_u8..8, 0_u8..8, prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(class, command, about)| Step::Command(class, command, about)),
        3 => (any::<u8>(), any::<u8>(), any::<u8>(), 0_u16..3000, any::<[u8; 3]>())
            .prop_map(|(pair, count, kind, length, header)| Step::Arrive { pair, count, kind, length, header }),
        4 => Just(Step::Service),
        1 => any::<bool>().prop_map(Step::Watch),
        1 => (any::<u8>(), place(), any::<u32>())
            .prop_map(|(pair, at, value)| Step::StoreMidway(pair, at as u32, value)),
        1 => prop_oneof![Just(0_u32), any::<u32>()].prop_map(Step::Live),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever a guest does, the device neither panics nor hangs, writes to nothing but used rings and the buffers that it
    /// was given, and says truly what it wrote.
    #[test]
    fn no_sequence_of_accesses_harms(bits in any::<u8>(), steps in prop::collection::vec(step(), 1..200)) {
        fuzz::steps(bits, &steps);
    }
}
