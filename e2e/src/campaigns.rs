//! Campaigns for tests: short, with every arm.

/// Arms by name.
pub const NATIVE: &str = "{name: native, native: {}}";
/// The payload program as a host process.
pub const SAME_STACK: &str = "{name: same-stack, sameStack: {adapter: {virtioNet: {}}}}";
/// A guest with pcnet.
pub const PCNET: &str = "{name: pcnet, guest: {os: payload, adapter: {pcnet: {}}}}";
/// A guest with virtio-net, against native and against itself.
pub const VIRTIO: &str =
    "{name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}, peers: [native, same-arm]}";

/// A campaign of `arms` on a lab of two hosts: `blocks` blocks of `duration` each way.
pub fn campaign(arms: &[&str], blocks: u32, duration: &str, more: &str) -> String {
    let arms: String = arms.iter().map(|arm| format!("    - {arm}\n")).collect();
    format!(
        "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {{name: test}}\nspec:\n  \
         hosts: {{lab: {{count: 2, link: {{rate: 10Gbit, mtu: 1500}}}}}}\n  arms:\n{arms}  workloads:\n    \
         - {{name: bulk, stream: {{warmUp: 100ms, duration: {duration}}}}}\n  blocks: {blocks}\n  seed: 7\n{more}"
    )
}

/// A campaign of `arms` on all hosts of a fleet: `blocks` blocks of `duration` each way. `more` is one more field of
/// the spec.
pub fn fleet_campaign(arms: &[&str], blocks: u32, duration: &str, more: &str) -> String {
    let arms: String = arms.iter().map(|arm| format!("    - {arm}\n")).collect();
    format!(
        "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {{name: test}}\nspec:\n  \
         hosts: {{select: {{}}}}\n  arms:\n{arms}  workloads:\n    \
         - {{name: bulk, stream: {{warmUp: 100ms, duration: {duration}}}}}\n  blocks: {blocks}\n  seed: 7\n  {more}\n"
    )
}
