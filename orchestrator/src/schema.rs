//! JSON Schemas (2020-12) of the documents that people and programs handle: `manifests/schema/campaign.schema.json`, by which
//! editors complete and check a campaign, and `result.schema.json`, which says what is in a result. `toll schema` prints
//! them. A campaign's has the rules of the Kubernetes object that JSON Schema has words for too (`kube::rules`).

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use toll_protocol::campaign::schema::Document as Manifest;
use toll_protocol::result::CampaignResult;

use crate::kube::{crd, rules};

/// Which document is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Document {
    /// What users write.
    Campaign,
    /// `result.json`.
    Result,
}

impl Document {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Campaign, Self::Result];

    /// The name of its schema's file in `manifests/schema`.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Campaign => "campaign.schema.json",
            Self::Result => "result.schema.json",
        }
    }

    /// Its schema.
    ///
    /// # Errors
    /// Which rule has no place in it: a fault of Toll's own.
    pub fn schema(self) -> Result<Value, String> {
        match self {
            Self::Campaign => campaign(),
            Self::Result => Ok(result()),
        }
    }

    /// The text of its file.
    ///
    /// # Errors
    /// A fault of Toll's own.
    pub fn text(self) -> Result<String, String> {
        let text = serde_json::to_string_pretty(&self.schema()?).map_err(|error| error.to_string())?;
        Ok(format!("{text}\n"))
    }
}

fn result() -> Value {
    // As it is written: every field is there.
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = Value::from(generator.into_root_schema_for::<CampaignResult>());
    schema["title"] = "A result of Toll".into();
    for_validators(&mut schema);
    schema
}

fn campaign() -> Result<Value, String> {
    let mut settings = SchemaSettings::draft2020_12().for_deserialize();
    settings.inline_subschemas = true;
    let mut generator = settings.into_generator();
    let mut root = Value::from(Manifest::json_schema(&mut generator));
    without_null(&mut root);
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "A campaign of Toll".into();
    let fields = &mut root["properties"];
    fields["apiVersion"] =
        json!({"description": "Version of this kind of document.", "const": crd::API_VERSION});
    fields["kind"] = json!({"description": "What this document is.", "const": crd::KIND});
    rules::describe(&mut root)?;
    for_validators(&mut root);
    Ok(root)
}

/// Takes `null` out of the values that a field may have: one that is not meant is left out. So a description of what it is
/// stands where an editor looks.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = &types[..] {
                    let only = only.clone();
                    map.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(names)) = map.get_mut("enum") {
                names.retain(|name| !name.is_null());
            }
            if let Some(of) = one_or_null(map) {
                map.remove("anyOf");
                // What is said of the field stands above what is said of its type.
                for (keyword, value) in of {
                    map.entry(keyword).or_insert(value);
                }
            }
            map.remove("default");
            map.values_mut().for_each(without_null);
        }
        Value::Array(list) => list.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// The schema of a value that is `null` or of this schema.
fn one_or_null(map: &Map<String, Value>) -> Option<Map<String, Value>> {
    let [one, null] = &map.get("anyOf")?.as_array()?[..] else { return None };
    if null.get("type")? != "null" {
        return None;
    }
    one.as_object().cloned()
}

/// Formats of Rust's numbers become bounds, which every validator knows; a description is one line, in JSON's words.
fn for_validators(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace('\n', " ").replace("`None`", "`null`");
            }
            let most = match map.get("format").and_then(Value::as_str) {
                Some("uint16") => Some(u64::from(u16::MAX)),
                Some("uint32") => Some(u64::from(u32::MAX)),
                Some("uint64" | "uint") => Some(u64::MAX),
                Some("double") => None,
                _ => {
                    map.values_mut().for_each(for_validators);
                    return;
                }
            };
            map.remove("format");
            if let Some(most) = most {
                map.entry("minimum").or_insert(0.into());
                map.entry("maximum").or_insert(most.into());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(for_validators),
        _ => {}
    }
}
