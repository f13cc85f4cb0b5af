//! `toll doctor`: what this machine offers, and what to do about each thing that it lacks.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use toll_protocol::facts::{HostFacts, KvmFact, KvmKind};
use toll_protocol::printable::printable;

use crate::exit::{Exit, print_out};
use crate::{binaries, format, lab};

const IPERF3: &str = "iperf3";

/// What a finding means for a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// As it should be.
    Good,
    /// Works, and figures may suffer.
    Care,
    /// Something can't run.
    Bad,
}

#[derive(Debug)]
struct Finding {
    mark: Mark,
    what: &'static str,
    found: String,
    advice: Option<String>,
    /// What was said when it was tried, a line each.
    words: Vec<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { mark: Mark::Good, what, found: found.into(), advice: None, words: Vec::new() }
    }

    fn other(mark: Mark, what: &'static str, found: impl Into<String>, advice: &str) -> Self {
        Self { mark, what, found: found.into(), advice: Some(advice.into()), words: Vec::new() }
    }
}

/// Prints what the machine offers.
///
/// # Errors
/// When the machine can't be asked at all.
pub fn run() -> Result<Exit> {
    // First, while the process has no threads.
    let namespaces = namespaces();
    let facts = facts()?;
    let mut findings = vec![kvm(&facts), tun(&facts), namespaces];
    findings.extend(programs());
    findings.extend(machine(&facts));
    let lacks = findings.iter().any(|finding| finding.mark == Mark::Bad);
    print_out(&show(&findings))?;
    Ok(if lacks { Exit::Infrastructure } else { Exit::Ok })
}

fn show(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { mark, what, found, advice, words } in findings {
        let sign = match mark {
            Mark::Good => "ok  ",
            Mark::Care => "care",
            Mark::Bad => "LACK",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{sign}  {what:<12}  {found}");
        if let Some(advice) = advice {
            let _ = writeln!(text, "      {:<12}  -> {advice}", "");
        }
        for line in words {
            let _ = writeln!(text, "      {:<12}     {}", "", printable(line));
        }
    }
    let lacks = findings.iter().filter(|finding| finding.mark == Mark::Bad).count();
    text.push_str(&match lacks {
        0 if findings.iter().any(|finding| finding.what == IPERF3 && finding.mark == Mark::Care) => {
            "\nThis machine can run every arm, but for those of iperf3.\n".to_owned()
        }
        0 => "\nThis machine can run every arm.\n".to_owned(),
        1 => "\n1 thing is lacking: what needs it can't run here.\n".to_owned(),
        _ => format!("\n{lacks} things are lacking: what needs them can't run here.\n"),
    });
    text
}

/// Asks the agent, which knows hosts.
fn facts() -> Result<HostFacts> {
    let agent = binaries::beside("toll-agent")?;
    let output = Command::new(&agent)
        .arg("facts")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} can't be started", agent.display()))?;
    anyhow::ensure!(output.status.success(), "{} facts failed ({})", agent.display(), output.status);
    serde_json::from_slice(&output.stdout)
        .context("the agent's facts can't be understood: is it of the same release?")
}

fn kvm(facts: &HostFacts) -> Finding {
    match &facts.kvm {
        KvmFact::Usable(kind) => Finding::good(
            "KVM",
            match kind {
                KvmKind::Vmx => "guests with each adapter ran for a moment, on Intel VT-x",
                KvmKind::Svm => "guests with each adapter ran for a moment, on AMD-V",
                KvmKind::PageTable => {
                    "guests with each adapter ran for a moment, without VMX or SVM (page-table based: no Linux guests)"
                }
            },
        ),
        KvmFact::Unusable { reason, last_words } => Finding {
            words: last_words.clone(),
            ..Finding::other(Mark::Bad, "KVM", "guest arms can't run", reason)
        },
    }
}

fn tun(facts: &HostFacts) -> Finding {
    match &facts.tun {
        Ok(()) => Finding::good("TUN/TAP", "/dev/net/tun opens"),
        Err(reason) => Finding::other(Mark::Bad, "TUN/TAP", "guest and same-stack arms can't run", reason),
    }
}

/// Tries in a child process what a lab would do to this one.
fn namespaces() -> Finding {
    let what = "namespaces";
    // SAFETY: the process has one thread, so the child may do anything.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let code = match lab::enter() {
                Ok(()) => 0,
                Err(_) => 1,
            };
            // SAFETY: ends the child at once, without the parent's destructors.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(error) => {
            return Finding::other(
                Mark::Bad,
                what,
                format!("no process can be forked: {error}"),
                "raise the limit of processes",
            );
        }
    };
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) if nix::unistd::geteuid().is_root() => {
            Finding::good(what, "a lab can be made, as root")
        }
        Ok(WaitStatus::Exited(_, 0)) => Finding::good(what, "a lab can be made, in a user namespace"),
        _ => Finding::other(
            Mark::Bad,
            what,
            "no lab can be made",
            "run as root, or: sysctl kernel.unprivileged_userns_clone=1 (Debian), \
             kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
        ),
    }
}

