//! What a campaign in a lab measures, and what it leaves behind: results, and nothing else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, PCNET, SAME_STACK, VIRTIO, campaign};
use toll_e2e::machine::{interfaces, no_kvm, no_tshark, no_tun, processes};
use toll_e2e::programs::{self, expect};
use toll_e2e::readme;
use toll_e2e::suite::test;
use toll_protocol::figure::{CPU_GUEST, CPU_HOST, EXITS_PER_FRAME, GOODPUT};
use toll_protocol::report::{EndReport, Flag};
use toll_protocol::result::{CellResult, Peer};
use toll_protocol::trial::Direction;

pub fn tests() -> Vec<Trial> {
    vec![
        test("every_arm_is_measured_both_ways", &[no_kvm(), no_tun()], every_arm),
        test("the_first_command_of_the_readme", &[no_kvm(), no_tun()], first_command),
        test("the_machines_own_network_never_sees_a_lab", &[no_kvm(), no_tun()], network_untouched),
        test("two_runs_at_once_dont_disturb_each_other", &[no_tun()], two_at_once),
        test("format_json_prints_the_result_alone", &[], json_alone),
        test("a_gate_decides_the_exit_code", &[], gates),
        test("a_link_rate_limits_native", &[], link_rate),
        test("a_wire_is_made_worse_and_captured", &[no_kvm(), no_tun(), no_tshark()], decorated),
        test("a_frames_way_is_shown_of_the_trial_that_is_asked_for", &[no_kvm(), no_tun()], traced),
        test("guests_on_a_hub_and_behind_a_translator_are_measured", &[no_kvm()], off_the_wire),
    ]
}

/// The cells of an arm.
fn cells<'r>(cells: &'r [CellResult], arm: &str) -> Vec<&'r CellResult> {
    cells.iter().filter(|cell| cell.key.arm == arm).collect()
}

/// What a user does first: the line of README.md, with the programs of the test for those of a release, and the
/// quickstart shortened.
fn first_command() -> Result<()> {
    let line = readme::commands("# Toll")?.concat();
    let (build, run) = line.split_once(" && ").context("README.md builds first and then runs")?;
    ensure!(build == "cargo build --release", "{line}");
    let built = run.strip_prefix("target/release/").with_context(|| line.clone())?;
    let (directory, programs) = (tempfile::tempdir()?, programs::directory()?);
    let file = Path::new("manifests/campaigns/quickstart.yaml");
    let quickstart = include_str!("../../../manifests/campaigns/quickstart.yaml");
    let short = quickstart.replace("duration: 1s", "duration: 200ms").replace("blocks: 5", "blocks: 1");
    std::fs::create_dir_all(directory.path().join("manifests/campaigns"))?;
    std::fs::write(directory.path().join(file), short)?;
    let mut shell = Command::new("sh");
    let output = shell.arg("-ec").arg(programs.join(built)).current_dir(directory.path()).output()?;
    expect(&output, 0)?;
    let told = String::from_utf8(output.stdout)?;
    ensure!(told.contains("10 of 10 runs measured."), "{told}");
    let report = told.lines().find_map(|line| line.strip_prefix("Report: ")).context("no report is named")?;
    ensure!(directory.path().join(report).is_file(), "{report} is not there");
    Ok(())
}

fn every_arm() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE, SAME_STACK, PCNET, VIRTIO], 1, "300ms", "");
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(60))?;
    expect(&output, 0)?;
    let result = programs::result(&out)?;
    for (arm, count) in [("native", 2), ("same-stack", 2), ("pcnet", 2), ("virtio", 4)] {
        ensure!(cells(&result.cells, arm).len() == count, "arm {arm} has not {count} cells");
    }
    for cell in &result.cells {
        let what = format!("{:?}", cell.key);
        ensure!(cell.counts.measured == 1, "{what} is not measured: {:?}", cell.runs);
        let goodput = cell.median(&GOODPUT).context("no goodput")?;
        ensure!(goodput > 100_000.0, "{what}: {goodput} B/s");
        let guest = matches!(cell.key.arm.as_str(), "pcnet" | "virtio");
        ensure!(
            cell.median(&EXITS_PER_FRAME).is_some() == guest,
            "{what}: exits of {:?}",
            cell.median(&EXITS_PER_FRAME)
        );
        ensure!(cell.median(&CPU_GUEST).is_some() == (cell.key.arm != "native"), "{what}");
        ensure!(cell.median(&CPU_HOST).is_some(), "{what}");
    }
    // 2 accesses to send and 10 in the handler: no frame costs a straightforward pcnet less than the 2.
    let pcnet = cells(&result.cells, "pcnet");
    let sends = pcnet.iter().find(|cell| cell.key.direction == Direction::Send).context("pcnet sends")?;
    let exits = sends.median(&EXITS_PER_FRAME).context("pcnet exits")?;
    ensure!((12.0..40.0).contains(&exits), "{exits} exits a frame sent");
    let virtio = cells(&result.cells, "virtio");
    ensure!(virtio.iter().any(|cell| cell.key.peer == Peer::SameArm), "no guest-to-guest cell");
    let few = virtio.iter().all(|cell| cell.median(&EXITS_PER_FRAME).is_some_and(|exits| exits < 2.0));
    ensure!(
        few,
        "virtio exits: {:?}",
        virtio.iter().map(|cell| cell.median(&EXITS_PER_FRAME)).collect::<Vec<_>>()
    );
    for file in ["report.html", "result.json", "ledger.sqlite"] {
        ensure!(out.join(file).is_file(), "{file} is missing");
    }
    let page = std::fs::read_to_string(out.join("report.html"))?;
    ensure!(page.contains("<svg") && !page.contains("http-equiv=\"refresh\""), "the page has no plots");
    Ok(())
}

