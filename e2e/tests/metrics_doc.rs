//! docs/metrics.md is what the code registers, and what the code registers follows the conventions.

use std::path::Path;

use toll_protocol::metrics::{Family, Kind, markdown};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

const HEAD: &str = "\
# Metrics
<!-- Generated from the code: cargo test -p toll-e2e --test metrics_doc -- --ignored -->

What `toll serve` and `toll-agent` answer to `GET /metrics`, in the Prometheus text format. `dashboards/` shows them.

* Base units: seconds, bytes, ratios of 1. A counter begins with 0 when its program does.
* A figure that is not known has no series; it is never 0.
* Labels are bounded: no trial id is ever one.
* Counters of traffic, exits and CPU cover the measured intervals of measured trials. They grow when a trial ends, so
  `rate()` says how much was measured per second of wall-clock time; divide by the rate of
  `toll_agent_measured_seconds_total` for what went through while it was measured.

";

fn orchestrator() -> Vec<&'static Family> {
    toll_orchestrator::metrics::Metrics::new().expect("registers").families().to_vec()
}

fn agent() -> Vec<&'static Family> {
    toll_node_agent::metrics::Metrics::new().expect("registers").families().to_vec()
}

fn document() -> String {
    format!("{HEAD}{}\n{}", markdown("toll serve", &orchestrator()), markdown("toll-agent", &agent()))
}

#[test]
fn the_document_is_what_the_code_says() {
    let written = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        written == document(),
        "docs/metrics.md is not what the code registers: cargo test -p toll-e2e --test metrics_doc -- --ignored"
    );
}

#[test]
#[ignore = "writes docs/metrics.md"]
fn write_the_document() {
    std::fs::write(Path::new(FILE), document()).expect("can be written");
}

/// <https://prometheus.io/docs/practices/naming/>
#[test]
fn names_follow_the_conventions() {
    let units = ["seconds", "bytes", "ratio", "total", "info", "bytes_per_second", "seconds_per_byte"];
    for (family, prefix) in
        orchestrator().iter().map(|family| (family, "toll_")).chain(agent().iter().map(|family| {
            let prefix = if family.name == "toll_build_info" { "toll_" } else { "toll_agent_" };
            (family, prefix)
        }))
    {
        let Family { name, kind, labels, help } = family;
        assert!(name.starts_with(prefix), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        let has_unit = units.iter().any(|unit| name.ends_with(unit));
        let counts = matches!(*kind, Kind::Gauge) && !help.contains("econds") && !help.contains("ytes");
        assert!(has_unit || counts, "{name} has no unit");
        assert!(help.ends_with('.') && !help.contains(['|', '\n']), "{name}: {help}");
        for label in *labels {
            assert!(!label.name.contains("trial") && label.name != "id" && label.name != "le", "{name}");
        }
    }
}
