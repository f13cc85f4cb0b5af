//! toll-e2e
