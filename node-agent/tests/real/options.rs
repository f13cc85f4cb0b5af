//! The agent's command line: what it refuses and what it says then, names in place of addresses, probes.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;

use libtest_mimic::Failed;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use toll_protocol::facts::{HostFacts, Wire};

use crate::Test;
use crate::agents::{AGENT, Agent};
use crate::host::{Fleet, NIC};
use crate::namespace::Namespace;
use crate::orchestrator::Server;

pub const TESTS: &[Test] = &[
    ("options::what_can_not_be_is_refused_as_usage", what_can_not_be_is_refused_as_usage),
    ("options::what_does_not_fit_the_host_is_refused", what_does_not_fit_the_host_is_refused),
    ("options::facts_need_no_orchestrator", facts_need_no_orchestrator),
    ("options::a_name_is_dialled_and_probes_are_answered", a_name_is_dialled_and_probes_are_answered),
];

/// Where the agent answers probes, in a namespace of its own.
const HTTP: &str = "127.0.0.1:9477";
const LIMIT: Duration = Duration::from_secs(15);

fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command.args(arguments).env_remove("TOLL_LOG");
    for name in ["TOLL_ORCHESTRATOR", "TOLL_NODE_NAME", "TOLL_NIC", "TOLL_GUEST_ADDRESSES"] {
        command.env_remove(name);
    }
    command
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn what_can_not_be_is_refused_as_usage() -> Result<(), Failed> {
    let orchestrator = ["--orchestrator", "toll.example:4433"];
    for (arguments, expected) in [
        (&[][..], "--orchestrator"),
        (&["--nic", "eth0"], "--orchestrator"),
        (&["--orchestrator", "toll.example"], "write HOST:PORT"),
        (&["--orchestrator", "toll.example:0"], "write HOST:PORT"),
        (&[orchestrator[0], orchestrator[1], "--label", "rack"], "write KEY=VALUE"),
        (&[orchestrator[0], orchestrator[1], "--label=-rack=1"], "no key of a label"),
        (
            &[orchestrator[0], orchestrator[1], "--label", "rack=1", "--label", "rack=2"],
            "`rack` is given twice",
        ),
        (&[orchestrator[0], orchestrator[1], "--wire", "tap"], "exclusive, bridge, macvtap"),
        (&[orchestrator[0], orchestrator[1], "--guest-addresses", "10.0.0.9-10.0.0.1"], "range of addresses"),
        (&[orchestrator[0], orchestrator[1], "--http", "8080"], "--http"),
        (&[orchestrator[0], orchestrator[1], "facts"], "cannot be used with"),
        (&[orchestrator[0], orchestrator[1], "--nic", ""], "a value is required"),
        (&["run"], "unrecognized subcommand"),
    ] {
        let (code, text) = said(&agent(arguments).output()?);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let mut by_environment = agent(&[]);
    let (code, text) = said(&by_environment.env("TOLL_ORCHESTRATOR", "nowhere").output()?);
    assert!(code == Some(2) && text.contains("`nowhere` is no address to dial"), "{text}");
    Ok(())
}

/// Runs an agent that should refuse to in `namespace`.
fn refused(namespace: &Namespace, arguments: &[&str]) -> String {
    let descriptor = namespace.0.try_clone().expect("the namespace's file");
    let mut command = agent(arguments);
    // SAFETY: the closure makes one system call; the descriptor lives in it.
    unsafe { command.pre_exec(move || Ok(setns(&descriptor, CloneFlags::CLONE_NEWNET)?)) };
    let (code, text) = said(&command.output().expect("the agent runs"));
    assert_eq!(code, Some(4), "{arguments:?}: {text}");
    text
}

fn what_does_not_fit_the_host_is_refused() -> Result<(), Failed> {
    let (fleet, bridged) = (Fleet::shared(Wire::Macvtap), Fleet::shared(Wire::Bridge));
    let pki = fleet.authority.files("a");
    let pki = pki.to_str().expect("UTF-8");
    let common = ["--orchestrator", "127.0.0.1:4433", "--pki", pki];
    let why = |host: &Namespace, options: &[&str]| refused(host, &[&common[..], options].concat());
    assert!(why(&fleet.a, &[]).contains("name one with --nic"), "no default route");
    assert!(why(&fleet.a, &["--nic", "nic7"]).contains("there is no network interface nic7"));
    assert!(why(&fleet.a, &["--nic", "lo"]).contains("is the loopback interface"));
    assert!(why(&fleet.a, &["--nic", NIC, "--wire", "bridge"]).contains("test0 is no bridge"));
    for (range, expected) in [
        ("10.78.0.1", "its network is 10.77.0.0/24"),
        ("10.77.0.1-10.77.0.4", "10.77.0.1 is the interface's own address"),
        ("10.77.0.250-10.77.0.255", "10.77.0.255 is its broadcast address"),
    ] {
        let text = why(&fleet.a, &["--nic", NIC, "--guest-addresses", range]);
        assert!(text.contains(expected), "{text}");
    }
    // A port of a bridge hears nothing of its own.
    let text = why(&bridged.a, &["--nic", NIC]);
    assert!(text.contains("test0 is a port of br0") && text.contains("--wire bridge"), "{text}");
    assert!(
        why(&bridged.a, &["--nic", "br0", "--wire", "macvtap"])
            .contains("br0 is a bridge: use --wire bridge")
    );
    let text = why(&fleet.a, &["--nic", NIC, "--http", "10.77.0.99:80"]);
    assert!(text.contains("10.77.0.99:80 (--http)"), "{text}");
    let text = why(&fleet.a, &["--nic", NIC, "--key", "/nowhere/key.pem"]);
    assert!(text.contains("the private key can't be read from /nowhere/key.pem"), "{text}");
    // What has no end, and what others can read.
    for option in ["--ca", "--certificate", "--key"] {
        let text = why(&fleet.a, &["--nic", NIC, option, "/dev/zero"]);
        assert!(text.contains("/dev/zero: it is neither a regular file nor a pipe"), "{text}");
    }
    let open = tempfile::NamedTempFile::new()?;
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o644))?;
    let text = why(&fleet.a, &["--nic", NIC, "--key", open.path().to_str().expect("UTF-8")]);
    assert!(text.contains("the private key is a secret") && text.contains("chmod 600"), "{text}");
    let text = refused(&fleet.a, &["--orchestrator", "127.0.0.1:1", "--pki", "/nowhere"]);
    assert!(text.contains("/nowhere/certificate.pem"), "{text}");
    Ok(())
}

