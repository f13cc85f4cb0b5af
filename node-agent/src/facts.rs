//! What this host is: the provenance of every figure measured on it. Each fact is read where the kernel states it;
//! what can't be read is `None`, and nothing is guessed.

pub mod advice;
pub mod cpu;
pub mod device;
pub mod ethtool;
pub mod nic;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use nix::sys::utsname::uname;
use nix::unistd::Pid;
use toll_protocol::error::chain;
use toll_protocol::facts::HostFacts;
use toll_protocol::printable::printable;
use toll_protocol::trial::{CONGESTION_CONTROLS, TrialId};

use crate::child::Spawner;
use crate::users::Users;

/// How long a program that is asked for a fact may take.
pub const PROGRAM_LIMIT: Duration = Duration::from_secs(5);

/// The facts of this host as they are now, with those of the interface `nic` of this network namespace, if one is
/// named and exists. It opens devices, and runs the programs of the folder `programs`: `toll-vmm` to see whether guests can
/// be created, `toll-endpoint` to see which iperf3 there is.
pub async fn collect(nic: Option<&str>, programs: &Path, spawner: &Spawner, users: &Users) -> HostFacts {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpu::parse(&cpuinfo);
    let asking = Asking { programs, spawner, users };
    let congestion_control = congestion_control();
    // One after the other: there may be one user for all children.
    let kvm = device::kvm(&processor, &asking).await;
    let iperf3 = iperf3(congestion_control.as_deref(), &asking).await;
    HostFacts {
        kernel: kernel(),
        kvm,
        tun: device::tun(),
        cpu: processor.model,
        microcode: processor.microcode,
        cpus: cpus(),
        memory: std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(memory),
        nic: nic.and_then(nic::facts),
        wire: None,
        guest_addresses: None,
        clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        congestion_control,
        toll_version: env!("CARGO_PKG_VERSION").to_owned(),
        build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        iperf3,
    }
}

/// Kernel name, release and version (uname(2)).
fn kernel() -> String {
    let Ok(name) = uname() else { return "unknown".to_owned() };
    [name.sysname(), name.release(), name.version()].map(|part| part.to_string_lossy().into_owned()).join(" ")
}

/// CPUs that this process may use (sched_getaffinity(2)), by number: a container or a taskset narrows them.
fn cpus() -> Vec<u32> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    let allowed = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    (0..CpuSet::count()).filter(allowed).filter_map(|cpu| u32::try_from(cpu).ok()).collect()
}

/// `MemTotal` of /proc/meminfo (proc(5)), in bytes.
fn memory(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    // The file writes kB and means KiB.
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// The one line of a file of sysfs.
fn line(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The congestion control that native ends get, which make their sockets before they give up their rights. A socket is asked, since the list of sysctl
/// `tcp_allowed_congestion_control` binds only those without CAP_NET_ADMIN.
fn congestion_control() -> Option<String> {
    let probe =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp).ok()?;
    let usable = |name: &&str| setsockopt(&probe, sockopt::TcpCongestion, &OsString::from(name)).is_ok();
    CONGESTION_CONTROLS.into_iter().find(usable).map(str::to_owned)
}

/// Who asks the programs of a folder what they find, each as a user that it may run as in trials.
pub struct Asking<'a> {
    programs: &'a Path,
    spawner: &'a Spawner,
    users: &'a Users,
}

impl Asking<'_> {
    /// What `program` says when it is asked for `what`.
    async fn ask(&self, program: &str, what: &str, limit: Duration) -> io::Result<Output> {
        let Self { programs, spawner, users } = self;
        // Of no trial, whose ids are drawn.
        let nobodys = TrialId::new(0);
        let user = users.take(nobodys).await.map_err(io::Error::other)?;
        let user = user.map(|user| user.to_string());
        let arguments: Vec<&str> =
            user.as_deref().into_iter().flat_map(|user| ["--user", user]).chain([what]).collect();
        let output = spawner.output(&programs.join(program), &arguments, limit).await;
        let left = users.release(nobodys, spawner, &programs.join("toll-endpoint")).await;
        if !left.is_empty() {
            tracing::error!(?left, "{program} was asked for {what}, and did not end");
        }
        output
    }
}

/// What `toll-endpoint iperf3` says, as the user that it runs as in trials: `iperf 3.12 (cJSON 1.7.15)`, and the congestion
/// control of its sockets where it is another than `usual`: iperf3 may set less than who makes them with a right. Else why no
/// trial can use it.
async fn iperf3(usual: Option<&str>, asking: &Asking<'_>) -> Result<String, String> {
    const PROGRAM: &str = "toll-endpoint";
    let output = asking.ask(PROGRAM, "iperf3", PROGRAM_LIMIT).await;
    let found = output
        .map_err(|error| {
            let endpoint = asking.programs.join(PROGRAM);
            format!("{} iperf3, which looks for it, could not be run: {}", endpoint.display(), chain(&error))
        })
        .and_then(|output| usable_iperf3(&output, usual));
    found.inspect_err(|why| tracing::info!("no trial will use iperf3: {why}"))
}

