//! What end-to-end tests share: Toll's programs, campaigns to give them, and ways to look for what was left
//! behind.

pub mod bystander;
pub mod campaigns;
pub mod dashboards;
pub mod documents;
pub mod fleet;
pub mod hardware;
pub mod kubernetes;
pub mod link;
pub mod machine;
pub mod moments;
pub mod priority;
pub mod programs;
pub mod prometheus;
pub mod readme;
pub mod refused;
pub mod rogue;
pub mod stillness;
pub mod suite;
