//! What somebody does with a result: load it into pandas and go on with numbers.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, PCNET, SAME_STACK, VIRTIO, campaign};
use toll_e2e::machine::{PYTHON, no_kvm, no_pandas, no_tun};
use toll_e2e::programs::{self, expect};
use toll_e2e::readme;
use toll_e2e::suite::test;

/// Says of the frames that README.md makes what a table for numbers must have; `cells` and `runs` are there.
const CHECKS: &str = include_str!("pandas.py");

pub fn tests() -> Vec<Trial> {
    vec![test("a_result_loads_into_pandas_without_a_fix", &[no_kvm(), no_tun(), no_pandas()], loads)]
}

/// The lines of README.md, on the result of a campaign with runs that failed.
fn loads() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // There is no such CPU: its runs have no figures.
    let broken = "{name: broken, guest: {os: payload, adapter: {virtioNet: {}}, pin: {vcpu: 4000}}}";
    let gate = "  gates: [{cells: {arm: virtio}, toll: {atMost: 99%}}]\n";
    let text = campaign(&[NATIVE, SAME_STACK, PCNET, VIRTIO, broken], 3, "200ms", gate);
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(180))?;
    expect(&output, 4)?;
    programs::result(&out)?;
    let script = format!("{}\n{CHECKS}", readme::commands("Results as data")?.join("\n"));
    let python = Command::new(PYTHON).args(["-c", &script]).current_dir(&out).output()?;
    let told = String::from_utf8_lossy(&python.stdout);
    print!("{told}");
    ensure!(python.status.success(), "{told}\n{}\n{script}", String::from_utf8_lossy(&python.stderr));
    ensure!(told.contains("numeric columns"), "{told}");
    Ok(())
}