fn programs() -> impl Iterator<Item = Finding> {
    ["toll-agent", "toll-vmm", "toll-endpoint"].into_iter().filter_map(|name| {
        let error = binaries::beside(name).err()?;
        Some(Finding::other(Mark::Bad, "programs", format!("{name} is missing"), &error.to_string()))
    })
}

/// Agents start their children with `close_range(2)` and its flag CLOEXEC.
const OLDEST_KERNEL: (u32, u32) = (5, 11);

fn kernel(facts: &HostFacts) -> Finding {
    // `Linux 6.1.0-9-amd64 #1 SMP …`
    let release = facts.kernel.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|digits| digits.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            let advice = format!("agents need Linux {major}.{minor} or newer");
            Finding::other(Mark::Bad, "kernel", facts.kernel.clone(), &advice)
        }
        _ => Finding::good("kernel", facts.kernel.clone()),
    }
}

/// Things that figures depend on.
fn machine(facts: &HostFacts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts)];
    let cpus = facts.cpus.len();
    let model = facts.cpu.as_deref().unwrap_or("unknown model");
    findings.push(if cpus >= 2 {
        Finding::good("CPUs", format!("{cpus}, {model}"))
    } else {
        Finding::other(
            Mark::Care,
            "CPUs",
            format!("{cpus}, {model}"),
            "with one CPU both ends of a trial compete for it",
        )
    });
    match facts.memory {
        Some(bytes) if bytes < 1 << 30 => {
            let advice = "a lab of two hosts with guests wants 1 GiB";
            findings.push(Finding::other(Mark::Care, "memory", format::memory(bytes), advice));
        }
        Some(bytes) => findings.push(Finding::good("memory", format::memory(bytes))),
        None => {}
    }
    match facts.clock_source.as_deref() {
        Some(clock @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")) => {
            findings.push(Finding::good("clock", clock));
        }
        Some(clock) => {
            let advice =
                "reading this clock is a system call: timing costs more, figures of small writes suffer";
            findings.push(Finding::other(Mark::Care, "clock", clock, advice));
        }
        None => {}
    }
    if let Some(governor) = facts.governor.as_deref().filter(|governor| *governor != "performance") {
        let advice = "cpupower frequency-set -g performance: the clock's frequency changes figures";
        findings.push(Finding::other(Mark::Care, "frequency", format!("governor {governor}"), advice));
    }
    findings.push(match &facts.iperf3 {
        Ok(version) => Finding::good(IPERF3, version.clone()),
        Err(why) => Finding::other(Mark::Care, IPERF3, "arms `native: {program: iperf3}` can't run", why),
    });
    if facts.build_profile == "debug" {
        let advice = "figures of a debug build are not the product's: cargo build --release";
        findings.push(Finding::other(Mark::Care, "build", "debug", advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support;

    fn facts() -> HostFacts {
        test_support::provenance().hosts.swap_remove(0).facts
    }

    fn verdict(kvm: KvmFact) -> String {
        let facts = HostFacts { kvm, iperf3: Ok("iperf 3.12".into()), ..facts() };
        show(&[super::kvm(&facts), tun(&facts)])
    }

    #[test]
    fn a_machine_whose_guests_die_runs_not_every_arm_and_their_last_words_are_shown() {
        let text = verdict(KvmFact::Unusable {
            reason: "/dev/kvm opens, but guests don't run".into(),
            last_words: vec!["rip 0x0000000000100042".into(), "\u{1b}[2J".into()],
        });
        assert!(text.starts_with("LACK  KVM"), "{text}");
        assert!(text.contains("-> /dev/kvm opens, but guests don't run\n"), "{text}");
        assert!(text.contains(" rip 0x0000000000100042\n") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("1 thing is lacking") && !text.contains("every arm"), "{text}");
    }

    #[test]
    fn a_machine_whose_guests_ran_runs_every_arm() {
        let text = verdict(KvmFact::Usable(KvmKind::Svm));
        assert!(text.contains("guests with each adapter ran for a moment, on AMD-V"), "{text}");
        assert!(text.ends_with("This machine can run every arm.\n"), "{text}");
    }

    #[test]
    fn without_iperf3_its_arms_are_excepted_and_the_reason_is_shown() {
        let why = "iperf3 may use neither cubic nor reno: see net.ipv4.tcp_allowed_congestion_control";
        let facts = HostFacts { iperf3: Err(why.into()), ..facts() };
        let text = show(&machine(&facts));
        assert!(text.contains(&format!("-> {why}\n")) && !text.contains("installed"), "{text}");
        assert!(text.ends_with("every arm, but for those of iperf3.\n"), "{text}");
    }
}
