//! JSON schemas of the quantities: strings that carry their unit, with a pattern made of the units that parse.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{AddressRange, BitRate, Bytes, InterfaceAddress, MacAddress, Percent, Quantity, Span};

/// The keyword that says which [`Quantity`] a string is, by its name.
pub const QUANTITY: &str = "x-quantity";

impl Quantity {
    /// The schema of its texts.
    pub fn schema(self) -> Schema {
        json_schema!({
            "description": format!("A {self}."),
            "type": "string",
            "pattern": self.pattern(),
            (QUANTITY): self.name(),
        })
    }
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

schema!(Span, Quantity::Span.schema());
schema!(Bytes, Quantity::Bytes.schema());
schema!(BitRate, Quantity::BitRate.schema());
schema!(Percent, Quantity::Percent.schema());
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
