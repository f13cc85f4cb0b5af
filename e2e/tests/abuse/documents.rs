//! Documents that are short as written and large as read, from clients that stay or leave at once; and one that is durable.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::fleet::Fleet;
use toll_e2e::machine;
use toll_e2e::priority::{self, no_priority};
use toll_e2e::suite::test;
use toll_orchestrator::ledger::Ledger;

use crate::health::{self, Health};

/// How often each document is answered during the test.
const ROUNDS: usize = 6;
/// Submitters at the same time: each of them has one document under way.
const SUBMITTERS: usize = 8;
/// Files of the API's token and of certificates are their owner's alone.
const OWNERS: u32 = 0o600;
const TOKEN: &str = "abuse";
const GOOD: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: good}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}]
  workloads: [{name: bulk, stream: {}}]
";

pub fn tests() -> Vec<Trial> {
    vec![test(
        "documents_that_grow_when_they_are_read_slow_nobody_down_and_a_durable_one_stops_no_start",
        &[machine::no_root(), no_priority()],
        documents,
    )]
}

/// What is submitted, and words of the refusal.
fn bombs() -> Vec<(String, &'static str)> {
    let mut anchors = format!("a0: &a0 [{}]\n", ["x"; 60_000].join(", "));
    for level in 1..9 {
        let before = level - 1;
        anchors.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", ")));
    }
    let mistakes = "    - {name: A}\n".repeat(20_000);
    vec![
        (anchors, "with every alias written out"),
        ("[".repeat(80_000), "nested deeper"),
        ("[".repeat(1 << 20), "nested deeper"),
        ("{a: ".repeat(1 << 18), "nested deeper"),
        ("- ".repeat(1 << 19), "nested deeper"),
        ("- a\n".repeat(1 << 18), "more than"),
        ((0..60_000).map(|n| format!("%TAG !a{n}! b\n")).collect(), "begin with `%`"),
        (GOOD.replace("arms: [{name: native, native: {}}]", &format!("arms:\n{mistakes}")), "20000 entries"),
    ]
}

/// Sends a request and gives the answer, or leaves without one.
fn ask(request: &str, body: &str, stay: bool) -> Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:8080")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let head = format!(
        "{request} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    if stay {
        stream.read_to_string(&mut answer)?;
    }
    Ok(answer)
}

fn documents() -> Result<()> {
    let mut fleet = Fleet::new(1)?;
    let token = fleet.path("token");
    fs::write(&token, TOKEN)?;
    fs::set_permissions(&token, Permissions::from_mode(OWNERS))?;
    let token = token.to_str().context("a path")?.to_owned();
    fleet.start_orchestrator(&["--token-file", &token])?;
    let mut health = Health::watch(&fleet)?;
    flooded(&fleet)?;
    while !health.is_known() {
        flooded(&fleet)?;
    }
    let good = health.is_good(&fleet);
    println!("{health}");
    good?;
    let answer = fleet.wire.run(|| ask("POST /api/v1/campaigns?id=good", GOOD, true))??;
    ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    // A document that an older version took is durable: the next process leaves that campaign alone.
    fleet.orchestrator.take().context("it runs")?.kill()?;
    let campaigns = fleet.path("data/campaigns");
    let mut header = Ledger::open(&campaigns.join("good/ledger.sqlite"))?.header().clone();
    header.manifest = bombs().swap_remove(0).0;
    fs::create_dir(campaigns.join("bomb"))?;
    drop(Ledger::create(&campaigns.join("bomb/ledger.sqlite"), &header)?);
    fleet.start_orchestrator(&["--token-file", &token])?;
    let answer = fleet.wire.run(|| ask("GET /api/v1/campaigns/good", "", true))??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    health::is_small(fleet.orchestrator.as_ref().context("it runs")?.child.id())
}

/// Submits documents until each has been answered some times.
fn flooded(fleet: &Fleet) -> Result<()> {
    let bombs = bombs();
    let next = AtomicUsize::new(0);
    let all = bombs.len() * ROUNDS;
    let submit = || -> Result<()> {
        priority::comes_last()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= 2 * all {
                return Ok(());
            }
            // Of each document every second submitter leaves.
            let ((body, words), stay) = (&bombs[number / 2 % bombs.len()], number.is_multiple_of(2));
            let answer = ask("POST /api/v1/campaigns", body, stay)?;
            ensure!(
                !stay || answer.starts_with("HTTP/1.1 422") && answer.contains(words),
                "{body:.20}: {answer:.500}"
            );
        }
    };
    std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..SUBMITTERS)
            .map(|_| scope.spawn(|| fleet.wire.run(submit).map_err(anyhow::Error::from)?))
            .collect();
        for submitter in submitters {
            submitter.join().map_err(|_| anyhow::anyhow!("a submitter panicked"))??;
        }
        Ok(())
    })
}
