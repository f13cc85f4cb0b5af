//! toll-endpoint
