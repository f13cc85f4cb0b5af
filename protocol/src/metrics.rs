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

/// The section of docs/metrics.md on one program: its families, and the values of their labels.
pub fn markdown(program: &str, families: &[&Family]) -> String {
    let mut text =
        format!("## `{program}`\n\n| Metric | Type | Labels | What it says |\n|---|---|---|---|\n");
    // Each label once, with the families that have it: most have many in common.
    let mut labels: Vec<(&Label, Vec<&str>)> = Vec::new();
    for Family { name, kind, labels: own, help } in families {
        let names: Vec<String> = own.iter().map(|label| format!("`{}`", label.name)).collect();
        text.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", names.join(", ")));
        for label in *own {
            match labels.iter_mut().find(|(known, _)| *known == label) {
                Some((_, families)) => families.push(name),
                None => labels.push((label, vec![name])),
            }
        }
    }
    text.push_str("\n| Label | Of | Values |\n|---|---|---|\n");
    for (label, families) in &labels {
        let shared = labels.iter().filter(|(other, _)| other.name == label.name).count() == 1;
        let of = match families[..] {
            [only] => format!("`{only}`"),
            _ if shared => "all that have it".to_owned(),
            _ => families.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        };
        text.push_str(&format!("| `{}` | {of} | {} |\n", label.name, label.values));
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
        for row in [
            "| `toll_build_info` | gauge | `version`, `profile` | Which build runs; always 1. |",
            "| `version` | `toll_build_info` | version of Toll |",
        ] {
            assert!(text.lines().any(|line| line == row), "{text}");
        }
    }
}
