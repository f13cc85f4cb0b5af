//! JSON schemas of the quantities: strings that carry their unit, with a pattern made of the units that parse.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{BIT_RATE, BYTES, BitRate, Bytes, Percent, SPAN, Scale, Span};

/// A number and one of the units, as [`Scale::parse`] takes it.
fn quantity(scale: &Scale) -> Schema {
    let units = scale.units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
    json_schema!({
        "description": format!("A {} such as {}.", scale.what, scale.example),
        "type": "string",
        "pattern": format!(r"^ *[0-9]+(\.[0-9]+)? *({units}) *$"),
    })
}

macro_rules! schema {
    ($name:ident, $schema:expr) => {
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema!(Span, quantity(&SPAN));
schema!(Bytes, quantity(&BYTES));
schema!(BitRate, quantity(&BIT_RATE));
// What Rust reads as a finite `f64`, and a percent sign.
schema!(
    Percent,
    json_schema!({
        "description": "A percentage such as `10%`.",
        "type": "string",
        "pattern": r"^ *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *% *$",
    })
);
