//! toll-vmm
