//! Bounds and rules that are made of the limits which the schema of a campaign carries (`protocol/src/campaign/limits.rs`), so that
//! a cluster refuses what the parser refuses, in its words.

use schemars::generate::SchemaSettings;
use serde_json::Value;
use toll_protocol::campaign::{limits, schema};
use toll_protocol::units::{QUANTITY, Quantity};

use super::{gates, workloads};

/// A percentage. An exponent beyond two digits is beyond what a figure can be, or as good as.
pub(super) const PERCENT: &str = r"^ *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE](-[0-9]+|\+?0*[0-9]{1,2}))? *% *$";
/// The longest text of a quantity.
const LONGEST_QUANTITY: u64 = 32;

/// A limit on the values at a path.
pub(super) struct Bound {
    /// Where, as in [`super::Rule`].
    pub at: String,
    /// `maxItems`, `maxLength` or `maxProperties`.
    pub keyword: &'static str,
    /// The limit.
    pub limit: u64,
}

/// A rule on the values at a path, as in [`super::Rule`].
pub(super) struct Rule {
    /// Where.
    pub at: String,
    /// What must hold.
    pub rule: String,
    /// What to do about it.
    pub message: String,
    /// The message with what was written in it.
    pub expression: Option<String>,
    /// The field that is wrong.
    pub field: Option<&'static str>,
}

/// What is made of a schema.
#[derive(Default)]
pub(super) struct Made {
    pub bounds: Vec<Bound>,
    pub rules: Vec<Rule>,
}

impl Made {
    /// What is made of the spec of a campaign.
    pub(super) fn of_spec() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<schema::Spec>();
        let mut made = Self::default();
        made.walk(schema.as_value(), "spec");
        made.rules.extend(gates::rules());
        made.rules.extend(workloads::rules(schema.as_value()));
        made
    }

    fn walk(&mut self, schema: &Value, at: &str) {
        self.text(schema, at);
        self.range(schema, at);
        self.list(schema, at);
        if let Some(words) = schema[limits::EXACTLY_ONE]["say"].as_str() {
            self.rule(at, exactly_one(schema), words);
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            self.walk(field, &format!("{at}.{name}"));
        }
        if schema["items"].is_object() {
            self.walk(&schema["items"], &format!("{at}[]"));
        }
    }

    fn bound(&mut self, at: &str, keyword: &'static str, limit: u64) {
        self.bounds.push(Bound { at: at.to_owned(), keyword, limit });
    }

    fn rule(&mut self, at: &str, rule: impl Into<String>, message: &str) {
        let (at, rule, message) = (at.to_owned(), rule.into(), message.to_owned());
        self.rules.push(Rule { at, rule, message, expression: None, field: None });
    }

    /// Adds a rule whose message begins with the value.
    fn rule_naming(&mut self, at: &str, rule: String, message: &str, value: &str) {
        self.rule(at, rule, message);
        if let Some(rule) = self.rules.last_mut() {
            rule.expression = Some(format!("{value} + ' {message}'"));
        }
    }

    fn text(&mut self, schema: &Value, at: &str) {
        const QUOTED: &str = "'`' + self + '`'";
        if schema[limits::NAME] == true {
            self.bound(at, "maxLength", limits::LONGEST_NAME as u64);
            let rule = "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')".to_owned();
            self.rule_naming(at, rule, limits::NO_NAME, QUOTED);
        }
        if let Some(quantity) = quantity(schema) {
            self.bound(at, "maxLength", LONGEST_QUANTITY);
            let message = format!(
                "is no {}: write a number and its unit, such as {}",
                quantity.name(),
                quantity.example()
            );
            self.rule_naming(at, matches(quantity), &message, QUOTED);
        }
    }

    fn range(&mut self, schema: &Value, at: &str) {
        let (start, end) = (&schema[limits::RANGE]["start"], &schema[limits::RANGE]["end"]);
        match (quantity(schema), start, end) {
            // A number as text has no bound that the cost of a rule could be estimated from.
            (None, Value::Number(least), Value::Number(most)) => {
                let message = limits::out_of_range(&least.to_string(), &most.to_string());
                self.rule(at, format!("self >= {least} && self <= {most}"), &message);
            }
            (Some(quantity), Value::String(least), Value::String(most)) => {
                let message = limits::out_of_range(least, most);
                let rule = format!("!{} || {}", matches(quantity), between(quantity, least, most));
                self.rule_naming(at, rule, &message, "self");
            }
            _ => {}
        }
    }

    fn list(&mut self, schema: &Value, at: &str) {
        if let Some(words) = schema[limits::NOT_EMPTY].as_str() {
            self.rule(at, "size(self) > 0", words);
        }
        if let Some(what) = schema[limits::DISTINCT].as_str() {
            // There are no more different ones.
            let words = schema["items"]["oneOf"].as_array().map_or(0, Vec::len);
            self.bound(at, "maxItems", words as u64);
            self.rule(at, "self.all(a, self.exists_one(b, b == a))", &format!("a {what} is listed twice"));
            if let Some(rule) = self.rules.last_mut() {
                let twice = "self.filter(a, !self.exists_one(b, b == a))[0]";
                rule.expression = Some(format!("'`' + {twice} + '` is listed twice'"));
            }
        }
        if let Some(what) = schema[limits::NAMED].as_str() {
            let message = format!("two {what}s have one name: give each a name of its own");
            self.rule(at, "self.all(a, self.exists_one(b, b.name == a.name))", &message);
        }
    }
}

