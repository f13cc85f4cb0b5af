//! What an impaired wire carries of its rate and what that costs, beside tc's token bucket of the same rate on a veth, in
//! network namespaces of its own: `cargo run --release -p toll-vmm --example wire_bench [SECONDS [PROGRAM...]]`,
//! `toll-vmm` built before. Needs root and `tc` (iproute2). Several PROGRAMs, such as that of a former build, take turns.

#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/wire/mod.rs"]
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use support::enter_namespace;
use toll_protocol::trial::Direction;
use wire::{RATES, Shaper, Wire};

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 =
        arguments.next().map_or(Ok(2.0), |text| text.parse()).map_err(|error| format!("{error}"))?;
    let only = arguments.next().unwrap_or_default();
    let mut programs: Vec<PathBuf> = arguments.map(Into::into).collect();
    if programs.is_empty() {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let profile = own.parent().and_then(|examples| examples.parent()).ok_or("where is toll-vmm?")?;
        programs.push(profile.join("toll-vmm"));
    }
    enter_namespace()?;
    println!(
        "{:<10} {:>8} {:<34} {:>10} {:>6} {:>12} {:>12}  flags",
        "rate", "guest", "shaper", "carried", "ratio", "VMM s/GB", "host s/GB"
    );
    let mut number = 0;
    for rate in RATES {
        for direction in [Direction::Send, Direction::Receive] {
            if !format!("{rate} {direction}s").contains(&only) {
                continue;
            }
            let by_tc = programs.first().map(|program| (Shaper::Tc, program));
            let by_us = programs.iter().map(|program| (Shaper::Impairments, program));
            for (shaper, program) in by_tc.into_iter().chain(by_us) {
                number += 1;
                let wire =
                    Wire { number, rate, shaper, direction, duration: Duration::from_secs_f64(seconds) };
                let carried = wire.carry(&program.to_string_lossy())?;
                let name = match shaper {
                    Shaper::Tc => "tc tbf on a veth".to_owned(),
                    Shaper::Impairments => format!("impairments, {}", program.display()),
                };
                let cost = |spent: Option<f64>| spent.map_or("-".into(), |spent| format!("{spent:.2}"));
                println!(
                    "{:<10} {:>8} {name:<34} {:>8.2}Mb {:>6.3} {:>12} {:>12}  {:?}",
                    rate.to_string(),
                    format!("{direction}s"),
                    carried.bits_per_second / 1e6,
                    carried.ratio,
                    cost(carried.vmm_seconds_per_gigabyte),
                    cost(carried.host_seconds_per_gigabyte),
                    carried.flags,
                );
            }
        }
    }
    Ok(())
}
