//! What the service keeps: its data directory is one process's, whatever lies in it; and what clients print of it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, ORCHESTRATOR, no_fleet, shell};
use toll_e2e::machine::wait_for;
use toll_e2e::programs::{self, expect};
use toll_e2e::prometheus::get;
use toll_protocol::service::{AgentState, AgentStatus, CampaignPage, LeftOut};

use crate::measuring::on;
use toll_e2e::suite::test;

/// An arm that no host can run: it has no such CPU.
const NOWHERE: &str =
    "{name: nowhere, sameStack: {adapter: {virtioNet: {}}, pin: {vcpu: 1000}}, peers: [native]}";
/// Nobody in particular.
const USER: u32 = 12_345;

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet()];
    vec![
        test("a_second_orchestrator_on_a_data_directory_is_refused_and_costs_nothing", &lacks, second),
        test("other_users_lock_nothing_of_an_orchestrator", &lacks, strangers),
        test("clients_tell_of_failures_and_gates_as_toll_run_does", &lacks, clients),
        test("a_directory_with_broken_campaigns_is_served_and_they_are_named", &lacks, left_out),
        test("agents_keep_results_of_a_campaign_that_can_t_be_read_for_now", &lacks, results_wait),
    ]
}

fn second() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 6, "300ms", "pairs: all"))?;
        wait_for("a trial", LIMIT, || Ok((!fleet.status(&id)?.running.is_empty()).then_some(())))?;
        let (data, pki) = (fleet.path("data"), fleet.path("pki/orchestrator"));
        let paths = [data.as_os_str(), "--pki".as_ref(), pki.as_os_str()];
        let ports = ["serve", "--listen", "10.91.0.254:7448", "--http", "127.0.0.1:8081", "--data"];
        let output = fleet.run(ports.map(std::ffi::OsStr::new).into_iter().chain(paths))?;
        expect(&output, 4)?;
        let words = String::from_utf8(output.stderr)?;
        let first = fleet.orchestrator.as_ref().context("it runs")?.id();
        ensure!(words.contains(&format!("is served already, by process {first} on ")), "{words}");
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        Ok(())
    })
}

/// Whoever can open a file to read it can lock it: one who holds the lock keeps the next orchestrator from starting, one who
/// reads a ledger without an end stops its campaign.
fn strangers() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
        // The way there is open to everybody, as /var/lib/toll is.
        shell(&fleet.wire, &format!("chmod 755 {}", fleet.directory.path().display()))?;
        let stranger = |path: &str| -> Result<String> {
            let mut flock = Command::new("setpriv");
            flock.args(["--reuid", &USER.to_string(), "--clear-groups", "flock", "--nonblock", "--shared"]);
            let output = flock.arg(fleet.path(path)).arg("true").output()?;
            ensure!(!output.status.success(), "{path} was locked");
            Ok(String::from_utf8(output.stderr)?)
        };
        for path in ["data/lock", "data/campaigns", &format!("data/campaigns/{id}/ledger.sqlite")] {
            let words = stranger(path)?;
            ensure!(words.contains("Permission denied"), "{path}: {words}");
        }
        // What keeps them out is the files' own: the directory is not.
        ensure!(stranger("data/nothing")?.contains("Permission denied"), "they can make files there");
        ensure!(stranger("data").is_err(), "they don't come as far as the data directory");
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        Ok(())
    })
}

fn clients() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let gate = "gates: [{cells: {arm: native}, goodput: {atLeast: 900Gbit}}]";
        let file = fleet.path("campaign.yaml");
        fs::write(&file, fleet_campaign(&[NATIVE, NOWHERE], 1, "200ms", gate))?;
        let watched = fleet.run(["submit".as_ref(), "--watch".as_ref(), file.as_os_str()])?;
        expect(&watched, 4)?;
        let id = fleet.campaigns()?.pop().context("a campaign")?.id;
        let (mut asked, reported) = (Vec::new(), ["results", "--format", "text", &id]);
        for (arguments, code) in [(&["watch", &id][..], 4), (&["status", &id], 0), (&reported, 4)] {
            let output = fleet.run(arguments)?;
            expect(&output, code)?;
            asked.push(String::from_utf8(output.stdout)?);
        }
        let table = asked.pop().context("what toll results prints")?;
        for what in ["not run  nowhere", "CPU", "Gates", "inconclusive", "goodput at least 900Gbit"] {
            ensure!(table.contains(what), "{what} is not in:\n{table}");
        }
        asked.push(String::from_utf8(watched.stdout)?);
        for printed in asked {
            ensure!(printed.ends_with(&table), "not the table of toll results:\n{printed}\n{table}");
        }
        // So does the ledger by itself.
        let ledger = fleet.path("data/campaigns").join(&id);
        let (ledger, out) = (ledger.as_os_str(), fleet.path("again"));
        let output = fleet.run(["report".as_ref(), ledger, "--out".as_ref(), out.as_os_str()])?;
        expect(&output, 4)?;
        let printed = String::from_utf8(output.stdout)?;
        ensure!(printed.starts_with(&table) && out.join("report.html").exists(), "{printed}");
        let of = |directory: &std::path::Path| fs::read(directory.join("result.json"));
        ensure!(of(&out)? == of(&fleet.path("data/campaigns").join(&id))?, "another result");
        Ok(())
    })
}

