//! What it costs to note the ways of frames (`toll_vnic::stages`): nanoseconds a frame, best of some rounds, beside the two
//! readings of the system's clock for each call of a port that were there before. Prints; nothing is asserted.
//!   cargo run --release -p toll-vnic --example stages

use std::hint::black_box;
use std::time::{Duration, Instant};

use toll_vnic::stages::{Stages, ticks};

const FRAMES: u64 = 1_000_000;
const ROUNDS: u32 = 7;

/// Nanoseconds a frame of `work`.
fn measured(mut work: impl FnMut(u64)) -> f64 {
    let round = |work: &mut dyn FnMut(u64)| {
        let began = Instant::now();
        (1..=FRAMES).for_each(|frame| work(black_box(frame)));
        began.elapsed().as_nanos() as f64 / FRAMES as f64
    };
    (0..ROUNDS).map(|_| round(&mut work)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut spent = Duration::ZERO;
    let clock = measured(|_| {
        let began = Instant::now();
        spent += began.elapsed();
    });
    let mut port = 0;
    let counter = measured(|_| {
        let began = ticks();
        port += ticks().wrapping_sub(began);
    });
    // A turn of 16 frames, as a ring holds that is served at each wait.
    let mut stages = Stages::default();
    let noted = measured(|frame| {
        if frame % 16 == 1 {
            stages.turn_began(ticks());
        }
        let mut mark = stages.transmits();
        stages.in_port(&mut mark, || black_box(frame));
        stages.transmitted(mark, frame, 1514);
        if frame % 16 == 0 {
            stages.turn_ended(ticks());
        }
    });
    println!("two readings of the system's clock       {clock:>7.1} ns a frame");
    println!("two readings of the time stamp counter   {counter:>7.1} ns a frame");
    println!("the same, and ways noted (1 in 64)       {noted:>7.1} ns a frame");
    black_box((spent, port, stages.noted()));
}
