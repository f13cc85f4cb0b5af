//! Rogue HTTP clients: other users of the machine, a forwarded port, pages under another name, readers that take their time,
//! and files that others can read or that have no end.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, enter, no_fleet};
use toll_e2e::machine::wait_for;
use toll_e2e::programs;
use toll_e2e::suite::test;

/// Where the orchestrator's HTTP API is, in the namespace of the wire.
const HTTP: &str = "127.0.0.1:8080";
/// A user that owns nothing here.
const STRANGER: u32 = 54_321;
/// A user with a service of their own.
const USER: u32 = 12_345;
/// Readers that take nothing.
const READERS: usize = 250;
/// What the orchestrator may take of the machine's memory meanwhile.
const MOST_MEMORY: u64 = 256 << 20;

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet()];
    vec![
        test("other_users_and_forwarded_ports_change_nothing", &lacks, strangers),
        test("a_plain_users_commands_find_their_service_and_nobody_elses_do", &lacks, plain_users_service),
        test("a_socket_of_a_killed_service_is_taken_over", &lacks, killed),
        test("slow_readers_of_a_long_result_take_neither_memory_nor_turns", &lacks, slow_readers),
        test("files_that_others_can_read_or_without_an_end_are_refused", &lacks, files),
    ]
}

fn on(mut fleet: Fleet, body: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<()> {
    body(&mut fleet).with_context(|| fleet.logs())
}

/// `toll` where a user without rights finds it.
fn toll_for_all() -> Result<(tempfile::TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let program = directory.path().join("toll");
    fs::copy(programs::directory()?.join("toll"), &program)?;
    Ok((directory, program))
}

/// Runs `toll` as another user, in the namespace of the wire.
fn as_user(
    fleet: &Fleet,
    toll: &Path,
    user: u32,
    server: Option<&str>,
    arguments: &[&str],
) -> Result<Output> {
    let mut command = Command::new(toll);
    command.args(arguments).stdin(Stdio::null()).uid(user).gid(user).current_dir("/");
    command.env_remove("TOLL_SERVER").env_remove("XDG_RUNTIME_DIR");
    command.envs(server.map(|server| ("TOLL_SERVER", server)));
    // A namespace is entered with the rights of root, which the user has no more when `enter` would do it.
    Ok(fleet.wire.run(|| command.output())??)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends a request, and reads the answer to its end.
fn ask(mut stream: impl Read + Write, request: &str, document: &str) -> Result<String> {
    let length = document.len();
    write!(stream, "{request}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{document}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn connect(fleet: &Fleet, to: &str) -> Result<TcpStream> {
    Ok(fleet.wire.run(|| TcpStream::connect(to))??)
}

/// Forwards one connection to the orchestrator, as socat does; where to connect.
fn forward(fleet: &Fleet) -> Result<String> {
    let listener = fleet.wire.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = listener.local_addr()?.to_string();
    let mut to = connect(fleet, HTTP)?;
    std::thread::spawn(move || -> io::Result<()> {
        let (mut from, _) = listener.accept()?;
        let (mut asks, mut asked) = (from.try_clone()?, to.try_clone()?);
        std::thread::spawn(move || io::copy(&mut asks, &mut asked));
        io::copy(&mut to, &mut from)?;
        from.shutdown(Shutdown::Both)
    });
    Ok(address)
}

fn strangers() -> Result<()> {
    let mut fleet = Fleet::new(1)?;
    fleet.start_orchestrator(&[])?;
    on(fleet, |fleet| {
        let document = fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all");
        let id = fleet.submit(&document)?;
        let (_programs, toll) = toll_for_all()?;
        let campaign = toll.with_file_name("campaign.yaml");
        fs::write(&campaign, &document)?;
        let campaign = campaign.to_str().context("UTF-8")?;
        let socket = format!("unix:{}", fleet.socket().display());
        // The Unix socket is its owner's: nobody else even connects.
        let output = as_user(fleet, &toll, STRANGER, Some(&socket), &["submit", campaign])?;
        ensure!(output.status.code() == Some(4) && said(&output).contains("Permission denied"), "{output:?}");
        // Where an owner opens it, others are still others.
        fs::set_permissions(fleet.directory.path(), Permissions::from_mode(0o755))?;
        fs::set_permissions(fleet.path("run"), Permissions::from_mode(0o755))?;
        fs::set_permissions(fleet.socket(), Permissions::from_mode(0o666))?;
        let output = as_user(fleet, &toll, STRANGER, Some(&socket), &["status"])?;
        ensure!(output.status.success() && said(&output).contains(&id), "{output:?}");
        for server in [Some(socket.as_str()), Some("http://127.0.0.1:8080"), None] {
            for change in [["submit", campaign], ["cancel", &id]] {
                let output = as_user(fleet, &toll, STRANGER, server, &change)?;
                let refused =
                    said(&output).contains("changes are taken at the orchestrator's Unix socket alone");
                ensure!(output.status.code() == Some(4) && refused, "{server:?} {change:?}: {output:?}");
            }
        }
        // Whoever forwards a port of this machine to others does not let them in.
        let request = "POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost";
        for to in [HTTP.to_owned(), forward(fleet)?] {
            let answer = ask(connect(fleet, &to)?, request, &document)?;
            ensure!(answer.starts_with("HTTP/1.1 403"), "{to}: {answer}");
        }
        let answer = ask(connect(fleet, HTTP)?, "GET /api/v1/agents HTTP/1.1\r\nHost: rebound.example", "")?;
        ensure!(answer.starts_with("HTTP/1.1 421"), "{answer}");
        let campaigns = fleet.campaigns()?;
        ensure!(campaigns.len() == 1 && !campaigns[0].state.is_over(), "{campaigns:?}");
        Ok(())
    })
}

fn give(path: &Path) -> Result<()> {
    nix::unistd::chown(path, Some(USER.into()), Some(USER.into()))?;
    Ok(())
}

/// A service of a user without rights, whose socket is where XDG says.
fn plain_users_service() -> Result<()> {
    on(Fleet::new(1)?, |fleet| {
        let (programs, toll) = toll_for_all()?;
        let campaign = programs.path().join("campaign.yaml");
        fs::write(&campaign, fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
        let campaign = campaign.to_str().context("UTF-8")?;
        let home = tempfile::tempdir()?;
        let pki = home.path().join("pki");
        fs::create_dir(&pki)?;
        for file in ["ca.pem", "certificate.pem", "key.pem"] {
            fs::copy(fleet.path("pki/orchestrator").join(file), pki.join(file))?;
            give(&pki.join(file))?;
        }
        give(&pki)?;
        give(home.path())?;
        let runtime = home.path().to_owned();
        let own = |arguments: &[&str]| {
            let mut command = Command::new(&toll);
            command.args(arguments).stdin(Stdio::null()).current_dir("/");
            command.env_remove("TOLL_SERVER").env_remove("TOLL_SOCKET").env("XDG_RUNTIME_DIR", &runtime);
            command
        };
        let mut serve = own(&["serve", "--listen", "127.0.0.1:7447", "--http", "127.0.0.1:8080"]);
        serve.arg("--pki").arg(&pki).arg("--data").arg(home.path().join("data")).uid(USER).gid(USER);
        let log = fs::File::create(fleet.path("plain.log"))?;
        serve.stdout(Stdio::null()).stderr(log);
        let child = fleet.wire.run(|| serve.spawn())??;
        fleet.orchestrator = Some(toll_e2e::fleet::Process { child, log: fleet.path("plain.log") });
        wait_for("the orchestrator", LIMIT, || Ok(fleet.agents().ok().map(drop)))?;
        let socket = home.path().join("toll/toll.sock");
        ensure!(fs::symlink_metadata(&socket)?.permissions().mode() & 0o777 == 0o600);
        let mut submit = own(&["submit", "--id", "mine", campaign]);
        submit.uid(USER).gid(USER);
        let output = fleet.wire.run(|| submit.output())??;
        ensure!(output.status.success() && said(&output).trim() == "mine", "{output:?}");
        // Root may, if it says where.
        let mut submit = own(&["submit", "--id", "roots", "--server"]);
        submit.arg(format!("unix:{}", socket.display())).arg(campaign);
        let output =
            enter(&mut submit, std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&fleet.wire)))
                .output()?;
        ensure!(output.status.success(), "{output:?}");
        let mut submit = own(&["submit", "--id", "theirs", campaign]);
        submit.uid(STRANGER).gid(STRANGER);
        let output = fleet.wire.run(|| submit.output())??;
        ensure!(output.status.code() == Some(4) && said(&output).contains("Unix socket"), "{output:?}");
        ensure!(fleet.campaigns()?.len() == 2);
        // It goes with its service.
        let mut orchestrator = fleet.orchestrator.take().context("it runs")?;
        orchestrator.signal(Signal::SIGTERM)?;
        ensure!(orchestrator.end()? == Some(0) && !socket.exists());
        Ok(())
    })
}

fn killed() -> Result<()> {
    let mut fleet = Fleet::new(1)?;
    fleet.start_orchestrator(&[])?;
    on(fleet, |fleet| {
        let document = fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all");
        let id = fleet.submit(&document)?;
        // A second one on the same socket does not push the first one aside.
        let mut command = programs::program("toll")?;
        command.args(["serve", "--listen", "127.0.0.1:7448", "--http", "127.0.0.1:8081", "--data"]);
        command.arg(fleet.path("other")).arg("--pki").arg(fleet.path("pki/orchestrator"));
        command.env("TOLL_SOCKET", fleet.socket()).stdin(Stdio::null());
        let output = fleet.wire.run(|| command.output())??;
        ensure!(
            output.status.code() == Some(4) && said(&output).contains("another toll serve listens at"),
            "{output:?}"
        );
        fleet.orchestrator.take().context("it runs")?.kill()?;
        ensure!(fleet.socket().exists(), "a killed process has no time to remove it");
        let output = fleet.run(["status"])?;
        ensure!(
            output.status.code() == Some(4) && said(&output).contains("is toll serve running there"),
            "{output:?}"
        );
        fleet.start_orchestrator(&[])?;
        ensure!(fleet.toll(["status"])?.contains(&id));
        fleet.submit(&document).map(drop)
    })
}

/// What has not risen for so long rises no more.
const STILL: Duration = Duration::from_secs(1);

/// What a process holds of the machine's memory.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn slow_readers() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
        fleet.result(&id, LIMIT)?;
        // A long campaign's result, by the same runs again and again.
        let mut orchestrator = fleet.orchestrator.take().context("it runs")?;
        orchestrator.signal(Signal::SIGTERM)?;
        orchestrator.end()?;
        let file = fleet.path("data/campaigns").join(&id).join("result.json");
        let mut result: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let runs = result["cells"][0]["runs"].as_array_mut().context("runs")?;
        let run = runs[0].clone();
        let times = (6 << 20) / serde_json::to_string(&run)?.len();
        runs.resize(times, run);
        fs::write(&file, serde_json::to_vec(&result)?)?;
        fleet.start_orchestrator(&[])?;
        let pid = fleet.orchestrator.as_ref().context("it runs")?.child.id();
        let request = format!("GET /api/v1/campaigns/{id}/result HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut slow = Vec::new();
        let mut most = 0;
        for _ in 0..READERS {
            let mut stream = connect(fleet, HTTP)?;
            stream.write_all(request.as_bytes())?;
            slow.push(stream);
            let begin = Instant::now();
            let answer = ask(connect(fleet, HTTP)?, "GET /livez HTTP/1.1\r\nHost: localhost", "")?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            ensure!(begin.elapsed() < Duration::from_secs(1), "a probe took {:?}", begin.elapsed());
            most = most.max(memory(pid)?);
        }
        // All results that are asked for are being made, two at a time; they are sent to nobody.
        let mut risen = Instant::now();
        wait_for("what the results take", LIMIT, || {
            let now = memory(pid)?;
            if now > most {
                (most, risen) = (now, Instant::now());
            }
            Ok((risen.elapsed() > STILL).then_some(()))
        })?;
        println!("{READERS} slow readers: at most {} MiB", most >> 20);
        ensure!(most < MOST_MEMORY, "{} MiB", most >> 20);
        // Somebody who reads has the whole of it.
        let answer = wait_for("a result", LIMIT, || {
            let output = fleet.run(["results", &id, "--format", "json"])?;
            Ok(output.status.success().then_some(output.stdout))
        })?;
        let read: Value = serde_json::from_slice(&answer)?;
        ensure!(read["cells"][0]["runs"].as_array().is_some_and(|runs| runs.len() == times));
        ensure!(memory(pid)? < MOST_MEMORY);
        Ok(())
    })
}

