//! toll-node-agent
