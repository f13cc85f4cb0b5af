//! The orchestrator: plans a campaign, drives its trials on agents, keeps every result and tells what they say.

mod allocator;
pub mod binaries;
pub mod cli;
pub mod doctor;
pub mod exit;
pub mod file;
pub mod format;
pub mod from_ledger;
pub mod http;
pub mod kube;
pub mod lab;
pub mod ledger;
pub mod link;
pub mod manifest;
pub mod metrics;
pub mod pki;
pub mod plan;
pub mod progress;
pub mod remote;
pub mod report;
pub mod run;
pub mod scheduler;
pub mod schema;
pub mod serve;
pub mod service;
pub mod show_plan;
pub mod statistics;
pub mod summary;
#[cfg(test)]
mod test_support;
pub mod trace;