/// `toll trace` finds the trial in the results beside it, or where it is told to look; an unknown one is a usage fault that
/// names others.
fn traced() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE, VIRTIO], 1, "500ms", "");
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(60))?;
    expect(&output, 0)?;
    let result = programs::result(&out)?;
    let trace = |trial: &str, more: &[&str]| -> Result<std::process::Output> {
        let mut toll = Command::new(programs::directory()?.join("toll"));
        Ok(toll.arg("trace").arg(trial).args(more).current_dir(directory.path()).output()?)
    };
    let sends = |cell: &&CellResult| cell.key.direction == Direction::Send && cell.key.peer == Peer::Native;
    let cells = cells(&result.cells, "virtio");
    let cell = cells.into_iter().find(|cell| sends(cell)).context("virtio sends")?;
    let trial = cell.runs[0].trial.to_string();
    for more in [&[][..], &["--results", "out"], &["--results", "out/result.json"]] {
        let shown = trace(&trial, more)?;
        expect(&shown, 0)?;
        let told = String::from_utf8(shown.stdout)?;
        ensure!(told.starts_with(&format!("trial {trial}: virtio → native, bulk, block 0")), "{told}");
        ensure!(told.contains("a usual frame of") && told.contains("host-1 sent: number"), "{told}");
        ensure!(told.lines().any(|line| line.contains(" port ") && line.contains("µs")), "{told}");
    }
    let native = &self::cells(&result.cells, "native")[0].runs[0].trial;
    let shown = trace(&native.to_string(), &[])?;
    expect(&shown, 0)?;
    ensure!(String::from_utf8(shown.stdout)?.contains("no frame's way was noted"));
    let unknown = trace("0123456789ab", &[])?;
    expect(&unknown, 2)?;
    ensure!(String::from_utf8(unknown.stderr)?.contains(&trial), "others are named");
    expect(&trace("no id", &[])?, 2)?;
    expect(&trace(&trial, &["--results", "nowhere"])?, 4)
}

fn network_untouched() -> Result<()> {
    let before = interfaces()?;
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE, VIRTIO], 1, "500ms", "");
    let mut run = programs::start(&text, directory.path(), |_| {})?;
    let mut looks = 0;
    while run.child.try_wait()?.is_none() {
        let now = interfaces()?;
        ensure!(now == before, "the machine's network changed during the run: {before:?} became {now:?}");
        looks += 1;
        std::thread::park_timeout(Duration::from_millis(5));
    }
    ensure!(looks > 20, "the network was looked at {looks} times only");
    let (output, _) = run.end(Duration::from_secs(5))?;
    expect(&output, 0)?;
    ensure!(interfaces()? == before);
    let left = processes(&programs::directory()?)?;
    ensure!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

fn two_at_once() -> Result<()> {
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let text = campaign(&[NATIVE, SAME_STACK], 1, "300ms", "");
    let first = programs::start(&text, one.path(), |_| {})?;
    let second = programs::start(&text, two.path(), |_| {})?;
    for run in [first, second] {
        let (output, out) = run.end(Duration::from_secs(60))?;
        expect(&output, 0)?;
        ensure!(programs::result(&out)?.cells.iter().all(|cell| cell.counts.measured == 1));
    }
    Ok(())
}

fn json_alone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE], 1, "200ms", "");
    let run = programs::start(&text, directory.path(), |command| {
        command.args(["--format", "json"]);
    })?;
    let (output, out) = run.end(Duration::from_secs(30))?;
    expect(&output, 0)?;
    let printed = toll_e2e::documents::result(&output.stdout)?;
    ensure!(printed == programs::result(&out)?);
    Ok(())
}

fn gates() -> Result<()> {
    for (limit, code) in [("1Mbit", 0), ("9000Gbit", 1)] {
        let directory = tempfile::tempdir()?;
        let more = format!("  gates: [{{cells: {{arm: native}}, goodput: {{atLeast: {limit}}}}}]\n");
        let text = campaign(&[NATIVE], 3, "100ms", &more);
        let (output, _) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(30))?;
        expect(&output, code)?;
    }
    Ok(())
}

