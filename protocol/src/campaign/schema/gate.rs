//! Gates as users write them. Which conditions there are, and what their limits are written in, is made of the tables of figures and
//! relations: a figure's field is its id in camelCase.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::super::limits::EXACTLY_ONE;
use super::Cells;
use crate::figure::{Better, Compare, FIGURES, Figure, GOODPUT};
use crate::relation::{AT_LEAST, AT_MOST, RELATIONS, Relation};
use crate::result::Limit;
use crate::units::Quantity;

/// What a condition limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// 1 - ratio to native of goodput.
    Toll,
    /// A figure relative to another arm's, paired within blocks.
    Ratio,
    /// The median of a figure.
    Median(&'static Figure),
}

/// A condition that a gate may have.
#[derive(Debug)]
pub struct Form {
    /// Its field in a manifest.
    pub field: String,
    /// What it limits.
    pub of: Limited,
    /// What its limits are written in; nothing for a bare number, which is not below 0.
    pub quantity: Option<Quantity>,
    /// What the number of that quantity is divided by to be in the figure's unit.
    pub divisor: f64,
    /// How what is limited may lie to its limit; one of them is written.
    pub relations: Vec<&'static Relation>,
    /// How it is written.
    pub example: String,
}

/// All of them: first what is relative to another arm, then each figure.
pub static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| {
    let medians = FIGURES.into_iter().map(|figure| (camel_case(figure.id), Limited::Median(figure)));
    let relative = [("toll".to_owned(), Limited::Toll), ("ratio".to_owned(), Limited::Ratio)];
    relative.into_iter().chain(medians).map(|(field, of)| Form::new(field, of)).collect()
});

/// Figures that a ratio may be of, as a manifest names them.
pub static COMPARED: LazyLock<Vec<(String, &'static Figure)>> = LazyLock::new(|| {
    let compared = FIGURES.into_iter().filter(|figure| match figure.compare {
        Compare::Ratio | Compare::Difference => true,
        Compare::None => false,
    });
    compared.map(|figure| (camel_case(figure.id), figure)).collect()
});

/// `exits-per-frame` as a manifest writes it: `exitsPerFrame`.
fn camel_case(id: &str) -> String {
    let mut words = id.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (head, tail) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        name + &head.to_uppercase() + tail
    })
}

impl Form {
    fn new(field: String, of: Limited) -> Self {
        let (quantity, divisor) = match of {
            Limited::Toll | Limited::Ratio => (Some(Quantity::Percent), 1.0),
            Limited::Median(figure) => figure.unit.limit(),
        };
        let is_ratio = of == Limited::Ratio;
        let relations: Vec<_> =
            RELATIONS.into_iter().filter(|relation| is_ratio || relation.widest.is_none()).collect();
        let better = match of {
            Limited::Toll => Better::Lower,
            Limited::Ratio => Better::Higher,
            Limited::Median(figure) => figure.better,
        };
        let likely = match better {
            Better::Higher => &AT_LEAST,
            Better::Lower => &AT_MOST,
        };
        let to = if is_ratio { "to: ARM, " } else { "" };
        let example = format!("{field}: {{{to}{}: {}}}", likely.id, sample(quantity));
        Self { field, of, quantity, divisor, relations, example }
    }

    /// That of this field.
    pub fn named(field: &str) -> Option<&'static Self> {
        FORMS.iter().find(|form| form.field == field)
    }

    /// What must be written in it, for who wrote something else.
    fn relations_wanted(&self) -> String {
        let written = |relation: &&Relation| format!("`{}: {}`", relation.id, sample(self.quantity));
        let written: Vec<String> = self.relations.iter().map(written).collect();
        match written.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("must say exactly one of {} and {last}", others.join(", "))
            }
            _ => format!("must say {}", written.concat()),
        }
    }

    /// The limit that is written.
    ///
    /// # Errors
    /// What is wrong with it.
    fn limit(&self, written: &Value) -> Result<Limit, String> {
        match (self.quantity, written) {
            (Some(quantity), Value::String(text)) => {
                let (number, text) = quantity.read(text).map_err(|why| why.to_string())?;
                Ok(Limit { number: number / self.divisor, text })
            }
            (None, Value::Number(number)) => {
                let number = number.as_f64().ok_or("is no number")?;
                Ok(Limit { number: number / self.divisor, text: number.to_string() })
            }
            (Some(quantity), _) => Err(format!("is no {quantity}")),
            (None, _) => Err("is no number".into()),
        }
    }

    /// What its field is, for people.
    fn description(&self) -> String {
        match self.of {
            Limited::Toll => "Limit on 1 - ratio to native of goodput.".into(),
            Limited::Ratio => {
                "Limit on the ratio of a figure to that of another arm, paired within blocks.".into()
            }
            Limited::Median(figure) => format!("Limit on the median of: {}.", figure.title),
        }
    }

    /// What its field holds.
    fn schema(&self) -> Value {
        let mut fields = Map::new();
        for relation in &self.relations {
            let mut limit = match self.quantity {
                Some(quantity) => quantity.schema(),
                None => json_schema!({"type": "number"}),
            };
            optional(&mut limit);
            let words =
                if relation.widest.is_some() { "Equal within so much, either way" } else { relation.words };
            limit.insert("description".into(), sentence(words).into());
            fields.insert(relation.id.into(), limit.into());
        }
        let mut required = Vec::new();
        if self.of == Limited::Ratio {
            let figures: Vec<&str> = COMPARED.iter().map(|(name, _)| name.as_str()).collect();
            fields.insert(
                "of".into(),
                json!({"description": "The figure. Default goodput.", "type": "string", "enum": figures}),
            );
            fields.insert(
                "to".into(),
                json!({"description": "Name of the arm that it is relative to.", "type": "string"}),
            );
            required.push("to");
        }
        let relations: Vec<&str> = self.relations.iter().map(|relation| relation.id).collect();
        let mut schema = json!({
            "description": self.description(),
            "type": ["object", "null"],
            "properties": fields,
            "additionalProperties": false,
            (EXACTLY_ONE): {"of": relations, "say": self.relations_wanted()},
        });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        schema
    }
}

