//! What a document that Toll writes says of itself: `apiVersion` and `kind`, as an object of Kubernetes does. One of another
//! version is refused by name, and never half understood.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::printable::printable;

/// Version of the documents that Toll writes. The first had none: it is what `toll.dev/v1alpha1` would have been.
pub const API_VERSION: &str = "toll.dev/v1alpha2";

macro_rules! constant {
    ($(#[$doc:meta])* $name:ident, $text:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name;

        impl $name {
            /// What is written.
            pub const NAME: &str = $text;
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(Self::NAME)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let found = String::deserialize(deserializer)?;
                if found == Self::NAME {
                    Ok(Self)
                } else {
                    let found = printable(&found);
                    Err(de::Error::custom(format!("`{found}` is not known: this Toll reads {}", Self::NAME)))
                }
            }
        }
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "const": Self::NAME})
            }
        }
    };
}

constant!(
    /// `apiVersion` of a document: [`API_VERSION`].
    ApiVersion,
    API_VERSION
);
constant!(
    /// `kind` of `result.json`.
    ResultKind,
    "Result"
);
constant!(
    /// `kind` of what the service keeps of a campaign that is over.
    StatusKind,
    "CampaignStatus"
);

/// The campaign as it was written, out of a document of `kind` and of this version.
///
/// # Errors
/// Why it is none; which version or kind it is of, if that is another.
pub fn manifest(json: &[u8], kind: &'static str) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(rename = "apiVersion")]
        api_version: Option<String>,
        kind: Option<String>,
        manifest: Option<String>,
    }
    let head: Head = serde_json::from_slice(json)?;
    let Some(version) = head.api_version else {
        return Err(de::Error::custom(format!(
            "it has no `apiVersion`: an older Toll wrote it, and this one reads {kind} of {API_VERSION}; use that one"
        )));
    };
    if version != API_VERSION || head.kind.as_deref() != Some(kind) {
        return Err(de::Error::custom(format!(
            "it is {} of {}, and this Toll reads {kind} of {API_VERSION}: use the one that wrote it",
            printable(&head.kind.unwrap_or_else(|| "nothing".to_owned())),
            printable(&version),
        )));
    }
    head.manifest.ok_or_else(|| de::Error::missing_field("manifest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_another_version_or_kind_is_refused_by_name() {
        let read = |json: &str| manifest(json.as_bytes(), ResultKind::NAME);
        let this = r#"{"apiVersion": "toll.dev/v1alpha2", "kind": "Result", "manifest": "a: 1\n"}"#;
        assert_eq!(read(this).expect("is one"), "a: 1\n");
        let refused = |json: &str| read(json).expect_err(json).to_string();
        let older = refused(r#"{"campaign": "c", "manifest": ""}"#);
        assert!(older.contains("an older Toll wrote it") && older.contains(API_VERSION), "{older}");
        let newer = refused(&this.replace("alpha2", "alpha9\u{202e}"));
        assert!(newer.contains("it is Result of toll.dev/v1alpha9\\u{202e}, "), "{newer}");
        let other = refused(&this.replace("\"Result\"", "\"Campaign\""));
        assert!(other.contains("it is Campaign of toll.dev/v1alpha2"), "{other}");
        assert!(refused(&this.replace("\"manifest\"", "\"m\"")).contains("missing field `manifest`"));
        assert!(refused("[]").contains("invalid type") || refused("{").contains("EOF"));
        serde_json::from_str::<ApiVersion>("\"toll.dev/v1alpha1\"").expect_err("is another");
    }
}