fn link_rate() -> Result<()> {
    for (rate, most) in [("100Mbit", 100e6), ("5Mbit", 5e6)] {
        let directory = tempfile::tempdir()?;
        let text = campaign(&[NATIVE], 1, "500ms", "").replace("10Gbit", rate);
        let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(60))?;
        expect(&output, 0)?;
        for cell in &programs::result(&out)?.cells {
            let bits = cell.median(&GOODPUT).context("no goodput")? * 8.0;
            ensure!(
                bits > 0.8 * most && bits < most,
                "{} on a link of {rate}: {bits} b/s",
                cell.key.direction
            );
        }
    }
    Ok(())
}

/// Two guests of one host on a private Ethernet, and one whose connections are its host's: neither needs a TAP, nor an address
/// of the wire.
fn off_the_wire() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let offloads = "{checksumOffload: true, tso: true, mergeableBuffers: true}";
    let hub = format!(
        "{{name: hub, guest: {{os: payload, adapter: {{virtioNet: {offloads}}}, port: {{hub: {{}}}}, capture: {{limit: \
         1MiB}}}}, peers: [same-arm]}}"
    );
    let nat = "{name: nat, guest: {os: payload, adapter: {virtioNet: {}}, port: {nat: {}}}, peers: [native]}";
    let text = campaign(&[NATIVE, &hub, nat], 1, "500ms, directions: [send, receive]", "");
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(60))?;
    expect(&output, 0)?;
    let result = programs::result(&out)?;
    for arm in ["hub", "nat"] {
        let cells = cells(&result.cells, arm);
        ensure!(cells.len() == 2, "{arm} has {} cells", cells.len());
        for cell in cells {
            ensure!(cell.counts.measured == 1, "{cell:#?}");
            let run = &cell.runs[0];
            ensure!(run.goodput_bytes_per_second.is_some_and(|goodput| goodput > 1e6), "{run:#?}");
            let frames = |end: &Option<EndReport>| end.as_ref().and_then(|end| end.frames);
            ensure!(frames(&run.a).is_some() && frames(&run.b).is_some() == (arm == "hub"), "{run:#?}");
        }
    }
    Ok(())
}

/// What stands between an adapter and its port does what it says: frames are slowed down and lost, and a capture holds
/// whole ones of 64 KiB.
fn decorated() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let offloads = "{checksumOffload: true, tso: true, mergeableBuffers: true}";
    let slow = "{name: slow, sameStack: {adapter: {pcnet: {}}, impairments: {rate: 20Mbit}}}";
    let lossy = "{name: lossy, guest: {os: payload, adapter: {virtioNet: {}}, impairments: {loss: 0.5%, delay: 1ms}}}";
    let captured = format!(
        "{{name: captured, guest: {{os: payload, adapter: {{virtioNet: {offloads}}}, capture: {{limit: 1MiB}}}}}}"
    );
    // The kernel sends: what is lost of its window it sends again at once.
    let text = campaign(&[NATIVE, slow, lossy, &captured], 1, "500ms, directions: [receive]", "");
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(60))?;
    expect(&output, 0)?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("Captures: "), "nobody is told of the captures");
    let result = programs::result(&out)?;
    for cell in &result.cells {
        let what = format!("{:?}", cell.key);
        ensure!(cell.counts.measured == 1, "{what} is not measured: {:?}", cell.runs);
        let flagged = |flag| cell.flags.keys().any(|found| *found == flag);
        let arm = cell.key.arm.as_str();
        ensure!(flagged(Flag::Impaired) == matches!(arm, "slow" | "lossy"), "{what}: {:?}", cell.flags);
        ensure!(flagged(Flag::Captured) == (arm == "captured"), "{what}: {:?}", cell.flags);
        let goodput = cell.median(&GOODPUT).context("no goodput")? * 8.0;
        ensure!(arm != "slow" || goodput < 21e6, "{what}: {goodput} bit/s");
        ensure!(arm != "lossy" || flagged(Flag::Retransmits), "{what}: {:?}", cell.flags);
    }
    let captures: Vec<_> = std::fs::read_dir(out.join("captures"))?.collect::<Result<_, _>>()?;
    ensure!(captures.len() == 1, "one end was captured: {captures:?}");
    for capture in captures {
        ensure!(capture.metadata()?.len() <= 1 << 20, "{capture:?} is over its limit");
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(capture.path()).args(["-T", "fields", "-e", "tcp.dstport", "-e", "tcp.len"]);
        let output = tshark.output()?;
        expect(&output, 0)?;
        let lines = String::from_utf8(output.stdout)?;
        let segments: u64 =
            lines.lines().filter_map(|line| line.split('\t').nth(1)?.parse::<u64>().ok()).sum();
        ensure!(segments > 100_000, "tshark sees {segments} bytes of payload in {capture:?}");
    }
    Ok(())
}
