//! What a family of metrics is: read by the code that registers it, by docs/metrics.md and by the test that holds
//! the two together. Names, units and labels follow <https://prometheus.io/docs/practices/naming/>.

use std::fmt;

/// The Prometheus type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets, with their sum.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// A label of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Which values it has, in words: they are bounded.
    pub values: &'static str,
}

/// A family of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name, with prefix and unit.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels, in the order in which code gives their values.
    pub labels: &'static [Label],
    /// What it says, with its unit and what it covers: the `# HELP` line.
    pub help: &'static str,
}

impl Family {
    /// Names of the labels, in their order.
    pub fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }
}

/// What every program of Toll says of itself.
pub const BUILD_INFO: Family = Family {
    name: "toll_build_info",
    kind: Kind::Gauge,
    labels: &[
        Label { name: "version", values: "version of Toll" },
        Label { name: "profile", values: "`release`, or `debug`: built without optimisation" },
    ],
    help: "Which build runs; always 1.",
};

/// The section of docs/metrics.md on one program.
pub fn markdown(program: &str, families: &[&Family]) -> String {
    let mut text =
        format!("## `{program}`\n\n| Metric | Type | Labels | What it says |\n|---|---|---|---|\n");
    for Family { name, kind, labels, help } in families {
        let labels: Vec<String> =
            labels.iter().map(|Label { name, values }| format!("`{name}`: {values}")).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join("<br>") };
        text.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_lists_each_family_with_its_labels() {
        let text = markdown("toll-agent", &[&BUILD_INFO]);
        assert!(text.starts_with("## `toll-agent`\n\n| Metric |"), "{text}");
        let row = "| `toll_build_info` | gauge | `version`: version of Toll<br>`profile`: ";
        assert!(text.lines().any(|line| line.starts_with(row)), "{text}");
    }
}