/// The directory of a campaign is away when the next orchestrator begins, as a file system that is not mounted yet. Another
/// one stays away.
fn results_wait() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        // The first trial goes on for long after it is seen to run.
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "2s", "pairs: all"))?;
        wait_for("a trial", LIMIT, || Ok((!fleet.status(&id)?.running.is_empty()).then_some(())))?;
        fleet.orchestrator.take().context("it runs")?.kill()?;
        let (campaign, away) = (fleet.path("data/campaigns").join(&id), fleet.path("away"));
        fs::rename(&campaign, &away)?;
        std::os::unix::fs::symlink(fleet.path("back"), &campaign)?;
        std::os::unix::fs::symlink(fleet.path("nowhere"), fleet.path("data/campaigns/elsewhere"))?;
        fleet.start_orchestrator(&[])?;
        fleet.wait_for_agents(2)?;
        let barred = |agent: &AgentStatus| agent.state == AgentState::Barred;
        ensure!(fleet.agents()?.iter().all(barred), "{:?}", fleet.agents()?);
        ensure!(fleet.status(&id).is_err(), "it can't be read");
        fs::rename(&away, fleet.path("back"))?;
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        fleet.nothing_left()
    })
}

fn left_out() -> Result<()> {
    on(Fleet::new(1)?, |fleet| {
        fleet.start_orchestrator(&[])?;
        let campaign = fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all");
        let ids = [fleet.submit(&campaign)?, fleet.submit(&campaign)?, fleet.submit(&campaign)?];
        fleet.orchestrator.take().context("it runs")?.kill()?;
        let campaigns = fleet.path("data/campaigns");
        fs::write(campaigns.join(&ids[1]).join("ledger.sqlite"), "cut off")?;
        fs::write(campaigns.join("notes.txt"), "a stray file")?;
        // A user who may not read one of them: root may read everything.
        let directory = fleet.directory.path().display().to_string();
        let hidden = format!("{directory}/data/campaigns/{}", ids[2]);
        shell(
            &fleet.wire,
            &format!(
                "cp {} {directory}/toll; chmod 755 {directory}; chown -R {USER} {directory}/data {directory}/pki {directory}/run; \
                 chown 0 {hidden}; chmod 700 {hidden}",
                programs::directory()?.join("toll").display()
            ),
        )?;
        let mut serve = Command::new("setpriv");
        serve.args(["--reuid", &USER.to_string(), "--clear-groups"]).arg(fleet.path("toll"));
        serve.args(["serve", "--listen", ORCHESTRATOR, "--data"]).arg(fleet.path("data"));
        serve.arg("--pki").arg(fleet.path("pki/orchestrator")).env("TOLL_LOG", "info");
        // Where the commands below look for it.
        serve.arg("--socket").arg(fleet.path("run/toll.sock"));
        let process = fleet.start(serve, "orchestrator", fleet.wire.as_fd().as_raw_fd())?;
        let log = process.log.clone();
        fleet.orchestrator = Some(process);
        wait_for("the orchestrator's answer", LIMIT, || Ok(fleet.agents().ok().map(drop)))?;
        let ask = |path: &str| get(&fleet.wire_path(), &format!("http://127.0.0.1:8080{path}"), &[]);
        let page: CampaignPage = serde_json::from_str(&ask("/api/v1/campaigns")?)?;
        let listed: Vec<&str> = page.items.iter().map(|status| status.id.as_str()).collect();
        ensure!(listed == [&ids[0]] && page.left_out == 3, "{page:?}");
        let told: LeftOut = serde_json::from_str(&ask("/api/v1/left-out")?)?;
        let metrics = wait_for("the metrics", LIMIT, || {
            Ok(Some(ask("/metrics")?).filter(|text| text.contains("toll_left_out")))
        })?;
        ensure!(metrics.contains("toll_left_out{tried_again=\"yes\"} 1"), "{metrics}");
        ensure!(metrics.contains("toll_left_out{tried_again=\"no\"} 2"), "{metrics}");
        let (printed, log) = (fleet.toll(["status"])?, fs::read_to_string(log)?);
        for (name, again) in [(ids[1].as_str(), false), ("notes.txt", false), (&ids[2], true)] {
            let entry = told.entries.iter().find(|entry| entry.name == name).context(name.to_owned())?;
            ensure!(entry.tried_again == again, "{entry:?}");
            ensure!(printed.contains(&format!("{name}: {}", entry.reason)), "{printed}");
            ensure!(log.contains(name), "{log}");
        }
        shell(&fleet.wire, &format!("chown {USER} {hidden}"))?;
        wait_for("another look", LIMIT, || Ok(fleet.status(&ids[2]).ok()))?;
        Ok(())
    })
}
