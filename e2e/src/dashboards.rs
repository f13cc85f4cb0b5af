//! What `dashboards/` asks of Prometheus: every query of every panel, annotation and variable, as Grafana would send
//! it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// `dashboards/` of the repository.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards")
}

/// A dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// Name of its file.
    pub file: String,
    /// The whole document.
    pub document: Value,
}

/// A query with variables in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Where it stands: dashboard, panel, letter.
    pub place: String,
    /// The expression.
    pub expr: String,
    /// Whether it is asked for one moment only.
    pub instant: bool,
}

/// A variable whose values are those of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The label.
    pub label: String,
    /// Which series.
    pub selector: String,
    /// What stands for all values, if all can be chosen.
    pub all: Option<String>,
}

/// Every dashboard of [`directory`].
///
/// # Errors
/// When one can't be read.
pub fn read() -> Result<Vec<Dashboard>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory().join("grafana"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path)?;
            let document = serde_json::from_str(&text).with_context(|| file.clone())?;
            found.push(Dashboard { file, document });
        }
    }
    found.sort_by(|one, other| one.file.cmp(&other.file));
    Ok(found)
}

/// An array of a document; nothing if there is none.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Dashboard {
    /// All panels but rows, those inside rows too.
    pub fn panels(&self) -> Vec<&Value> {
        let top = list(&self.document, "/panels").iter();
        top.flat_map(|panel| std::iter::once(panel).chain(list(panel, "/panels")))
            .filter(|panel| panel["type"] != "row")
            .collect()
    }

    /// Queries of all panels and annotations.
    ///
    /// # Errors
    /// When one has no expression.
    pub fn queries(&self) -> Result<Vec<Query>> {
        let mut queries = Vec::new();
        let mut add = |place: String, query: &Value| -> Result<()> {
            let expr = query["expr"].as_str().with_context(|| format!("{place} has no expression"))?;
            let instant = query["instant"] == Value::Bool(true);
            queries.push(Query { place, expr: expr.to_owned(), instant });
            Ok(())
        };
        for panel in self.panels() {
            for target in list(panel, "/targets") {
                add(format!("{}: {} {}", self.file, panel["title"], target["refId"]), target)?;
            }
        }
        for annotation in list(&self.document, "/annotations/list") {
            add(format!("{}: annotation {}", self.file, annotation["name"]), annotation)?;
        }
        Ok(queries)
    }

    /// Variables that are asked of Prometheus, in their order.
    ///
    /// # Errors
    /// When one is of another kind than `label_values(SERIES, LABEL)`.
    pub fn variables(&self) -> Result<Vec<Variable>> {
        let asked = list(&self.document, "/templating/list").iter().filter(|one| one["type"] == "query");
        asked
            .map(|variable| {
                let name = variable["name"].as_str().context("a variable has no name")?.to_owned();
                let query = variable.pointer("/query/query").and_then(Value::as_str).unwrap_or_default();
                let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
                let Some((selector, label)) = inside.and_then(|inside| inside.rsplit_once(',')) else {
                    bail!("{}: variable {name} asks for {query:?}", self.file);
                };
                let all = (variable["includeAll"] == Value::Bool(true)).then(|| {
                    variable["allValue"].as_str().with_context(|| format!("{name}: no value for all"))
                });
                let all = all.transpose()?.map(str::to_owned);
                Ok(Variable {
                    name,
                    label: label.trim().to_owned(),
                    selector: selector.trim().to_owned(),
                    all,
                })
            })
            .collect()
    }
}

/// `text` with `$name` and `${name}` replaced, as Grafana does.
///
/// # Errors
/// When a variable has no value, or is written otherwise.
pub fn substitute(text: &str, values: &BTreeMap<String, String>) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let braced = after.strip_prefix('{');
        let from = braced.unwrap_or(after);
        let end = from.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(from.len());
        let (name, mut next) = from.split_at(end);
        if braced.is_some() {
            next = next.strip_prefix('}').with_context(|| format!("a format of a variable in {text:?}"))?;
        }
        out.push_str(values.get(name).with_context(|| format!("${name} in {text:?} has no value"))?);
        rest = next;
    }
    out.push_str(rest);
    Ok(out)
}

/// What an alert compares: the left sides of `SERIES OP NUMBER`, one or more of them joined by `and on (LABELS)`. An
/// alert that is not of that form hides what it looks at while it does not fire.
///
/// # Errors
/// When it is not of that form.
pub fn compared(alert: &str) -> Result<Vec<String>> {
    let mut sides = Vec::new();
    for (index, clause) in alert.split(" and on ").enumerate() {
        let clause = match clause.split_once(')') {
            Some((labels, rest)) if index > 0 && labels.trim_start().starts_with('(') => rest,
            _ => clause,
        };
        let sign = [" == ", " != ", " >= ", " <= ", " > ", " < "]
            .into_iter()
            .find_map(|sign| clause.rsplit_once(sign));
        let (side, limit) = sign.with_context(|| format!("{clause:?} compares nothing"))?;
        limit.trim().parse::<f64>().with_context(|| format!("{clause:?} has no number at its right"))?;
        sides.push(side.trim().to_owned());
    }
    Ok(sides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_grafana_does() {
        let values =
            [("a", "x|y"), ("__range", "60s")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let values = BTreeMap::from(values);
        let replaced = substitute(r#"rate(m{a=~"$a", b=~"${a}"}[$__range])"#, &values).expect("known");
        assert_eq!(replaced, r#"rate(m{a=~"x|y", b=~"x|y"}[60s])"#);
        assert!(substitute("$b", &values).is_err());
        assert!(substitute("${a:regex}", &values).is_err());
    }

    #[test]
    fn an_alert_is_series_against_limits() {
        let two = r#"c{s="running"} > 0 and on (job) job:ended:increase30m == 0"#;
        assert_eq!(compared(two).expect("compares"), [r#"c{s="running"}"#, "job:ended:increase30m"]);
        assert!(compared("absent(up)").is_err());
        assert!(compared("a > b").is_err());
    }
}
