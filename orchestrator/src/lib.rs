//! toll-orchestrator
