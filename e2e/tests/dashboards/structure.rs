//! What can be said of dashboards and rules without a Prometheus that scrapes: they are well-formed, a user can read
//! them, and they ask for nothing that the code does not register.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use toll_e2e::dashboards::{self, list};
use toll_e2e::prometheus::{lacking, promtool, with_targets};
use toll_e2e::suite::test;
use toll_protocol::metrics::Kind;

pub fn tests() -> Vec<Trial> {
    vec![
        test("panels_are_placed_named_and_explained", &[], panels),
        test("queries_ask_for_registered_metrics_only", &[], names),
        test("dashboards_take_their_source_and_variables_from_themselves", &[], variables),
        test("promtool_finds_nothing_wrong_and_the_alerts_fire_when_they_should", &[lacking()], rules),
    ]
}

/// Panel types of Grafana that the dashboards use, and whether a figure in them needs a legend.
const TYPES: [(&str, bool); 6] = [
    ("timeseries", true),
    ("stat", true),
    ("bargauge", true),
    ("state-timeline", true),
    ("barchart", false),
    ("table", false),
];

fn panels() -> Result<()> {
    let all = dashboards::read()?;
    ensure!(all.len() >= 2, "{} dashboards", all.len());
    for dashboard in &all {
        let document = &dashboard.document;
        ensure!(document["schemaVersion"] == 42 && document["uid"].is_string(), "{}", dashboard.file);
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in list(document, "/panels") {
            let place = format!("{}: {}", dashboard.file, panel["title"]);
            ensure!(ids.insert(panel["id"].as_u64().context("an id")?), "{place} has the id of another");
            let position = |name: &str| panel["gridPos"][name].as_u64().context("a place");
            let (x, y, w, h) = (position("x")?, position("y")?, position("w")?, position("h")?);
            ensure!(x + w <= 24 && w > 0 && h > 0, "{place} is not on the grid of 24 columns");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                ensure!(taken.insert(cell), "{place} lies on another");
            }
        }
        for panel in dashboard.panels() {
            let place = format!("{}: {}", dashboard.file, panel["title"]);
            let kind = TYPES.iter().find(|(kind, _)| panel["type"] == *kind);
            let (kind, needs_legend) = kind.with_context(|| format!("{place}: {}", panel["type"]))?;
            let text = |value: &Value| value.as_str().is_some_and(|text| text.trim().len() > 2);
            ensure!(text(&panel["title"]) && text(&panel["description"]), "{place} is not explained");
            let defaults = &panel["fieldConfig"]["defaults"];
            ensure!(!list(defaults, "/thresholds/steps").is_empty(), "{place} has no thresholds");
            // A table has units by column, and states are words.
            let words = ["table", "state-timeline"].contains(kind);
            ensure!(words || defaults["unit"].is_string(), "{place} has no unit");
            ensure!(!list(panel, "/targets").is_empty(), "{place} asks for nothing");
            for target in list(panel, "/targets") {
                ensure!(
                    !needs_legend || text(&target["legendFormat"]),
                    "{place} has a series without a name"
                );
                let instant = target["instant"] == Value::Bool(true);
                ensure!(
                    target["range"] == Value::Bool(!instant),
                    "{place} is both or none of instant and range"
                );
            }
        }
    }
    Ok(())
}

/// Series that no dashboard shows yet: those of many flows, of datagrams, and of requests and responses.
const NOT_YET: [&str; 10] = [
    "toll_cell_fairness_ratio",
    "toll_cell_jitter_seconds",
    "toll_cell_latency_seconds",
    "toll_cell_loss_ratio",
    "toll_cell_loss_search_bytes_per_second",
    "toll_cell_lost_transactions_ratio",
    "toll_cell_packets_limit_per_second",
    "toll_cell_packets_per_second",
    "toll_cell_transactions_limit_per_second",
    "toll_cell_transactions_per_second",
];

/// Names of series that the code registers, rules record, or Prometheus itself makes.
fn known() -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = ["up", "ALERTS"].map(str::to_owned).into();
    let orchestrator = toll_orchestrator::metrics::Metrics::new()?;
    let agent = toll_node_agent::metrics::Metrics::new()?;
    for family in orchestrator.families().iter().chain(agent.families()) {
        if family.kind == Kind::Histogram {
            names.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", family.name)));
        } else {
            names.insert(family.name.to_owned());
        }
    }
    let recording = std::fs::read_to_string(dashboards::directory().join("prometheus/rules/recording.yml"))?;
    let recorded = recording.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    names.extend(recorded.map(str::to_owned));
    Ok(names)
}

