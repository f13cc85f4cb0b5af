//! The orchestrator: plans a campaign, drives its trials on agents, keeps every result and tells what they say.

pub mod format;
pub mod lab;
pub mod ledger;
pub mod pki;
pub mod plan;
pub mod scheduler;
pub mod statistics;
pub mod summary;

#[cfg(test)]
mod test_support;
