//! Everything that dashboards and rules ask, asked of a Prometheus until each question has been answered with data.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use toll_e2e::dashboards::{self, list};
use toll_e2e::machine::wait_for;
use toll_e2e::prometheus::Prometheus;

/// `scrape_interval` while testing, in place of the repository's 15 s: trials take a second.
const INTERVAL: &str = "1s";

/// Copies the repository's configuration and rules to `directory`. Only the intervals and the targets are the
/// test's: the orchestrator's address, and host and address of each agent.
pub fn configure(directory: &Path, orchestrator: &str, agents: &[(String, String)]) -> Result<()> {
    let from = dashboards::directory().join("prometheus");
    for folder in ["rules", "targets"] {
        std::fs::create_dir(directory.join(folder))?;
    }
    for entry in std::fs::read_dir(from.join("rules"))? {
        let path = entry?.path();
        std::fs::copy(&path, directory.join("rules").join(path.file_name().context("a name")?))?;
    }
    let text = std::fs::read_to_string(from.join("prometheus.yml"))?;
    ensure!(text.matches("_interval: 15s").count() == 2, "the intervals are not where they were");
    std::fs::write(directory.join("prometheus.yml"), text.replace("15s", INTERVAL))?;
    std::fs::write(directory.join("targets/orchestrator.yml"), format!("- targets: ['{orchestrator}']\n"))?;
    let agents = agents
        .iter()
        .map(|(host, address)| format!("- targets: ['{address}']\n  labels: {{host: {host}}}\n"));
    Ok(std::fs::write(directory.join("targets/agents.yml"), agents.collect::<String>())?)
}

/// Seconds since the Unix epoch.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

enum Ask {
    /// A value at one moment.
    Instant(String),
    /// Values since the test began.
    Range(String),
    /// Values of a label.
    Label { label: String, selector: String },
}

struct Question {
    place: String,
    ask: Ask,
    variables: BTreeMap<String, String>,
}

impl Question {
    /// Whether there is an answer with data in it: a finite number, or a value to choose.
    fn is_answered(&self, prometheus: &Prometheus, began: f64) -> Result<bool> {
        let mut variables = self.variables.clone();
        let range = (now() - began).ceil().max(1.0);
        // What Grafana makes of a scrape interval of a second: at least four of them.
        for (name, value) in [("__range", format!("{range}s")), ("__rate_interval", "4s".to_owned())] {
            variables.insert(name.to_owned(), value);
        }
        let expr = |text: &str| dashboards::substitute(text, &variables);
        let answered = match &self.ask {
            Ask::Instant(text) => {
                prometheus.instant(&expr(text)?)?.iter().any(|(_, value)| value.is_finite())
            }
            Ask::Range(text) => prometheus.range(&expr(text)?, began, now())?.iter().any(|v| v.is_finite()),
            Ask::Label { label, selector } => !prometheus.label_values(label, &expr(selector)?)?.is_empty(),
        };
        Ok(answered)
    }
}

/// Questions of every dashboard, with `campaign` and the workload of test campaigns chosen and, where all can be, all
/// values of the other variables.
fn of_dashboards(campaign: &str) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for dashboard in dashboards::read()? {
        let chosen = [("campaign", campaign), ("workload", "bulk")];
        let mut variables: BTreeMap<_, _> =
            chosen.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for variable in dashboard.variables()? {
            let place = format!("{}: variable {}", dashboard.file, variable.name);
            let ask = Ask::Label { label: variable.label, selector: variable.selector };
            questions.push(Question { place, ask, variables: variables.clone() });
            if let Some(all) = variable.all {
                variables.insert(variable.name, all);
            }
        }
        for query in dashboard.queries()? {
            let ask = if query.instant { Ask::Instant(query.expr) } else { Ask::Range(query.expr) };
            questions.push(Question { place: query.place, ask, variables: variables.clone() });
        }
    }
    Ok(questions)
}

/// Questions of every rule that Prometheus has loaded, which must be all of the repository's: what is recorded under
/// which name, and what alerts look at.
fn of_rules(prometheus: &Prometheus) -> Result<Vec<Question>> {
    let mut written = 0;
    for entry in std::fs::read_dir(dashboards::directory().join("prometheus/rules"))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let starts =
            |line: &str| ["- alert: ", "- record: "].iter().any(|word| line.trim().starts_with(word));
        written += text.lines().filter(|line| starts(line)).count();
    }
    let loaded = prometheus.api("rules", &[])?;
    let rules: Vec<_> = list(&loaded, "/groups").iter().flat_map(|group| list(group, "/rules")).collect();
    ensure!(rules.len() == written && written > 0, "{} of {written} rules are loaded", rules.len());
    let mut questions = Vec::new();
    for rule in rules {
        let (name, query) =
            (rule["name"].as_str().context("a name")?, rule["query"].as_str().context("a query")?);
        let exprs = if rule["type"] == "recording" {
            vec![name.to_owned(), query.to_owned()]
        } else {
            dashboards::compared(query).with_context(|| format!("alert {name}"))?
        };
        questions.extend(exprs.into_iter().map(|expr| Question {
            place: format!("rule {name}: {expr}"),
            ask: Ask::Range(expr),
            variables: BTreeMap::new(),
        }));
    }
    Ok(questions)
}

/// Asks everything again and again until each question has been answered with data since `began`; returns how many
/// there were. `campaign` is the one chosen on the dashboards.
///
/// # Errors
/// When some have not been within `limit`, naming them.
pub fn all_answered(prometheus: &Prometheus, campaign: &str, began: f64, limit: Duration) -> Result<usize> {
    let mut open = of_dashboards(campaign)?;
    open.extend(of_rules(prometheus)?);
    let count = open.len();
    let answered = wait_for("an answer to every question", limit, || {
        let mut still = Vec::new();
        for question in std::mem::take(&mut open) {
            if !question.is_answered(prometheus, began).with_context(|| question.place.clone())? {
                still.push(question);
            }
        }
        open = still;
        Ok(open.is_empty().then_some(()))
    });
    let places: Vec<&str> = open.iter().map(|question| question.place.as_str()).collect();
    answered.with_context(|| format!("without data:\n{}", places.join("\n")))?;
    // A rule whose evaluation fails says so here and nowhere else.
    for group in list(&prometheus.api("rules", &[])?, "/groups") {
        for rule in list(group, "/rules") {
            ensure!(rule["health"] == "ok", "{}: {} {}", rule["name"], rule["health"], rule["lastError"]);
        }
    }
    Ok(count)
}
