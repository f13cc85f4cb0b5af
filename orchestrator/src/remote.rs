//! `toll submit`, `status`, `watch`, `cancel`, `results`, `agents`: the clients of a service.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use toll_protocol::printable::{self, printable};
use toll_protocol::result::{CampaignResult, RunCounts, Verdict};
use toll_protocol::service::{AgentStatus, CampaignState, CampaignStatus, LeftOut};

use crate::exit::{Exit, print_out};
use crate::http::client::{Client, ClientError};
use crate::progress::left;
use crate::run::{self, Format};
use crate::service::handle::PageQuery;
use crate::service::store::write_files;

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
    /// How a campaign is, and what it found so far.
    Status(&'a str, Format),
    /// How some are.
    List(PageQuery, Format),
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
                eprintln!("toll: {}:", printable(&refusal.message));
                refusal.problems.iter().for_each(|problem| eprintln!("  {}", printable(problem)));
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
        Question::Status(id, Format::Json) => show(&client.campaign(id).await?, Format::Json, campaign),
        Question::Status(id, Format::Text) => {
            let status = client.campaign(id).await?;
            print_out(&campaign(&status))?;
            if !status.hosts.is_empty() {
                run::print(&client.result(id).await?, None, Format::Text)?;
            }
            Ok(Exit::Ok)
        }
        Question::List(query, format) => list(client, &query, format).await,
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
        Format::Json => {
            let json = serde_json::to_string_pretty(value)?;
            print_out(&format!("{}\n", printable::as_json(&json)))?;
        }
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
    if last.hosts.is_empty() {
        return Ok(exit(&last, None));
    }
    let result = client.result(id).await?;
    run::print(&result, None, Format::Text)?;
    Ok(exit(&last, Some(&result)))
}

/// What a campaign that is over means for a script; one that had no hosts has no result.
fn exit(status: &CampaignStatus, result: Option<&CampaignResult>) -> Exit {
    let cancelled = status.state == CampaignState::Cancelled;
    match result {
        _ if status.fault.is_some() => Exit::Infrastructure,
        _ if status.state == CampaignState::Refused => Exit::Refused,
        Some(result) => run::exit(result, cancelled),
        None if cancelled => Exit::Interrupted,
        None => Exit::Infrastructure,
    }
}

async fn list(client: &Client, query: &PageQuery, format: Format) -> Result<Exit> {
    let page = client.campaigns(query).await?;
    show(&page, format, |page| campaigns(&page.items, page.next.as_deref()))?;
    if page.left_out > 0 && format == Format::Text {
        print_out(&left_out(&client.left_out().await?))?;
    }
    Ok(Exit::Ok)
}

async fn results(client: &Client, id: &str, out: Option<&Path>, format: Format) -> Result<Exit> {
    let result = match client.result(id).await {
        Err(error) if client.campaign(id).await.is_ok_and(|known| known.state == CampaignState::Refused) => {
            eprintln!("toll: {}", printable(&error.to_string()));
            return Ok(Exit::Refused);
        }
        other => other?,
    };
    let written = out.map(|out| write_files(out, &result)).transpose();
    run::print(&result, written.as_ref().ok().and_then(Option::as_deref), format)?;
    written.context("what was measured is above; its files are not written")?;
    Ok(run::exit(&result, result.provenance.interrupted))
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

fn campaigns(all: &[CampaignStatus], next: Option<&str>) -> String {
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
            status.fault.clone().or_else(|| status.reason.clone()).unwrap_or_default(),
        ]);
    }
    let more = next.map_or_else(String::new, |next| format!("Older ones: toll status --continue {next}\n"));
    format!("{table}\n{more}")
}

fn left_out(left_out: &LeftOut) -> String {
    let mut text = format!("{} entries of the data directory are left out:\n", left_out.count);
    for entry in &left_out.entries {
        let again = if entry.tried_again { " (it is tried again)" } else { "" };
        text.push_str(&format!("  {}: {}{again}\n", entry.name, entry.reason));
    }
    let unnamed = left_out.count.saturating_sub(left_out.entries.len());
    if unnamed > 0 {
        text.push_str(&format!("  and {unnamed} more\n"));
    }
    text
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
        text.push_str(&format!(" ({reason})"));
    }
    text.push('\n');
    if let Some(fault) = status.fault.as_ref().filter(|fault| Some(*fault) != status.reason.as_ref()) {
        text.push_str(&format!("  {fault}\n"));
    }
    for running in &status.running {
        text.push_str(&format!("  now: {running}\n"));
    }
    text
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
            agent.name.clone(),
            agent.state.to_string(),
            nic.unwrap_or_else(|| "—".to_owned()),
            facts.wire.map_or_else(|| "—".to_owned(), |wire| wire.to_string()),
            kvm.to_owned(),
            labels.join(" "),
            agent.reason.clone().unwrap_or_default(),
        ]);
    }
    format!("{table}\n")
}
