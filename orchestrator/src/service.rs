//! The orchestrator as a service: agents, campaigns, their ledgers.

pub mod handle;