/// Words of an expression that look like series of Toll.
fn asked(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && !['_', ':'].contains(&c));
    words.filter(|word| word.starts_with("toll_") || word.contains(":toll_"))
}

fn names() -> Result<()> {
    let known = known()?;
    let mut used = BTreeSet::new();
    for dashboard in dashboards::read()? {
        for query in dashboard.queries()? {
            for name in asked(&query.expr) {
                ensure!(known.contains(name), "{}: there is no {name}", query.place);
                used.insert(name.to_owned());
            }
        }
        for variable in dashboard.variables()? {
            for name in asked(&variable.selector) {
                ensure!(known.contains(name), "{}: variable {}: {name}", dashboard.file, variable.name);
            }
        }
    }
    for entry in std::fs::read_dir(dashboards::directory().join("prometheus/rules"))? {
        let text = std::fs::read_to_string(entry?.path())?;
        for name in asked(&text) {
            ensure!(known.contains(name), "rules: there is no {name}");
            used.insert(name.to_owned());
        }
    }
    // What is measured and never looked at is not worth its series.
    let unused: Vec<&String> = known
        .iter()
        .filter(|name| name.starts_with("toll_") && !name.ends_with("_sum") && !name.ends_with("_count"))
        .filter(|name| !used.contains(*name))
        .collect();
    ensure!(
        unused.iter().map(|name| name.as_str()).eq(NOT_YET),
        "on no dashboard and in no rule, and not among those that are still to be shown: {unused:?}"
    );
    Ok(())
}

fn variables() -> Result<()> {
    for dashboard in dashboards::read()? {
        let source = "${datasource}";
        for panel in dashboard.panels() {
            let sources = std::iter::once(panel).chain(list(panel, "/targets"));
            for source_of in sources.map(|part| &part["datasource"]["uid"]) {
                ensure!(source_of == source, "{}: {} asks {source_of}", dashboard.file, panel["title"]);
            }
        }
        let known: Vec<String> = dashboard.variables()?.into_iter().map(|variable| variable.name).collect();
        let values = known.iter().map(String::as_str).chain(["__range", "__rate_interval"]);
        let values = values.map(|name| (name.to_owned(), "1m".to_owned())).collect();
        let mut exprs: Vec<String> = dashboard.queries()?.into_iter().map(|query| query.expr).collect();
        exprs.extend(dashboard.variables()?.into_iter().map(|variable| variable.selector));
        for expr in &exprs {
            dashboards::substitute(expr, &values).with_context(|| dashboard.file.clone())?;
        }
        for name in &known {
            let used = exprs.iter().any(|expr| expr.contains(&format!("${name}")));
            ensure!(used, "{}: ${name} changes nothing", dashboard.file);
        }
    }
    Ok(())
}

/// The configuration for Kubernetes. Debian builds Prometheus without its discovery: there, all but that is checked.
fn of_a_cluster(directory: &Path) -> Result<()> {
    const FILE: &str = "kubernetes.yml";
    let checked = promtool(directory, &["check", "config", FILE], "").map(drop);
    let Err(error) = checked else { return Ok(()) };
    if !error.to_string().contains("field kubernetes_sd_configs not found") {
        return Err(error);
    }
    let text = std::fs::read_to_string(directory.join(FILE))?;
    let without = with_targets(&text, |_| "static_configs: [{targets: ['127.0.0.1:1']}]".to_owned())
        .replace("rules/", "../rules/");
    let copy = tempfile::tempdir_in(directory)?;
    std::fs::write(copy.path().join(FILE), &without)?;
    promtool(copy.path(), &["check", "config", FILE], "").map(drop).with_context(|| without)
}

fn rules() -> Result<()> {
    let directory = dashboards::directory().join("prometheus");
    promtool(&directory, &["check", "config", "prometheus.yml"], "")?;
    of_a_cluster(&directory)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory.join("tests"))? {
        files.push(entry?.path().display().to_string());
    }
    ensure!(!files.is_empty(), "there are no tests of the rules");
    let arguments: Vec<&str> =
        ["test", "rules"].into_iter().chain(files.iter().map(String::as_str)).collect();
    promtool(&directory, &arguments, "")?;
    // Each alert has a test in which it fires.
    let alerts = std::fs::read_to_string(directory.join("rules/alerts.yml"))?;
    let tests: String = files.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?;
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let name = format!("alertname: {alert}\n");
        let fires = tests.split(name.as_str()).skip(1);
        let fires = fires.filter(|rest| rest.trim_start().starts_with("exp_alerts:\n")).count();
        ensure!(fires > 0, "no test lets {alert} fire");
    }
    Ok(())
}