/// What its output means.
fn usable_iperf3(output: &Output, usual: Option<&str>) -> Result<String, String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().map(|line| line.strip_prefix("toll-endpoint: ").unwrap_or(line));
        let said = said.map_or_else(|| format!("nothing was said ({})", output.status), str::to_owned);
        return Err(printable(&said).to_string());
    }
    let text = printable_lines(&output.stdout);
    let [version, congestion] = &text[..] else {
        return Err(
            "toll-endpoint said something else than its version: is it of the same release?".to_owned()
        );
    };
    if !keeps_to_an_interface(version) {
        return Err(format!("{version} is older than 3.10, the first with --bind-dev: install a newer one"));
    }
    Ok(if usual == Some(congestion) { version.clone() } else { format!("{version}, {congestion}") })
}

fn printable_lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(|line| printable(line).to_string()).collect()
}

/// Whether an iperf3 of this version can be kept to the test NIC: `--bind-dev` came with 3.10.
fn keeps_to_an_interface(version: &str) -> bool {
    let minor = version.strip_prefix("iperf 3.").map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    minor.flatten().and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|minor| minor >= 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_total_and_in_bytes() {
        let text = "MemTotal:       24684084 kB\nMemFree:        21357472 kB\nMemAvailable:   23455908 kB\n";
        assert_eq!(memory(text), Some(24_684_084 * 1024));
        assert_eq!(memory("MemFree: 5 kB\n"), None);
        assert_eq!(memory("MemTotal: 18446744073709551615 kB\n"), None);
        assert_eq!(memory("MemTotal: 5\n"), None);
    }

    #[test]
    fn an_iperf3_that_can_go_by_any_interface_is_none() {
        for (version, good) in [
            ("iperf 3.9 (cJSON 1.7.13)", false),
            ("iperf 3.10", true),
            ("iperf 3.10.1 (cJSON 1.7.13)", true),
            ("iperf 3.12 (cJSON 1.7.15)", true),
            ("iperf 3.1-STABLE", false),
            ("iperf 3", false),
        ] {
            assert_eq!(keeps_to_an_interface(version), good, "{version}");
        }
    }

    #[test]
    fn why_there_is_no_iperf3_is_told() {
        use std::os::unix::process::ExitStatusExt as _;
        let usable = |code: i32, stdout: &str, stderr: &str| {
            let status = std::process::ExitStatus::from_raw(code << 8);
            usable_iperf3(&Output { status, stdout: stdout.into(), stderr: stderr.into() }, Some("cubic"))
        };
        let why =
            |code: i32, stdout: &str, stderr: &str| usable(code, stdout, stderr).expect_err("no iperf3");
        let forbidden = "iperf3 may use neither cubic nor reno: see net.ipv4.tcp_allowed_congestion_control";
        assert_eq!(why(1, "", &format!("toll-endpoint: {forbidden}\n")), forbidden);
        assert!(why(1, "", "").contains("exit status: 1"));
        assert!(!why(1, "", "\u{1b}[2J").contains('\u{1b}'));
        assert!(
            why(0, "iperf 3.9 (cJSON 1.7.13)\ncubic\n", "")
                .contains("iperf 3.9 (cJSON 1.7.13) is older than")
        );
        assert!(why(0, "something\n", "").contains("same release"));
        assert_eq!(usable(0, "iperf 3.12\ncubic\n", "").expect("usable"), "iperf 3.12");
        assert_eq!(usable(0, "iperf 3.12\nreno\n", "").expect("usable"), "iperf 3.12, reno");
    }

    #[tokio::test]
    async fn this_host_has_facts_and_an_unknown_interface_has_none() {
        let spawner = Spawner::new(tokio::runtime::Handle::current()).expect("a spawner");
        let users = Users::open(None, "a").expect("nobody has the default range");
        let facts = collect(Some("no-such-nic"), Path::new("/no/such/folder"), &spawner, &users).await;
        assert!(facts.kernel.starts_with("Linux "), "{}", facts.kernel);
        assert!(!facts.cpus.is_empty());
        assert!(facts.memory.is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(facts.nic, None);
        let why = facts.iperf3.expect_err("nothing looks for it");
        assert!(why.contains("/no/such/folder/toll-endpoint"), "{why}");
        assert_eq!(line("/proc/no-such-file"), None);
    }
}
