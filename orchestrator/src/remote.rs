//! `toll submit`, `status`, `watch`, `cancel`, `results`, `agents`: the clients of a service.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use toll_protocol::result::{CampaignResult, RunCounts, Verdict};
use toll_protocol::service::{AgentStatus, CampaignState, CampaignStatus};

use crate::exit::{Exit, print_out};
use crate::http::client::{Client, ClientError};
use crate::progress::left;
use crate::report::terminal::plain;
use crate::run::Format;
use crate::service::store::{REPORT, RESULT};
use crate::{format, report};

/// Which service, and what it wants to see.
#[derive(Debug, Args)]
pub struct Server {
    /// Where the orchestrator's HTTP API is: http://HOST:PORT or unix:PATH
    /// [default: the Unix socket of a toll serve of this user or root, else http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", env = "TOLL_SERVER")]
    pub server: Option<String>,
    /// File of the token that the orchestrator was started with, for changes over HTTP
    #[arg(long, value_name = "FILE", env = "TOLL_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// What is asked.
#[derive(Debug)]
pub enum Question<'a> {
    /// Take a campaign.
    Submit {
        /// Its text.
        document: String,
        /// The id that it shall have.
        id: Option<&'a str>,
        /// Whether to stay until it is over.
        watch: bool,
    },
    /// How one campaign is, or all are.
    Status(Option<&'a str>, Format),
    /// Follow a campaign to its end.
    Watch(&'a str),
    /// End a campaign.
    Cancel(&'a str),
    /// Show or save what a campaign found.
    Results {
        /// Which.
        id: &'a str,
        /// Where result.json and report.html go.
        out: Option<&'a Path>,
        /// What to print.
        format: Format,
    },
    /// Who is there.
    Agents(Format),
}

/// Asks, and prints the answer.
///
/// # Errors
/// When there is none, or it can't be printed or saved.
pub fn ask(server: &Server, question: Question<'_>) -> Result<Exit> {
    let (runtime, client) = client(server)?;
    let answered = runtime.block_on(answer(&client, question));
    match answered {
        Err(error) => match error.downcast_ref::<ClientError>() {
            Some(ClientError::Refused(refusal)) if !refusal.problems.is_empty() => {
                eprintln!("toll: {}:", plain(&refusal.message));
                refusal.problems.iter().for_each(|problem| eprintln!("  {}", plain(problem)));
                Ok(Exit::InvalidCampaign)
            }
            _ => Err(error),
        },
        other => other,
    }
}

/// What a campaign of a service found, so far.
///
/// # Errors
/// When there is no answer.
pub fn result(server: &Server, id: &str) -> Result<CampaignResult> {
    let (runtime, client) = client(server)?;
    Ok(runtime.block_on(client.result(id))?)
}

fn client(server: &Server) -> Result<(Runtime, Client)> {
    let runtime = Builder::new_current_thread().enable_all().build().context("no runtime can be started")?;
    Ok((runtime, Client::new(server.server.as_deref(), server.token_file.as_deref())?))
}

async fn answer(client: &Client, question: Question<'_>) -> Result<Exit> {
    match question {
        Question::Submit { document, id, watch } => {
            let submitted = client.submit(id, document).await?;
            let known = if submitted.new { "" } else { " (known already)" };
            print_out(&format!("{}{known}\n", submitted.id))?;
            if watch { follow(client, &submitted.id).await } else { Ok(Exit::Ok) }
        }
        Question::Status(None, format) => show(&client.campaigns().await?, format, |all| campaigns(all)),
        Question::Status(Some(id), format) => show(&client.campaign(id).await?, format, campaign),
        Question::Watch(id) => follow(client, id).await,
        Question::Cancel(id) => {
            let status = client.cancel(id).await?;
            print_out(&format!("{id}: {}\n", if status.state.is_over() { "is over" } else { "is ending" }))?;
            Ok(Exit::Ok)
        }
        Question::Results { id, out, format } => results(client, id, out, format).await,
        Question::Agents(format) => show(&client.agents().await?, format, |all| agents(all)),
    }
}

fn show<T: Serialize>(value: &T, format: Format, text: impl FnOnce(&T) -> String) -> Result<Exit> {
    match format {
        Format::Json => print_out(&format!("{}\n", serde_json::to_string_pretty(value)?))?,
        Format::Text => print_out(&text(value))?,
    }
    Ok(Exit::Ok)
}

async fn follow(client: &Client, id: &str) -> Result<Exit> {
    let bar = crate::progress::Progress::new();
    let last = client.watch(id, |status| bar.watch(status)).await;
    bar.finish();
    let last = last?;
    print_out(&campaign(&last))?;
    Ok(exit(&last))
}

/// What a campaign that is over means for a script.
fn exit(status: &CampaignStatus) -> Exit {
    let complete = status.counts.is_some_and(|counts| counts.measured == counts.planned);
    match (status.state, status.verdict) {
        (CampaignState::Cancelled, _) => Exit::Interrupted,
        _ if !complete => Exit::Infrastructure,
        (_, Some(Verdict::Fail | Verdict::Inconclusive)) => Exit::GateMissed,
        _ => Exit::Ok,
    }
}

async fn results(client: &Client, id: &str, out: Option<&Path>, format: Format) -> Result<Exit> {
    let result = client.result(id).await?;
    let mut page = None;
    if let Some(out) = out {
        let path = out.join(REPORT);
        std::fs::create_dir_all(out).with_context(|| format!("{} can't be made", out.display()))?;
        for (name, text) in
            [(RESULT, serde_json::to_string_pretty(&result)?), (REPORT, report::html::render(&result))]
        {
            let file = out.join(name);
            std::fs::write(&file, text).with_context(|| format!("{} can't be written", file.display()))?;
        }
        page = Some(path);
    }
    match format {
        Format::Json => print_out(&format!("{}\n", serde_json::to_string_pretty(&result)?))?,
        Format::Text => {
            let options = report::terminal::TerminalOptions::of_stdout();
            print_out(&report::terminal::render(&result, page.as_deref(), options))?;
        }
    }
    Ok(crate::run::exit(&result, result.provenance.interrupted))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

fn done(counts: Option<RunCounts>) -> String {
    counts.map_or_else(|| "—".to_owned(), |counts| format!("{}/{}", counts.over(), counts.planned))
}

fn verdict(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Pass) => "pass",
        Some(Verdict::Fail) => "fail",
        Some(Verdict::Inconclusive) => "inconclusive",
        None => "—",
    }
}

fn campaigns(all: &[CampaignStatus]) -> String {
    if all.is_empty() {
        return "no campaigns: toll submit FILE\n".to_owned();
    }
    let mut table = table(&["campaign", "state", "trials", "left", "verdict", ""]);
    for status in all {
        table.add_row([
            status.id.clone(),
            status.state.to_string(),
            done(status.counts),
            status.left.map_or_else(|| "—".to_owned(), left),
            verdict(status.verdict).to_owned(),
            plain(status.reason.as_deref().unwrap_or_default()),
        ]);
    }
    format!("{table}\n")
}

fn campaign(status: &CampaignStatus) -> String {
    let mut text = format!("{}: {}, {} trials over", status.id, status.state, done(status.counts));
    if let Some(counts) = status.counts {
        for (count, name) in [(counts.failed, "failed"), (counts.skipped, "not run"), (counts.lost, "lost")] {
            if count > 0 {
                text.push_str(&format!(", {count} {name}"));
            }
        }
    }
    if let Some(reason) = &status.reason {
        text.push_str(&format!(" ({})", plain(reason)));
    }
    text.push('\n');
    for running in &status.running {
        text.push_str(&format!("  now: {}\n", plain(running)));
    }
    if status.cells.is_empty() {
        return text;
    }
    let mut table = table(&["cell", "runs", "goodput", "of native", "95 %"]);
    for cell in &status.cells {
        let goodput = cell.goodput_bytes_per_second.map(|bytes| format::bit_rate(bytes * 8.0));
        let ratio = cell.ratio_to_native;
        let interval = ratio.and_then(|ratio| ratio.ci95);
        let absent = || "—".to_owned();
        table.add_row([
            cell.name.clone(),
            format!("{}/{}", cell.counts.measured, cell.counts.planned),
            goodput.unwrap_or_else(absent),
            ratio.map_or_else(absent, |ratio| format!("{:.1} %", ratio.estimate * 100.0)),
            interval
                .map_or_else(absent, |[lower, upper]| format!("{:.1}–{:.1}", lower * 100.0, upper * 100.0)),
        ]);
    }
    format!("{text}{table}\n")
}

fn agents(all: &[AgentStatus]) -> String {
    if all.is_empty() {
        return "no agents: start toll-agent on each host\n".to_owned();
    }
    let mut table = table(&["agent", "state", "NIC", "guests by", "KVM", "labels", ""]);
    for agent in all {
        let facts = &agent.facts;
        let nic = facts.nic.as_ref().map(|nic| match nic.address {
            Some(address) => format!("{} {address}", nic.name),
            None => nic.name.clone(),
        });
        let labels: Vec<String> =
            agent.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let kvm = match &facts.kvm {
            toll_protocol::facts::KvmFact::Usable(_) => "usable",
            toll_protocol::facts::KvmFact::Unusable { .. } => "no",
        };
        table.add_row([
            plain(&agent.name),
            agent.state.to_string(),
            plain(&nic.unwrap_or_else(|| "—".to_owned())),
            facts.wire.map_or_else(|| "—".to_owned(), |wire| wire.to_string()),
            kvm.to_owned(),
            plain(&labels.join(" ")),
            plain(agent.reason.as_deref().unwrap_or_default()),
        ]);
    }
    format!("{table}\n")
}