fn facts_need_no_orchestrator() -> Result<(), Failed> {
    // In a container of a DaemonSet the variables are there.
    let output = agent(&["facts"]).env("TOLL_ORCHESTRATOR", "toll.example:4433").output()?;
    let facts: HostFacts = serde_json::from_slice(&output.stdout)?;
    assert!(!facts.kernel.is_empty());
    Ok(())
}

/// The status and body that the agent answers with.
async fn ask(path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(HTTP).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: toll\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Asks until the answer is as wanted.
async fn answered(path: &str, wanted: &[&str]) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let mut last = None;
    let asking = async {
        loop {
            look.tick().await;
            last = ask(path).await;
            if last.as_ref().is_some_and(|answer| wanted.iter().all(|part| answer.contains(part))) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(LIMIT, asking).await;
    assert!(in_time.is_ok(), "{path}: {wanted:?} wanted, {last:?} answered");
}

fn a_name_is_dialled_and_probes_are_answered() -> Result<(), Failed> {
    let fleet = Fleet::shared(Wire::Macvtap);
    let options = ["--nic", NIC, "--http", HTTP].map(str::to_owned);
    let start =
        |orchestrator: &str| Agent::start(&fleet.a, &fleet.authority, "a", &orchestrator, true, &options);
    fleet.a.set_up("lo");
    fleet.a.run(async || {
        let agent = start("nowhere.invalid:4433");
        answered("/readyz", &["503", "the host `nowhere.invalid` could not be found"]).await;
        answered("/livez", &["200"]).await;
        assert!(agent.terminate().await.success());

        let server = Server::listen(&fleet.authority, 0);
        let agent = start(&format!("localhost:{}", server.port));
        let peer = server.accept().await;
        assert_eq!(peer.name, "a");
        answered("/readyz", &["200"]).await;
        answered("/metrics", &["200", "text/plain; version=0.0.4"]).await;
        peer.connection.close(quinn::VarInt::from_u32(7), b"upgrade");
        server.close();
        answered("/readyz", &["503", "there is no connection to the orchestrator: "]).await;
        assert!(agent.terminate().await.success());
        assert!(ask("/livez").await.is_none(), "nobody listens any more");
    });
    Ok(())
}