fn files() -> Result<()> {
    let mut fleet = Fleet::new(1)?;
    let token = fleet.path("token");
    fs::write(&token, "secret\n")?;
    let path = token.to_str().context("UTF-8")?.to_owned();
    let serve = |fleet: &Fleet, token: &str, pki: &Path| -> Result<Output> {
        let mut command = programs::program("toll")?;
        command.args(["serve", "--listen", "127.0.0.1:7447", "--token-file", token, "--data"]);
        command.arg(fleet.path("data")).arg("--pki").arg(pki).env("TOLL_SOCKET", fleet.socket());
        command.stdin(Stdio::null());
        Ok(fleet.wire.run(|| command.output())??)
    };
    let good = fleet.path("pki/orchestrator");
    let key = good.join("key.pem");
    for (mode, refused) in [(0o644, true), (0o640, true), (0o604, true)] {
        fs::set_permissions(&token, Permissions::from_mode(mode))?;
        let output = serve(&fleet, &path, &good)?;
        let told = said(&output).contains(&format!("chmod 600 {path}"));
        ensure!(output.status.code() == Some(4) && told == refused, "{mode:o}: {output:?}");
    }
    fs::set_permissions(&token, Permissions::from_mode(0o600))?;
    nix::unistd::chown(&token, Some(STRANGER.into()), None)?;
    let output = serve(&fleet, &path, &good)?;
    ensure!(said(&output).contains(&format!("belongs to the user {STRANGER}")), "{output:?}");
    nix::unistd::chown(&token, Some(0.into()), None)?;
    fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    let output = serve(&fleet, &path, &good)?;
    ensure!(said(&output).contains("the private key is a secret"), "{output:?}");
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    // What has no end.
    let output = serve(&fleet, "/dev/zero", &good)?;
    ensure!(said(&output).contains("neither a regular file nor a pipe"), "{output:?}");
    let output = fleet.run(["cancel", "x", "--token-file", "/dev/zero"])?;
    ensure!(said(&output).contains("neither a regular file nor a pipe"), "{output:?}");
    fs::File::options().write(true).open(&token)?.set_len(8 << 30)?;
    let output = serve(&fleet, &path, &good)?;
    ensure!(said(&output).contains("is too long"), "{output:?}");
    // And with everything as it should be, a token is enough from anywhere.
    fs::write(&token, "secret\n")?;
    fleet.start_orchestrator(&["--token-file", &path])?;
    on(fleet, |fleet| {
        let campaign = fleet.path("campaign.yaml");
        fs::write(&campaign, fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
        let campaign = campaign.to_str().context("UTF-8")?.to_owned();
        let tcp = ["submit", &campaign, "--server", "http://127.0.0.1:8080"];
        let output = fleet.run(tcp)?;
        ensure!(output.status.code() == Some(4) && said(&output).contains("a token is needed"), "{output:?}");
        fleet.toll(tcp.into_iter().chain(["--token-file", &path]))?;
        fleet.toll(["submit", &campaign]).map(drop)
    })
}