/// Lets nothing stand for a value that is absent.
fn optional(schema: &mut Schema) {
    if let Some(kind) = schema.get("type").cloned() {
        schema.insert("type".into(), json!([kind, "null"]));
    }
}

fn sentence(words: &str) -> String {
    let (head, tail) = words.split_at(words.chars().next().map_or(0, char::len_utf8));
    format!("{}{tail}.", head.to_uppercase())
}

/// What must be written in a gate, for who wrote something else.
fn conditions_wanted() -> String {
    let examples: Vec<String> = FORMS.iter().map(|form| format!("`{}`", form.example)).collect();
    format!("must be exactly one condition: {}", examples.join(", "))
}

/// Some limit.
fn sample(quantity: Option<Quantity>) -> &'static str {
    quantity.map_or("1", Quantity::sample)
}

/// What must hold for exit code 0: exactly one condition.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Which cells; every virtual cell if empty.
    pub cells: Cells,
    /// What must hold of them. Exactly one is valid.
    pub conditions: Vec<Condition>,
}

/// A condition as it is written.
#[derive(Debug, Clone)]
pub struct Condition {
    /// What it is.
    pub form: &'static Form,
    /// Of which figure.
    pub figure: &'static Figure,
    /// Of a ratio: name of the arm that it is relative to.
    pub to: Option<String>,
    /// How what is limited must lie to what. Exactly one is valid.
    pub limits: Vec<(&'static Relation, Limit)>,
}

impl Condition {
    fn read(form: &'static Form, written: BTreeMap<String, Value>) -> Result<Self, String> {
        let figure = match form.of {
            Limited::Median(figure) => figure,
            Limited::Toll | Limited::Ratio => &GOODPUT,
        };
        let mut condition = Self { form, figure, to: None, limits: Vec::new() };
        for (field, value) in written.into_iter().filter(|(_, value)| !value.is_null()) {
            let relation = form.relations.iter().find(|relation| relation.id == field);
            match (relation, field.as_str(), form.of, value) {
                (Some(relation), _, _, value) => {
                    let limit = form.limit(&value).map_err(|why| format!("{}.{field}: {why}", form.field))?;
                    condition.limits.push((relation, limit));
                }
                (None, "to", Limited::Ratio, Value::String(to)) => condition.to = Some(to),
                (None, "of", Limited::Ratio, Value::String(of)) => {
                    let known = COMPARED.iter().find(|(name, _)| *name == of);
                    condition.figure = known.ok_or_else(|| format!("there is no ratio of `{of}`"))?.1;
                }
                (None, ..) => return Err(format!("unknown field `{field}` of {}", form.field)),
            }
        }
        Ok(condition)
    }
}

impl<'de> Deserialize<'de> for Gate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Gate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a gate")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Gate, A::Error> {
                let mut gate = Gate { cells: Cells::default(), conditions: Vec::new() };
                while let Some(field) = map.next_key::<String>()? {
                    if field == "cells" {
                        gate.cells = map.next_value()?;
                        continue;
                    }
                    let form = Form::named(&field)
                        .ok_or_else(|| de::Error::custom(format!("unknown field `{field}`")))?;
                    if let Some(written) = map.next_value::<Option<BTreeMap<String, Value>>>()? {
                        gate.conditions.push(Condition::read(form, written).map_err(de::Error::custom)?);
                    }
                }
                Ok(gate)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl JsonSchema for Gate {
    fn schema_name() -> Cow<'static, str> {
        "Gate".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut fields: Map<String, Value> =
            FORMS.iter().map(|form| (form.field.clone(), form.schema())).collect();
        let mut cells = generator.subschema_for::<Cells>();
        cells.insert("description".into(), "Which cells; every virtual cell if empty.".into());
        fields.insert("cells".into(), cells.into());
        let conditions: Vec<&str> = FORMS.iter().map(|form| form.field.as_str()).collect();
        json_schema!({
            "description": "What must hold for exit code 0: exactly one condition.",
            "type": "object",
            "properties": fields,
            "additionalProperties": false,
            (EXACTLY_ONE): {"of": conditions, "say": conditions_wanted()},
        })
    }
}
