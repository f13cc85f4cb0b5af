//! Campaigns on a fleet of four hosts.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, PCNET, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet};
use toll_e2e::machine::{no_kvm, no_tun, wait_for};
use toll_e2e::suite::test;
use toll_protocol::facts::Wire;
use toll_protocol::service::CampaignState;

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![
        test("a_fleet_measures_disjoint_pairs_at_once_and_its_hosts_dont_notice", &lacks, measure),
        test("two_campaigns_share_a_fleet", &lacks[..1], two_campaigns),
        test("a_campaign_selects_hosts_by_label_and_waits_for_them", &lacks[..1], labels),
        test("a_cancelled_campaign_keeps_what_was_measured", &lacks[..1], cancel),
        test("a_bad_campaign_is_refused_with_its_problems", &lacks[..1], bad_campaign),
    ]
}

/// Runs `body` on a fleet, and adds the logs to what went wrong.
pub fn on(mut fleet: Fleet, body: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<()> {
    body(&mut fleet).with_context(|| fleet.logs())
}

fn measure() -> Result<()> {
    on(Fleet::up(4)?, |fleet| {
        let before: Vec<String> = (0..4).map(|index| fleet.network(index)).collect::<Result<_>>()?;
        let bystanders = fleet.bystanders()?;
        let id = fleet.submit(&fleet_campaign(&[NATIVE, PCNET, VIRTIO], 1, "300ms", "pairs: ring"))?;
        let mut most = 0;
        wait_for("two trials at once", LIMIT, || {
            most = most.max(fleet.status(&id)?.running.len());
            Ok((most >= 2).then_some(()))
        })?;
        let (result, status) = fleet.result(&id, Duration::from_secs(120))?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        ensure!(status.state == CampaignState::Finished);
        ensure!(result.provenance.environment == "fleet");
        let wires = result.provenance.hosts.iter().all(|host| host.facts.wire == Some(Wire::Macvtap));
        ensure!(wires && result.provenance.hosts.len() == 4);
        for (bystander, index) in bystanders.into_iter().zip(0..) {
            let noticed = bystander.stop()?;
            ensure!(noticed.answers > 100, "a bystander stood still: {noticed:?}");
            ensure!(fleet.network(index)? == before[index], "the network of a host has changed");
        }
        fleet.nothing_left()?;
        // The same document from the command line, and a page.
        let out = fleet.path("results");
        fleet.toll(["results", &id, "--out", out.to_str().context("UTF-8")?])?;
        ensure!(out.join("report.html").exists() && out.join("result.json").exists());
        // A frame's way, of the service's result.
        let run = result.cells.iter().find(|cell| cell.key.arm == "pcnet").and_then(|cell| cell.runs.first());
        let trial = run.context("pcnet was measured")?.trial.to_string();
        let told = fleet.toll(["trace", &trial, "--campaign", &id])?;
        ensure!(told.starts_with(&format!("trial {trial}: pcnet")), "{told}");
        Ok(())
    })
}

fn two_campaigns() -> Result<()> {
    on(Fleet::up(4)?, |fleet| {
        let campaign = fleet_campaign(&[NATIVE], 2, "200ms", "pairs: all");
        let ids = [fleet.submit(&campaign)?, fleet.submit(&campaign)?];
        ensure!(ids[0] != ids[1], "two campaigns have one id");
        for id in &ids {
            let (_, status) = fleet.result(id, LIMIT)?;
            let counts = status.counts.context("counts")?;
            ensure!(counts.measured == counts.planned && counts.planned == 24, "{counts:?}");
        }
        let all = fleet.toll(["status"])?;
        ensure!(ids.iter().all(|id| all.contains(id.as_str())), "{all}");
        Ok(())
    })
}

fn labels() -> Result<()> {
    let mut fleet = Fleet::new(3)?;
    fleet.start_orchestrator(&[])?;
    fleet.start_agent(0, &["--label", "rack=a"])?;
    fleet.start_agent(1, &["--label", "rack=b"])?;
    fleet.wait_for_agents(2)?;
    on(fleet, |fleet| {
        let campaign = fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all")
            .replace("select: {}", "select: {matchLabels: {rack: a}}");
        let id = fleet.submit(&campaign)?;
        let status = fleet.status(&id)?;
        ensure!(status.state == CampaignState::Pending, "{status:?}");
        let waits = wait_for("the reason", LIMIT, || Ok(fleet.status(&id)?.reason))?;
        ensure!(waits.contains("1 of at least 2"), "{waits}");
        fleet.start_agent(2, &["--label", "rack=a"])?;
        let (result, _) = fleet.result(&id, LIMIT)?;
        let hosts: Vec<&str> = result.provenance.hosts.iter().map(|host| host.name.as_str()).collect();
        ensure!(hosts == ["host-1", "host-3"], "{hosts:?}");
        Ok(())
    })
}

fn cancel() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 50, "300ms", "pairs: all"))?;
        wait_for("a result", LIMIT, || {
            let counts = fleet.status(&id)?.counts;
            Ok(counts.is_some_and(|counts| counts.measured > 0).then_some(()))
        })?;
        fleet.toll(["cancel", &id])?;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured > 0 && counts.skipped > 0 && counts.lost <= 1, "{counts:?}");
        ensure!(status.state == CampaignState::Cancelled && result.provenance.interrupted);
        let watched = fleet.run(["watch", &id])?;
        ensure!(watched.status.code() == Some(130), "{watched:?}");
        fleet.nothing_left()
    })
}

fn bad_campaign() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let file = fleet.path("bad.yaml");
        let bad = fleet_campaign(&[NATIVE, "{name: native, guest: {os: payload, adapter: {}}}"], 0, "1s", "");
        std::fs::write(&file, bad)?;
        // The client finds it; a client of another kind is told by the service.
        let told = fleet.run(["submit".as_ref(), file.as_os_str()])?;
        ensure!(told.status.code() == Some(3), "{told:?}");
        let document = std::fs::read_to_string(&file)?;
        let mut stream = UnixStream::connect(fleet.socket())?;
        let length = document.len();
        write!(
            stream,
            "POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{document}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 422"), "{answer}");
        for problem in ["two arms are named `native`", "must be exactly one adapter", "spec.blocks"] {
            ensure!(answer.contains(problem), "{problem} is not in {answer}");
        }
        Ok(())
    })
}
