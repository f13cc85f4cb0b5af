//! Machines that lack something, and users who are not root: made by a mount namespace with a /dev of its own.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use toll_e2e::campaigns::{NATIVE, PCNET, SAME_STACK, campaign};
use toll_e2e::machine::{descendants, is_end, no_kvm, no_root, no_tun, wait_for};
use toll_e2e::programs::{self, Run, expect};
use toll_e2e::suite::test;
use toll_protocol::result::RunStatus;

const LIMIT: Duration = Duration::from_secs(60);
/// Nobody in particular.
const USER: u32 = 12_345;

pub fn tests() -> Vec<Trial> {
    vec![
        test(
            "without_kvm_native_runs_and_guests_are_not_run_with_the_reason",
            &[no_root(), no_tun()],
            without_kvm,
        ),
        test("without_tun_it_is_said_before_anything_starts", &[no_root()], without_tun),
        test("without_namespaces_it_is_said_before_anything_starts", &[], without_namespaces),
        test("a_plain_user_runs_a_lab_in_a_user_namespace", &[no_root(), no_kvm(), no_tun()], plain_user),
    ]
}

/// Device numbers of Linux (Documentation/admin-guide/devices.txt).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("kvm", 10, 232),
    ("net/tun", 10, 200),
];

/// Gives `command` a /dev that has the usual nodes but those named in `without`, open to everyone.
fn with_own_dev(command: &mut Command, without: &'static [&'static str], user: Option<u32>) {
    let prepare = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        fs::create_dir("/dev/net")?;
        for (name, major, minor) in NODES.iter().filter(|(name, ..)| !without.contains(name)) {
            make_node(&format!("/dev/{name}"), *major, *minor)?;
        }
        if let Some(user) = user {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(user.into())?;
            nix::unistd::setuid(user.into())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the child makes system calls and allocates. The threads that read an earlier
    // run's output may still be ending at the fork, but glibc takes the allocator's locks around fork(2), so that
    // the child finds them free; no other lock is taken.
    unsafe { command.pre_exec(prepare) };
}

fn make_node(path: &str, major: u32, minor: u32) -> io::Result<()> {
    let name = CString::new(path)?;
    // SAFETY: the path is a C string that lives through the call.
    if unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) } != 0 {
        return Err(io::Error::last_os_error());
    }
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

fn without_kvm() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE, PCNET, SAME_STACK], 1, "200ms", "");
    let run = programs::start(&text, directory.path(), |command| with_own_dev(command, &["kvm"], None))?;
    let (output, out) = run.end(LIMIT)?;
    expect(&output, 4)?;
    for cell in &programs::result(&out)?.cells {
        for run in &cell.runs {
            if cell.key.arm == "pcnet" {
                ensure!(run.status == RunStatus::Skipped, "{run:?}");
                ensure!(
                    run.reason.as_ref().is_some_and(|reason| reason.contains("/dev/kvm")),
                    "{:?}",
                    run.reason
                );
            } else {
                ensure!(run.status == RunStatus::Measured, "{run:?}");
            }
        }
    }
    Ok(())
}

fn without_tun() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE, SAME_STACK], 1, "200ms", "");
    let run = programs::start(&text, directory.path(), |command| with_own_dev(command, &["net/tun"], None))?;
    let (output, out) = run.end(LIMIT)?;
    expect(&output, 4)?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(text.contains("/dev/net/tun"), "{text}");
    ensure!(!out.exists(), "something was started");
    Ok(())
}

fn without_namespaces() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE], 1, "200ms", "");
    let run = programs::start(&text, directory.path(), |command| {
        // A user namespace in which no network namespace may be made (namespaces(7), /proc/sys/user).
        let prepare = || {
            let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
            unshare(CloneFlags::CLONE_NEWUSER)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
            fs::write("/proc/sys/user/max_net_namespaces", "0")
        };
        // SAFETY: as in `with_own_dev`.
        unsafe { command.pre_exec(prepare) };
    })?;
    let (output, out) = run.end(LIMIT)?;
    expect(&output, 4)?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(
        text.contains("no network namespace can be made: run as root, or allow user namespaces"),
        "{text}"
    );
    ensure!(!out.exists(), "something was started");
    Ok(())
}

fn plain_user() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE, PCNET], 1, "400ms", "");
    // The user must reach the programs and write the results.
    let programs = directory.path().join("bin");
    fs::create_dir(&programs)?;
    for name in ["toll", "toll-agent", "toll-vmm", "toll-endpoint"] {
        fs::copy(programs::directory()?.join(name), programs.join(name))?;
    }
    give(directory.path())?;
    let file = directory.path().join("c.yaml");
    fs::write(&file, text)?;
    let out = directory.path().join("out");
    let mut command = Command::new(programs.join("toll"));
    command.arg("run").arg(&file).arg("--out").arg(&out);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    with_own_dev(&mut command, &[], Some(USER));
    let run = Run { child: command.spawn()?, out };
    for name in ["toll-endpoint", "toll-vmm"] {
        let looked = wait_for(&format!("{name} without rights"), LIMIT, || {
            let all = descendants(&programs, run.id().as_raw())?;
            Ok(all.into_iter().find(|(pid, found)| found == name && is_end(*pid) && has_no_right(*pid)))
        });
        looked?;
    }
    let (output, out) = run.end(LIMIT)?;
    expect(&output, 0)?;
    let result = programs::result(&out)?;
    ensure!(result.cells.len() == 4 && result.cells.iter().all(|cell| cell.counts.measured == 1));
    Ok(())
}

/// Whether a process that keeps its user has given up all else: there is no other in a plain user's namespace.
fn has_no_right(pid: i32) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let text = |file: &str| read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (Some(status), Some(limits), Some(environment)) = (text("status"), text("limits"), read("environ"))
    else {
        return false;
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    let mut variables = environment.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    field("Uid:").is_some_and(|ids| ids.split_whitespace().all(|id| id == USER.to_string()))
        && sets.into_iter().all(|set| field(set) == Some("0000000000000000"))
        && field("NoNewPrivs:") == Some("1")
        && limits.lines().any(|line| line.starts_with("Max core file size        1                    1"))
        && variables.all(|variable| variable.starts_with(b"PATH="))
}

fn give(path: &Path) -> Result<()> {
    nix::unistd::chown(path, Some(USER.into()), Some(USER.into()))?;
    Ok(())
}
