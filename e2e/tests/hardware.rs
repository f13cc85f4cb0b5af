//! Guests on ordinary hardware virtualisation: on VT-x in the three modes in which KVM enters a guest differently, and on
//! AMD-V, on machines that are emulated in software.
//!
//! Each machine boots once, and does all: `toll doctor`, the tests of guests with every fault, a campaign of every payload
//! arm. Speeds there mean nothing; exits do.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Arguments;
use toll_e2e::hardware::{Emulator, Hardware, Said, lacking};
use toll_e2e::suite::test;
use toll_protocol::report::Flag;
use toll_protocol::result::{CampaignResult, RunStatus};

const HASWELL: Emulator = Emulator::Bochs("corei7_haswell_4770");
const INTEL: &str = "kvm-intel.ko";

/// Here a bad state of entry ends in KVM_EXIT_FAIL_ENTRY: in the other modes KVM emulates around some of it.
const UNRESTRICTED: Hardware = Hardware {
    name: "vt-x",
    emulator: HASWELL,
    module: INTEL,
    options: &["ept=1", "unrestricted_guest=1"],
    steps: &[],
};
const RESTRICTED: Hardware =
    Hardware { name: "vt-x-restricted", options: &["ept=1", "unrestricted_guest=0"], ..UNRESTRICTED };
const SHADOW: Hardware = Hardware { name: "vt-x-shadow", options: &["ept=0"], ..UNRESTRICTED };
const SVM: Hardware = Hardware {
    name: "amd-v",
    emulator: Emulator::Qemu("EPYC,+svm,+npt"),
    module: "kvm-amd.ko",
    options: &["npt=1"],
    steps: &[],
};
/// One on which KVM works, and every guest dies at its first access to a port: QEMU's emulation of SVM checks such an access
/// against a task state segment of a type that it can't be of in a guest. Guests are given another one where the CPU says
/// that QEMU emulates it, which this one hides (docs/adr/0002-payload-in-cpl3.md).
const DEADLY: Hardware = Hardware {
    name: "amd-v-deadly",
    emulator: Emulator::Qemu("EPYC,+svm,+npt,tcg-cpuid=off"),
    steps: &["doctor", "campaign", "result"],
    ..SVM
};

fn main() {
    let mut arguments = Arguments::from_args();
    // Each has one CPU, and wants one.
    arguments.test_threads = Some(2);
    let lacks = [lacking()];
    let tests = vec![
        test("guests_run_on_vt_x_with_ept_and_unrestricted_guests", &lacks, || {
            run(&UNRESTRICTED, "Intel VT-x", &["ept Y", "unrestricted_guest Y"])
        }),
        test("guests_run_on_amd_v", &lacks, || run(&SVM, "AMD-V", &["npt Y"])),
        test("where_guests_die_the_doctor_says_so_and_the_other_arms_are_measured", &lacks, guests_die),
        test("guests_run_on_vt_x_without_unrestricted_guests", &lacks, || {
            run(&RESTRICTED, "Intel VT-x", &["ept Y", "unrestricted_guest N"])
        }),
        test("guests_run_on_vt_x_without_ept", &lacks, || {
            run(&SHADOW, "Intel VT-x", &["ept N", "unrestricted_guest N"])
        }),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

fn run(hardware: &Hardware, kvm: &str, parameters: &[&str]) -> Result<()> {
    let said = hardware.run()?;
    // The machine is in the mode that is to be tested.
    let loaded = said.step("load")?;
    for parameter in parameters {
        ensure!(loaded.lines().any(|line| line == *parameter), "{parameter} is not so:\n{loaded}");
    }
    doctor(&said, kvm).context("toll doctor")?;
    guests(&said).context("tests of guests")?;
    said.step("campaign").context("toll run")?;
    campaign(&said.result()?).context("the campaign's result")
}

fn doctor(said: &Said, kvm: &str) -> Result<()> {
    let text = said.step("doctor")?;
    let ran = format!("guests with each adapter ran for a moment, on {kvm}");
    ensure!(text.contains(&ran), "it says nothing of guests on {kvm}:\n{text}");
    ensure!(text.contains("This machine can run every arm, but for those of iperf3."), "{text}");
    Ok(())
}

/// The doctor ends with the exit code of infrastructure, and says which arms can't run, of what a guest died, and its last
/// words. A campaign measures the other arms, and gives the guests' the same reason.
fn guests_die() -> Result<()> {
    let said = DEADLY.run()?;
    let text = said.step_with("doctor", 4).context("toll doctor")?;
    for expected in [
        "LACK  KVM           guest arms can't run",
        "/dev/kvm opens, but guests don't run (exit status: 1): toll-vmm: a guest with pcnet does not run: ",
        "exit 0: ",
        "ok    TUN/TAP",
        "1 thing is lacking: what needs it can't run here.",
    ] {
        ensure!(text.contains(expected), "it does not say `{expected}`:\n{text}");
    }
    said.step_with("campaign", 4).context("toll run")?;
    for cell in &said.result()?.cells {
        let dies = !matches!(&cell.key.arm[..], "native" | "same-stack");
        for run in &cell.runs {
            let what =
                format!("{} {:?}: {:?} {:?}", cell.key.arm, cell.key.direction, run.status, run.reason);
            let why = run.reason.as_deref().unwrap_or_default();
            let expected = if dies { RunStatus::Skipped } else { RunStatus::Measured };
            ensure!(run.status == expected && (!dies || why.contains("guests don't run")), "{what}");
        }
    }
    Ok(())
}

/// All ran, and passed: none was left out.
fn guests(said: &Said) -> Result<()> {
    let text = said.step("guests")?;
    let count =
        |end: &str| text.lines().filter(|line| line.starts_with("test ") && line.ends_with(end)).count();
    let (passed, named) = (count(" ... ok"), count(""));
    // The line of the verdict is one more.
    ensure!(passed > 0 && named == passed + 1, "{passed} of {named} passed:\n{text}");
    ensure!(text.contains("0 failed; 0 ignored; 0 measured; 0 filtered out"), "{text}");
    ensure!(text.contains("a_port_that_is_not_its_own_faults"), "{text}");
    Ok(())
}

/// Every arm was measured each way, and KVM has counted as many exits to the VMM as the VMM.
fn campaign(result: &CampaignResult) -> Result<()> {
    // As in e2e/hardware/campaign.yaml: arms by directions.
    ensure!(result.cells.len() == 10 * 2, "{} cells", result.cells.len());
    let mut guests = 0;
    for cell in &result.cells {
        for run in &cell.runs {
            let what = format!("{} {:?}", cell.key.arm, cell.key.direction);
            ensure!(run.status == RunStatus::Measured, "{what}: {:?} {:#?}", run.reason, run.last_words);
            ensure!(!run.flags.contains(&Flag::ExitCountMismatch), "{what}: {:?}", run.flags);
            for exits in [&run.a, &run.b].into_iter().flatten().filter_map(|end| end.exits.as_ref()) {
                guests += 1;
                ensure!(exits.kvm_userspace == Some(exits.total()), "{what}: {exits:#?}");
                ensure!(exits.kvm_all.is_some_and(|all| all >= exits.total()), "{what}: {exits:#?}");
            }
        }
    }
    // Eight arms of guests each way, one of them with a guest at both ends.
    ensure!(guests == (8 + 1) * 2, "{guests} guests counted exits");
    Ok(())
}
