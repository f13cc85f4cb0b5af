//! What `toll-vmm` and `toll-endpoint` have in common as children of an agent: they give up their rights once they hold
//! what needs one, and read what the kernel says of their threads.

pub mod confinement;
pub mod contention;