fn quantity(schema: &Value) -> Option<Quantity> {
    schema[QUANTITY].as_str().and_then(Quantity::named)
}

fn exactly_one(schema: &Value) -> String {
    let all = || schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let some: Vec<&str> = schema[limits::EXACTLY_ONE]["of"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let of = if some.is_empty() { all().collect() } else { some };
    let has: Vec<String> = of.iter().map(|name| format!("has(self.{name})")).collect();
    format!("[{}].filter(is, is).size() == 1", has.join(", "))
}

/// Whether the value is such a quantity.
pub(super) fn matches(quantity: Quantity) -> String {
    matches_of(quantity, "self")
}

/// Whether `value` is such a quantity. Parts of a nanosecond, and what no 64 bits hold, are left to the parser.
pub(super) fn matches_of(quantity: Quantity, value: &str) -> String {
    let pattern = match quantity {
        Quantity::Span | Quantity::Bytes | Quantity::BitRate => quantity.pattern(),
        Quantity::Percent => PERCENT.into(),
    };
    format!("{value}.matches(r'{pattern}')")
}

/// Whether the value, which is such a quantity, lies between two others.
fn between(quantity: Quantity, least: &str, most: &str) -> String {
    match quantity {
        Quantity::Span => {
            let span = "duration(self.replace(' ', ''))";
            format!("({span} >= duration('{least}') && {span} <= duration('{most}'))")
        }
        Quantity::Percent => {
            let limit = |text: &str| text.trim_end_matches('%').parse::<f64>().unwrap_or(f64::NAN);
            all_of(percentage(), &format!("n >= {:?} && n <= {:?}", limit(least), limit(most)))
        }
        Quantity::Bytes | Quantity::BitRate => {
            let limit = |text| quantity.read(text).map_or(f64::NAN, |(number, _)| number);
            all_of(&number(quantity), &format!("n >= {:?} && n <= {:?}", limit(least), limit(most)))
        }
    }
}

/// A condition on a number `n`, which is computed once.
pub(super) fn all_of(number: &str, condition: &str) -> String {
    format!("[{number}].all(n, {condition})")
}

/// The number of a percentage.
pub(super) const fn percentage() -> &'static str {
    "double(self.replace('+', '').replace('%', '').trim())"
}

/// The number of a quantity in its smallest unit.
fn number(quantity: Quantity) -> String {
    // Of two units one of which ends as the other does, the longer one is looked for first.
    let mut units = quantity.units().to_vec();
    units.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let factor = units.iter().rev().fold(String::new(), |rest, (name, size)| {
        let size = format!("{:?}", *size as f64);
        if rest.is_empty() { size } else { format!("self.contains('{name}') ? {size} : {rest}") }
    });
    format!(r"double(self.find(r'[0-9]+(\.[0-9]+)?')) * ({factor})")
}
