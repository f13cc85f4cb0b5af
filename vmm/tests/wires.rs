//! A wire of a rate carries that rate, whatever it is, as tc's token bucket on a veth does.

mod support;
#[allow(dead_code, reason = "shared with a bench that prints all of it")]
mod wire;

use std::process::{Command, ExitCode};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use support::{check, enter_namespace};
use toll_protocol::report::Flag;
use toll_protocol::trial::Direction;
use toll_protocol::units::BitRate;
use wire::{Carried, RATES, Shaper, Wire};

const PROGRAM: &str = env!("CARGO_BIN_EXE_toll-vmm");
/// What a run may lose to other users of the machine before it says nothing of the wire.
const ATTEMPTS: u8 = 3;
/// Up to there a machine of today is not the limit, in a build without optimisation.
const EASY: BitRate = BitRate(10_000_000);

fn carries(index: u8, direction: Direction) -> Result<(), Failed> {
    let rate = RATES[usize::from(index)];
    let duration = Duration::from_millis(1500);
    let carry = |attempt: u8, shaper: Shaper| -> Result<Carried, String> {
        let number = 1 + 2 * (ATTEMPTS * (2 * index + u8::from(direction == Direction::Send)) + attempt);
        let number = number + u8::from(shaper == Shaper::Tc);
        let program = |why| format!("{rate} {direction} {shaper:?}: {why}");
        Wire { number, rate, shaper, direction, duration }.carry(PROGRAM).map_err(program)
    };
    let mut seen = Vec::new();
    for attempt in 0..ATTEMPTS {
        let carried = carry(attempt, Shaper::Impairments)?;
        // Not more than the rate, and the burst of a wake-up that came late.
        check(carried.ratio <= 1.02, &(rate, &carried))?;
        check(carried.flags.contains(&Flag::Impaired), &carried.flags)?;
        if carried.ratio >= 0.95 {
            return Ok(());
        }
        let limited = carried.flags.iter().any(|flag| matches!(flag, Flag::CpuWait | Flag::CpuBound));
        seen.push(carried);
        if rate.0 > EASY.0 {
            // What tc's wire can't carry is the limit of the machine.
            let tc = carry(attempt, Shaper::Tc)?;
            if limited || tc.ratio < 0.97 {
                eprintln!("{rate} {direction}: the machine is the limit: {seen:?}, tc's {tc:?}");
                return Ok(());
            }
        }
    }
    Err(format!("{rate} {direction}: {seen:#?}").into())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tc = || Command::new("tc").arg("-V").output().map_err(|error| format!("no tc (iproute2): {error}"));
    let lacks = enter_namespace().and_then(|()| tc().map(drop));
    if let Err(why) = &lacks {
        eprintln!("left out: {why}");
    }
    let tests = [Direction::Send, Direction::Receive]
        .into_iter()
        .flat_map(|direction| (0..RATES.len() as u8).map(move |index| (index, direction)))
        .map(|(index, direction)| {
            let name = format!("a_wire_of_{}_carries_what_its_end_{direction}s", RATES[usize::from(index)]);
            Trial::test(name, move || carries(index, direction)).with_ignored_flag(lacks.is_err())
        })
        .collect();
    // They share the CPUs that they measure.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, tests).exit_code()
}
