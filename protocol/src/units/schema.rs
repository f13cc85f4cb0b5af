//! JSON schemas of the quantities: strings that carry their unit, with a pattern made of the units that parse.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    AddressRange, BIT_RATE, BYTES, BitRate, Bytes, InterfaceAddress, MacAddress, Percent, SPAN, Scale, Span,
};

/// A number and one of the units, as [`Scale::parse`] takes it.
fn quantity(scale: &Scale) -> Schema {
    let units = scale.units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
    json_schema!({
        "description": format!("A {} such as {}.", scale.what, scale.example),
        "type": "string",
        "pattern": format!(r"^ *[0-9]+(\.[0-9]+)? *({units}) *$"),
        "examples": scale.example.split('`').filter(|text| text.contains(|c: char| c.is_ascii_digit())).collect::<Vec<_>>(),
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
        "examples": ["10%"],
    })
);
// What they parse; a number out of its range is found by the parser.
schema!(
    MacAddress,
    json_schema!({
        "description": "A MAC address such as `02:54:0a:4d:00:65`.",
        "type": "string",
        "pattern": "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$",
    })
);
schema!(
    InterfaceAddress,
    json_schema!({
        "description": "An IPv4 address with the length of its network's prefix, such as `10.77.0.1/24`.",
        "type": "string",
        "pattern": r"^[0-9]+(\.[0-9]+){3}/[0-9]+$",
    })
);
schema!(
    AddressRange,
    json_schema!({
        "description": "IPv4 addresses from a first to a last, such as `10.77.0.101-10.77.0.150`, or one alone.",
        "type": "string",
        "pattern": r"^[0-9]+(\.[0-9]+){3} *(- *[0-9]+(\.[0-9]+){3})?$",
    })
);
