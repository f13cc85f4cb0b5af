//! The three optimisations around the chip, under a virtual clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use toll_protocol::trial::{PcnetSwitches, SendCombining};
use toll_protocol::units::Span;

use super::bench::*;
use crate::adapter::ClockTick;
use crate::adapter::pcnet::hosted::Hosted;
use crate::adapter::pcnet::*;
use crate::piece::Piece;

const TICK: Duration = Duration::from_millis(10);
const RDP: u64 = 0x10;
const RAP: u64 = 0x12;

/// A chip that runs, with `switches` and a clock that is set by hand; what is on the bench then is another one.
fn hosted<C: Fn() -> Duration>(bench: &mut Bench, switches: PcnetSwitches, clock: C) -> Hosted<C> {
    bench.open(0, 2, 4);
    bench.set_csr(4, 0x0915 | csr4::DPOLL);
    bench.write_rap(0);
    let chip = std::mem::replace(&mut bench.chip, Bench::new().chip);
    Hosted::new(chip, switches, clock)
}

fn combining(threshold: u32) -> PcnetSwitches {
    let combining = SendCombining { threshold, rate: 1, tick: Span::from(TICK) };
    PcnetSwitches { send_combining: Some(combining), ..PcnetSwitches::OFF }
}

/// The driver's demand, and what the VMM does after it.
fn demand(adapter: &mut dyn Adapter) -> ClockTick {
    adapter.write(RDP, &(csr0::TDMD | csr0::IENA).to_le_bytes()).unwrap();
    adapter.accessed().unwrap()
}

#[test]
fn without_switches_a_demand_is_met_within_the_write_and_nothing_was_spared() {
    let mut bench = Bench::new();
    let mut adapter = hosted(&mut bench, PcnetSwitches::OFF, || Duration::ZERO);
    assert_eq!(adapter.begin().unwrap(), None, "no clock tick is wanted");
    bench.queue(0, 60);
    assert_eq!(demand(&mut adapter), ClockTick::AsItIs);
    assert!(bench.departed().is_some());
    assert_eq!((adapter.spared(), adapter.posts(RAP, 2)), (None, false));
}

#[test]
fn sends_wait_for_the_threshold_and_for_the_clock_tick_at_most() {
    let (mut bench, now) = (Bench::new(), AtomicU64::new(0));
    let pass = |time: Duration| now.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    let clock = || Duration::from_nanos(now.load(Ordering::Relaxed));
    let mut adapter = hosted(&mut bench, combining(3), clock);
    assert_eq!(adapter.begin().unwrap(), Some(TICK / 2));
    // Exits often enough for a while.
    for _ in 0..100 {
        pass(TICK / 5);
        adapter.accessed().unwrap();
    }
    for index in 0..2 {
        bench.queue(index, 60);
        assert_eq!(demand(&mut adapter), ClockTick::On);
        assert_eq!(bench.departed(), None, "frame {index} waits");
    }
    bench.queue(2, 60);
    demand(&mut adapter);
    assert!((0..3).all(|_| bench.departed().is_some()), "with the third all are sent");
    bench.queue(3, 60);
    assert_eq!(demand(&mut adapter), ClockTick::On);
    pass(TICK / 2);
    adapter.interrupted().unwrap();
    assert!(bench.departed().is_some(), "it has waited for half of the tick, and the next one is too late");
    assert_eq!(adapter.interrupted().unwrap(), ClockTick::Off, "nothing waited for a whole one");
    assert_eq!(adapter.spared().expect("it is on").combined, [1, 0, 1, 0, 0, 0]);
}

#[test]
fn what_the_kernel_kept_is_counted_and_done() {
    let mut bench = Bench::new();
    let switches = PcnetSwitches { io_in_kernel: true, ..PcnetSwitches::OFF };
    let mut adapter = hosted(&mut bench, switches, || Duration::ZERO);
    assert!(adapter.posts(RAP, 2) && !adapter.posts(RDP, 2));
    adapter.write_posted(RAP, &[88, 0]).unwrap();
    let mut rap = [0; 2];
    adapter.read(RAP, &mut rap).unwrap();
    assert_eq!((rap, adapter.spared().expect("it is on").exits), ([88, 0], 1));
}

#[test]
fn a_look_that_shared_memory_spares_is_counted() {
    let mut bench = Bench::new();
    let switches = PcnetSwitches { irq_notification: true, ..PcnetSwitches::OFF };
    let mut adapter = hosted(&mut bench, switches, || Duration::ZERO);
    adapter.begin().unwrap();
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, rings::status::OWN);
    // The first finds the port empty.
    while adapter.spared().expect("it is on").looks == 0 {
        adapter.accessed().unwrap();
    }
    bench.wire.send(&[Piece::new(&frame(MAC.0, 60))]).unwrap();
    while adapter.counters().receive_frames == 0 {
        std::thread::yield_now();
        adapter.accessed().unwrap();
    }
}
