//! The orchestrator: plans a campaign, drives its trials on agents, keeps every result and tells what they say.


pub mod plan;
pub mod scheduler;
