//! What a hostile guest may do: every address and length is its own.

use proptest::prelude::*;

use super::*;

#[test]
fn addresses_outside_of_guest_memory_fail_the_guest() {
    let fails = |prepare: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new();
        bench.open(0, 2, 2);
        prepare(&mut bench);
        bench.write16(0x12, 0);
        let error = bench.chip.write(0x10, &csr0::TDMD.to_le_bytes()).and_then(|()| bench.chip.service());
        assert!(matches!(error, Err(AdapterError::Guest { adapter: "pcnet", .. })), "{error:?}");
        assert_eq!(bench.chip.counters().guest_errors, 1);
    };
    let end = MEMORY as u64;
    fails(&|b| b.descriptor(TX_RING, 0, end - 50, 100, status::OWN | status::STP | status::ENP));
    fails(&|b| b.descriptor(TX_RING, 0, u64::from(u32::MAX), 100, status::OWN | status::STP | status::ENP));
    fails(&|b| b.descriptor(RX_RING, 0, end, 1544, status::OWN));
    fails(&|b| (0..4).for_each(|i| b.descriptor(TX_RING, i, BUFFERS, 1, status::OWN | status::STP)));
    fails(&|b| {
        b.set_csr(0, csr0::STOP);
        b.set_csr(31, 0xffff);
        // Otherwise the chip looks at its ring as soon as it runs.
        b.set_csr(4, 0x0915 | csr4::DPOLL);
        b.set_csr(0, csr0::STRT);
    });
    let mut bench = Bench::new();
    bench.set_csr(2, 0xffff);
    bench.write16(0x12, 0);
    assert!(matches!(bench.chip.write(0x10, &[1, 0]), Err(AdapterError::Guest { what: "init block", .. })));
}

/// One step of a hostile guest.
#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    Write(u64, u32, usize),
    Csr(u16, u16),
    Bcr(u16, u16),
    Memory(u64, u32),
    Arrives(usize, bool),
    Service,
}

fn step() -> impl Strategy<Value = Step> {
    let width = prop_oneof![Just(1_usize), Just(2), Just(4), 0_usize..9];
    prop_oneof![
        (0_u64..0x28, width.clone()).prop_map(|(offset, width)| Step::Read(offset, width)),
        (0_u64..0x28, any::<u32>(), width)
            .prop_map(|(offset, value, width)| Step::Write(offset, value, width)),
        (prop_oneof![Just(0_u16), 0_u16..128], any::<u16>())
            .prop_map(|(index, value)| Step::Csr(index, value)),
        (0_u16..32, any::<u16>()).prop_map(|(index, value)| Step::Bcr(index, value)),
        Just(Step::Csr(0, csr0::INIT | csr0::STRT | csr0::IENA)),
        Just(Step::Csr(0, csr0::TDMD | csr0::IENA)),
        Just(Step::Csr(0, csr0::STOP)),
        // Ring contents: anywhere near the rings, with OWN likely.
        (0_u64..0x100, any::<u32>()).prop_map(|(word, value)| Step::Memory(RX_RING + 4 * word, value)),
        (0_u64..0x100, any::<u32>()).prop_map(|(word, value)| Step::Memory(TX_RING + 4 * word, value)),
        (0_u64..7, any::<u32>()).prop_map(|(word, value)| Step::Memory(INIT + 4 * word, value)),
        (0_u64..64, 0_u32..0x50000, any::<u16>(), 0_u32..16).prop_map(|(i, _, length, bits)| {
            Step::Memory(TX_RING + 16 * i + 4, (0x8000 | bits << 8) << 16 | u32::from(length))
        }),
        (0_usize..2000, any::<bool>()).prop_map(|(length, own)| Step::Arrives(length, own)),
        Just(Step::Service),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever a guest does, the model neither panics nor hangs, and nothing but its own memory is touched: the
    /// mapping ends at `MEMORY`, and an access past it is a fault of this process.
    #[test]
    fn no_sequence_of_accesses_panics(mode in 0_u16..16, steps in prop::collection::vec(step(), 1..200)) {
        let mut bench = Bench::new();
        bench.open(mode | csr15::PROM, 4, 4);
        for step in steps {
            let result = match step {
                Step::Read(offset, width) => bench.chip.read(offset, &mut vec![0; width]),
                Step::Write(offset, value, width) => {
                    bench.chip.write(offset, &u64::from(value).to_le_bytes()[..width.min(8)])
                }
                Step::Csr(index, value) => {
                    let _ = bench.chip.write(0x12, &index.to_le_bytes());
                    bench.chip.write(0x10, &value.to_le_bytes())
                }
                Step::Bcr(index, value) => {
                    let _ = bench.chip.write(0x12, &index.to_le_bytes());
                    bench.chip.write(0x16, &value.to_le_bytes())
                }
                Step::Memory(at, value) => {
                    bench.put32(at, value);
                    Ok(())
                }
                Step::Arrives(length, own) => {
                    let mut bytes = vec![0x5a; length];
                    if own && length >= 6 {
                        bytes[..6].copy_from_slice(&MAC.0);
                    }
                    bench.wire.send(&[IoSlice::new(&bytes)]).unwrap();
                    Ok(())
                }
                Step::Service => bench.chip.service().map(|_| ()),
            };
            prop_assert!(!matches!(result, Err(AdapterError::Port(_))));
            bench.chip.can_receive();
            while bench.departed().is_some() {}
        }
    }
}
