//! Documents of Toll and the schemas that it gives of them: whoever reads a result in a test reads it here, so that each is
//! what `manifests/schema` says.

use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use jsonschema::Validator;
use serde_json::Value;
use toll_protocol::result::CampaignResult;

const RESULT: &str = include_str!("../../manifests/schema/result.schema.json");
const CAMPAIGN: &str = include_str!("../../manifests/schema/campaign.schema.json");

/// What is wrong in `document` by `schema`, a line each.
fn problems(
    schema: &str,
    validator: &OnceLock<Result<Validator, String>>,
    document: &Value,
) -> Result<Vec<String>> {
    let made = validator.get_or_init(|| {
        let schema = serde_json::from_str(schema).map_err(|error| error.to_string())?;
        jsonschema::validator_for(&schema).map_err(|error| error.to_string())
    });
    let validator = made.as_ref().map_err(|why| anyhow::anyhow!("the schema is none: {why}"))?;
    let problem = |error: jsonschema::ValidationError<'_>| {
        let mut text = format!("{}: {error}", error.instance_path());
        text.truncate(text.char_indices().nth(300).map_or(text.len(), |(at, _)| at));
        text
    };
    Ok(validator.iter_errors(document).map(problem).collect())
}

/// What is wrong in a campaign, by its schema.
///
/// # Errors
/// When the schema is none.
pub fn problems_of_campaign(document: &Value) -> Result<Vec<String>> {
    static VALIDATOR: OnceLock<Result<Validator, String>> = OnceLock::new();
    problems(CAMPAIGN, &VALIDATOR, document)
}

/// What is wrong in a result, by its schema.
///
/// # Errors
/// When the schema is none.
pub fn problems_of_result(document: &Value) -> Result<Vec<String>> {
    static VALIDATOR: OnceLock<Result<Validator, String>> = OnceLock::new();
    problems(RESULT, &VALIDATOR, document)
}

/// Reads a `result.json`.
///
/// # Errors
/// When it is none, or not as its schema says.
pub fn result(json: &[u8]) -> Result<CampaignResult> {
    let document = serde_json::from_slice(json).context("the result is no JSON")?;
    let problems = problems_of_result(&document)?;
    ensure!(problems.is_empty(), "the result is not as its schema says:\n{}", problems.join("\n"));
    Ok(CampaignResult::read(json)?)
}
